"""EfficientNet-B0 and B2 (Tan & Le, 1905.11946), torchvision's, with a choice of stem."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torchvision.models.efficientnet import EfficientNet, MBConvConfig

from ._input import ImageInput, check_classes, check_stem

Stem = Literal["cifar", "imagenet"]

# B0's stages, table 1: expansion, kernel, stride, channels in and out, blocks.
_STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


class _EfficientNet(EfficientNet):  # type: ignore[misc]
    """B0, scaled."""

    def __init__(
        self,
        num_classes: int,
        stem: Stem,
        image_size: int | None,
        *,
        width: float,
        depth: float,
        dropout: float,
    ) -> None:
        name = type(self).__name__
        image_input = ImageInput(name, image_size)
        check_classes(name, num_classes)
        check_stem(name, stem)
        stages = [MBConvConfig(*stage, width_mult=width, depth_mult=depth) for stage in _STAGES]
        super().__init__(stages, dropout=dropout, num_classes=num_classes)
        self._input = image_input
        if stem == "cifar":
            self.features[0][0].stride = (1, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(self._input(images))
        return logits


class EfficientNetB0(_EfficientNet):
    """torchvision's EfficientNet-B0 with the number of classes and the stem of the data set.

    Args:
        num_classes: Number of outputs.
        stem: The first convolution has stride 1 (``"cifar"``) or 2 (``"imagenet"``, the original);
            there are as many parameters either way (5.3M at 1,000 classes). From there on the
            resolution is divided by 16.
        image_size: Pixels that images are resized to; as they come if left out. The paper has 224.

    Raises:
        ValueError: the stem is neither, or ``num_classes`` or ``image_size`` is below 1.

    Shape:
        Images ``(batch, 3, height, width)`` to logits ``(batch, num_classes)``.

    >>> import torch
    >>> EfficientNetB0(num_classes=100).eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 100])
    """

    def __init__(
        self, num_classes: int = 100, stem: Stem = "cifar", image_size: int | None = None
    ) -> None:
        super().__init__(num_classes, stem, image_size, width=1.0, depth=1.0, dropout=0.2)


class EfficientNetB2(_EfficientNet):
    """torchvision's EfficientNet-B2: B0, 1.1 times as wide, 1.2 times as deep (9.1M parameters).

    Args:
        num_classes: Number of outputs.
        stem: The first convolution has stride 1 (``"cifar"``) or 2 (``"imagenet"``, the original).
        image_size: Pixels that images are resized to; as they come if left out. The paper has 260.

    Raises:
        ValueError: the stem is neither, or ``num_classes`` or ``image_size`` is below 1.

    Shape:
        Images ``(batch, 3, height, width)`` to logits ``(batch, num_classes)``.

    >>> import torch
    >>> EfficientNetB2(num_classes=100).eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 100])
    """

    def __init__(
        self, num_classes: int = 100, stem: Stem = "cifar", image_size: int | None = None
    ) -> None:
        super().__init__(num_classes, stem, image_size, width=1.1, depth=1.2, dropout=0.3)
