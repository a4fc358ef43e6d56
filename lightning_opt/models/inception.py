"""Inception v3 (Szegedy et al., 1512.00567), torchvision's, with its auxiliary head.

The auxiliary head pools 5 × 5 pixels at a stride of 3 and convolves 5 × 5 without padding, on the
last map but three. torchvision's fails on maps below 17 × 17, that is on images below 299 × 299,
where the network without it takes 75 × 75. Here the head stretches smaller maps to 17 × 17, and is
torchvision's on the others.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
    InceptionOutputs,
)

from ._input import ImageInput, check_classes

_SMALLEST_MAP = 17


class _Auxiliary(InceptionAux):  # type: ignore[misc]
    """torchvision's auxiliary head, for maps of any size."""

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        if min(height, width) < _SMALLEST_MAP:
            size = max(height, _SMALLEST_MAP), max(width, _SMALLEST_MAP)
            maps = F.adaptive_avg_pool2d(maps, size)
        logits: Tensor = super().forward(maps)
        return logits


class InceptionV3(Inception3):  # type: ignore[misc]
    """torchvision's Inception v3 with its auxiliary head (27.2M parameters at 1,000 classes).

    It has one stem, which divides the resolution by 8.

    Args:
        num_classes: Number of outputs.
        image_size: Pixels that images are resized to, at least 75; as they come if left out. The
            paper has 299, which is 28 times the work of 75.

    Raises:
        ValueError: ``num_classes`` or ``image_size`` is too small; in a forward, images are.

    Shape:
        Images ``(batch, 3, height, width)`` to logits ``(batch, num_classes)`` in evaluation mode;
        in training mode, to a named tuple of these and of the auxiliary head's, ``logits`` and
        ``aux_logits``.

    >>> import torch
    >>> network = InceptionV3(num_classes=100, image_size=75)
    >>> [logits.shape for logits in network(torch.zeros(2, 3, 32, 32))]
    [torch.Size([2, 100]), torch.Size([2, 100])]
    >>> network.eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 100])
    """

    def __init__(self, num_classes: int = 100, image_size: int | None = None) -> None:
        image_input = ImageInput("InceptionV3", image_size, least=75)
        check_classes("InceptionV3", num_classes)
        super().__init__(
            num_classes,
            init_weights=True,  # torchvision's default, if it is not to warn
            inception_blocks=[
                BasicConv2d,
                InceptionA,
                InceptionB,
                InceptionC,
                InceptionD,
                InceptionE,
                _Auxiliary,
            ],
        )
        self._input = image_input

    def forward(self, images: Tensor) -> Tensor | InceptionOutputs:
        output: Tensor | InceptionOutputs = super().forward(self._input(images))
        return output
