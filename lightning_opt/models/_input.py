"""What the networks do to images before their first layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ImageInput:
    """Resizes images to what a network is to see, and refuses those that it cannot.

    All of a batch at once, on its device: bilinear, with the antialiasing of torchvision's
    ``Resize`` where it makes them smaller.

    Args:
        network: Its name, for messages.
        image_size: Height and width in pixels; None leaves images as they come.
        least: The smallest height and width that the network takes.

    Raises:
        ValueError: ``image_size`` is below ``least``; when called, images are.

    >>> import torch
    >>> ImageInput("VGG11", image_size=64)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 3, 64, 64])
    """

    network: str
    image_size: int | None = None
    least: int = 1

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < self.least:
            raise ValueError(
                f"{self.network} needs image_size >= {self.least}, got {self.image_size}."
            )

    def __call__(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        size = self.image_size
        if size is None:
            if min(height, width) < self.least:
                raise ValueError(
                    f"{self.network} takes images from {self.least} × {self.least} pixels, got "
                    f"{height} × {width}: pass image_size={self.least} or more, to which it "
                    "resizes them."
                )
        elif (height, width) != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return images


def check_classes(network: str, num_classes: int) -> None:
    """Raises a ValueError if there is no class."""
    if num_classes < 1:
        raise ValueError(f"{network} needs num_classes >= 1, got {num_classes}.")


def check_stem(network: str, stem: str) -> None:
    """Raises a ValueError unless the stem is one of two."""
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"{network}'s stem is 'cifar' or 'imagenet', got {stem!r}.")
