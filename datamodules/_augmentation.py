"""Random crop, horizontal flip and normalization of whole batches, as functions of random bits.

An image's 62 random bits b, of which each draw has its own, choose one of 2(2p + 1)² outcomes, all
equally likely up to 2⁻⁵⁴:

    top = b mod (2p + 1),   left = ⌊b / (2p + 1)⌋ mod (2p + 1),   flip = ⌊b / (2p + 1)²⌋ mod 2.

The image, mirrored if flip is 1, gets p black pixels on each side and is cut back to its size at
(top, left): the distribution of ``RandomCrop(size, padding=p)`` before ``RandomHorizontalFlip()``.

All of it moves bytes: ``index_select`` copies whole images and whole rows of them, which other ways
to index do pixel by pixel, ten times slower. Only what is left becomes floating point.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_and_flip(images: Tensor, bits: Tensor, padding: int, *, flip: bool = True) -> Tensor:
    """Each image cropped at random and perhaps mirrored, as its bits say.

    Args:
        images: ``(batch, channels, height, width)``, of any type; they stay as they are.
        bits: ``(batch,)`` integers of at least 0.
        padding: Black pixels on each side before the crop.
        flip: Whether images are mirrored at all.

    >>> image = torch.tensor([[[[1, 2], [3, 4]]]])
    >>> crop_and_flip(image, torch.tensor([0 + 3 * 1]), padding=1).tolist()  # top 0, left 1
    [[[[0, 0], [1, 2]]]]
    >>> crop_and_flip(image, torch.tensor([1 + 3 * 1 + 9 * 1]), padding=1).tolist()  # mirrored
    [[[[2, 1], [4, 3]]]]
    """
    offsets = 2 * padding + 1
    if flip:
        images = _mirrored(images, bits // offsets**2 % 2)
    padded = F.pad(images, (padding,) * 4)
    return _windows(padded, bits % offsets, bits // offsets % offsets, images.shape[2:])


def _mirrored(images: Tensor, chosen: Tensor) -> Tensor:
    both = torch.cat([images, images.flip(3)])
    positions = torch.arange(len(images), device=images.device)
    return both.index_select(0, positions + len(images) * chosen)


def _windows(images: Tensor, top: Tensor, left: Tensor, size: Sequence[int]) -> Tensor:
    """Of each image the window of a size at its own position."""
    (count, channels, _, width), device = images.shape, images.device
    corners = torch.arange(count, device=device) * images.stride(0) + top * width + left
    planes = torch.arange(channels, device=device)[:, None] * images.stride(1)
    lines = planes + torch.arange(size[0], device=device) * width
    starts = corners[:, None] + lines.flatten()
    # Every stretch of memory as long as a row of a window, most of them overlapping.
    stretches = images.as_strided((images.numel() - size[1] + 1, size[1]), (1, 1))
    return stretches.index_select(0, starts.flatten()).view(count, channels, *size)


class Normalization:
    """Bytes to floating point: (x / 255 − mean) / std, channel by channel.

    Args:
        mean, std: One of each for every channel, on a scale from 0 to 1.

    >>> Normalization([0.5], [0.25])(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    tensor([[[[-2.,  2.]]]])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        shape = (-1, 1, 1)
        self._scale = torch.tensor([1 / (255 * s) for s in std]).view(shape)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(shape)

    def __call__(self, images: Tensor) -> Tensor:
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        return images.float().mul_(self._scale).add_(self._shift)
