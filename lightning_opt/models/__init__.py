"""The networks that the tasks train: of images, with ``num_classes``, and of text."""

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
