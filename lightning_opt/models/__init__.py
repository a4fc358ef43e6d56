"""The networks that the tasks train, each an ``nn.Module`` with ``num_classes``."""

from .efficientnet import EfficientNetB0, EfficientNetB2
from .inception import InceptionV3
from .resnet import ResNet18
from .roberta import Roberta
from .shallow import ShallowCNN
from .vgg import VGG11

__all__ = [
    "VGG11",
    "EfficientNetB0",
    "EfficientNetB2",
    "InceptionV3",
    "ResNet18",
    "Roberta",
    "ShallowCNN",
]
