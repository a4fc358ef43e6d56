"""ResNet18 (He et al., 1512.03385), torchvision's, with a choice of stem."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from ._input import ImageInput, check_classes, check_stem


class ResNet18(ResNet):  # type: ignore[misc]
    """torchvision's ResNet18 with the number of classes and the stem of the data set.

    Args:
        num_classes: Number of outputs.
        stem: ``"cifar"`` is a 3 × 3 convolution of stride 1 without a pool, which leaves 32 × 32
            images their resolution (11.2M parameters at 100 classes); ``"imagenet"`` is the
            original 7 × 7 of stride 2 with a pool (11.7M parameters at 1,000 classes).
        image_size: Pixels that images are resized to; as they come if left out.

    Raises:
        ValueError: the stem is neither, or ``num_classes`` or ``image_size`` is below 1.

    Shape:
        Images ``(batch, 3, height, width)`` to logits ``(batch, num_classes)``.

    >>> import torch
    >>> ResNet18(num_classes=100).eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 100])
    """

    def __init__(
        self,
        num_classes: int = 100,
        stem: Literal["cifar", "imagenet"] = "cifar",
        image_size: int | None = None,
    ) -> None:
        image_input = ImageInput("ResNet18", image_size)
        check_classes("ResNet18", num_classes)
        check_stem("ResNet18", stem)
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        self._input = image_input
        if stem == "cifar":
            self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(self._input(images))
        return logits
