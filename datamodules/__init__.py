"""The data sets, one file each. ``Digits`` needs no network; the others download on first use."""

from .cifar100 import CIFAR100
from .digits import Digits

__all__ = ["CIFAR100", "Digits"]
