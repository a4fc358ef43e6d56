"""The networks that the tasks train, each an ``nn.Module`` with ``num_classes``."""

from .resnet import ResNet18
from .shallow import ShallowCNN

__all__ = ["ResNet18", "ShallowCNN"]
