"""The shallow convolutional network of the thesis' figure 6.

The thesis gives no sizes. Ours: two 3 × 3 convolutions of stride 2, each followed by a ReLU, then
one linear layer. Strides in place of pools (Springenberg et al., 1412.6806) halve its time.
"""

from __future__ import annotations

from torch import Tensor, nn


class ShallowCNN(nn.Module):
    """Two convolutions and a linear layer.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of an image; 1 for the digits, 3 for CIFAR.
        image_size: Height and width of an image in pixels.
        width: Channels of the first convolution; the second has twice as many.

    Raises:
        ValueError: a size is out of range.

    Shape:
        Images ``(batch, in_channels, image_size, image_size)`` to logits ``(batch, num_classes)``.

    >>> import torch
    >>> ShallowCNN()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, image_size: int = 8, width: int = 16
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_classes", num_classes, 1),
            ("in_channels", in_channels, 1),
            ("image_size", image_size, 1),
            ("width", width, 1),
        ):
            if value < least:
                raise ValueError(f"ShallowCNN needs {name} >= {least}, got {value}.")
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        side = -(-image_size // 4)  # each stride halves it, rounding up
        self.classifier = nn.Linear(2 * width * side**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
