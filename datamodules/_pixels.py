"""Images in memory, all as bytes in one tensor, and batches of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

# Of a batch of bytes (batch, channels, height, width) and their random bits (batch,).
Augmentation = Callable[[Tensor, Tensor], Tensor]


class Pixels:
    """Some of the images that lie in one tensor, which several parts of a data set share.

    Args:
        images: ``(all, channels, height, width)`` in uint8.
        labels: ``(all,)``, on the same device.
        rows: ``(some,)``, which images these are.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor) -> None:
        self.images, self.labels, self.rows = images, labels, rows.to(images.device)
        self.size: tuple[int, int] = (images.shape[2], images.shape[3])

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels by index among these, where the images lie."""
        rows = self.rows.index_select(0, indices.to(self.rows.device, non_blocking=True))
        return self.images.index_select(0, rows), self.labels.index_select(0, rows)

    def picture(self, index: int) -> tuple[Any, int]:
        """One of them as a PIL image, and its label."""
        row = self.rows[index]
        return F.to_pil_image(self.images[row]), int(self.labels[row])


class PixelBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batches by draws: ``(batch, 2)`` integers, an index and random bits for each image.

    Args:
        pixels: The images to draw from.
        normalize: Makes bytes floating point.
        augment: Changes the bytes before that, if given.
    """

    def __init__(
        self,
        pixels: Pixels,
        normalize: Callable[[Tensor], Tensor],
        augment: Augmentation | None = None,
    ) -> None:
        self._pixels, self._normalize, self._augment = pixels, normalize, augment

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self._pixels.take(draws[:, 0])
        if self._augment is not None:
            images = self._augment(images, draws[:, 1].to(images.device, non_blocking=True))
        return self._normalize(images), labels
