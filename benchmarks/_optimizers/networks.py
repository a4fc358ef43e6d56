"""The networks that are trained: for 32 × 32 images of 100 classes."""

from __future__ import annotations

from importlib import import_module

from torch import nn


def resnet18() -> nn.Module:
    module: nn.Module = import_module("lightning_opt.models").ResNet18(num_classes=100)
    return module


def vgg11() -> nn.Module:
    module: nn.Module = import_module("torchvision.models").vgg11(num_classes=100)
    return module
