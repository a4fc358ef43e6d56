"""Crop, flip and normalization as functions of bits, beside the same done pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from lightning_opt.datamodules._augmentation import Normalization, crop_and_flip


def some_images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)


def slowly(image: Tensor, bits: int, padding: int, flip: bool) -> Tensor:
    """The same for one image, pixel by pixel, as the module's docstring has it."""
    height, width = image.shape[1:]
    offsets = 2 * padding + 1
    top, left, mirrored = bits % offsets, bits // offsets % offsets, bits // offsets**2 % 2
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row + top - padding, column + left - padding
            if 0 <= y < height and 0 <= x < width:
                out[:, row, column] = image[:, y, width - 1 - x if flip and mirrored else x]
    return out


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 2, 5])
@pytest.mark.parametrize("size", [(1, 4, 4), (3, 3, 5), (2, 1, 2)])
def test_every_outcome_is_that_of_its_bits(size, padding: int, flip: bool):
    period = 2 * (2 * padding + 1) ** 2
    images, bits = some_images(period, *size), torch.arange(period)
    wanted = [slowly(image, int(b), padding, flip) for image, b in zip(images, bits, strict=True)]
    found = crop_and_flip(images, bits, padding, flip=flip)
    assert torch.equal(found, torch.stack(wanted))
    # The highest bits there are, and in another order: an image's own bits are all that matter.
    order = torch.randperm(period, generator=torch.Generator().manual_seed(1))
    high = bits + (2**62 // period - 1) * period
    assert torch.equal(crop_and_flip(images[order], high[order], padding, flip=flip), found[order])


def test_images_stay_as_they_are():
    images = some_images(8, 3, 4, 4)
    before = images.clone()
    for padding in (0, 2):
        crop_and_flip(images, torch.arange(8) * 25, padding)
        crop_and_flip(images, torch.arange(8), padding, flip=False)
    assert torch.equal(images, before)


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_outcomes_are_those_of_torchvision(padding: int):
    """On an image whose pixels all differ, each of theirs once."""
    image = torch.arange(1, 37, dtype=torch.uint8).view(1, 6, 6)
    offsets = 2 * padding + 1
    padded = v2.functional.pad(image, [padding])
    theirs = set()
    for top in range(offsets):
        for left in range(offsets):
            crop = v2.functional.crop(padded, top, left, 6, 6)
            theirs |= {key(crop), key(v2.functional.horizontal_flip(crop))}
    ours = crop_and_flip(
        image.expand(2 * offsets**2, 1, 6, 6), torch.arange(2 * offsets**2), padding
    )
    assert len(theirs) == len(ours)
    assert {key(outcome) for outcome in ours} == theirs


def key(image: Tensor) -> tuple[int, ...]:
    return tuple(image.flatten().tolist())


def test_normalization_is_torchvisions():
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    values = torch.arange(256, dtype=torch.uint8).expand(2, 3, 1, 256)
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])(values)
    ours = Normalization(mean, std)(values)
    assert ours.dtype == torch.float32 and ours.is_contiguous()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
