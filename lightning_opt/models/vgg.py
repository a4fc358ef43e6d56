"""VGG11 (Simonyan & Zisserman, 1409.1556; their network A), torchvision's."""

from __future__ import annotations

from torch import Tensor
from torchvision.models.vgg import VGG, cfgs, make_layers

from ._input import ImageInput, check_classes


class VGG11(VGG):  # type: ignore[misc]
    """torchvision's VGG11 without normalization layers (132.9M parameters at 1,000 classes).

    It has one stem, which keeps the resolution; five pools divide it by 32.

    Args:
        num_classes: Number of outputs.
        image_size: Pixels that images are resized to, at least 32; as they come if left out. The
            paper has 224. Maps of other sizes than its 7 × 7 are pooled or repeated to it, so that
            the linear layers, nearly all of the parameters, are the same at any size.

    Raises:
        ValueError: ``num_classes`` or ``image_size`` is too small; in a forward, images are.

    Shape:
        Images ``(batch, 3, height, width)`` to logits ``(batch, num_classes)``.

    >>> VGG11(image_size=28)
    Traceback (most recent call last):
    ValueError: VGG11 needs image_size >= 32, got 28.
    """

    def __init__(self, num_classes: int = 100, image_size: int | None = None) -> None:
        image_input = ImageInput("VGG11", image_size, least=32)
        check_classes("VGG11", num_classes)
        super().__init__(make_layers(cfgs["A"]), num_classes=num_classes)
        self._input = image_input

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(self._input(images))
        return logits
