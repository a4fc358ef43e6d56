"""The classic pipeline: torchvision's transforms, image by image, seeded by each draw's bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Pictures(Protocol):
    """Images of one size, height and width, that can be had one by one."""

    size: tuple[int, int]

    def __len__(self) -> int: ...

    def picture(self, index: int) -> tuple[Any, int]:
        """A PIL image and its label."""


class PictureBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batches by draws: ``(batch, 2)`` integers, an index and random bits for each image.

    What a transform draws from PyTorch's random state depends on the bits alone, and leaves that
    state as it was.

    Args:
        pictures: The images to draw from.
        transform: A PIL image to a tensor.
    """

    def __init__(self, pictures: Pictures, transform: Callable[[Any], Tensor]) -> None:
        self._pictures, self._transform = pictures, transform

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        with _random_state_kept():
            for index, bits in draws.tolist():
                picture, label = self._pictures.picture(index)
                # Not torch.manual_seed, which seeds the accelerators too.
                torch.default_generator.manual_seed(bits)
                images.append(self._transform(picture))
                labels.append(label)
        return torch.stack(images), torch.tensor(labels)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
