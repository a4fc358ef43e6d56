"""The data sets, one file each. ``Digits`` and ``PythonDocs`` need no network."""

from ._text import TextDataModule
from .cifar10 import CIFAR10
from .cifar100 import CIFAR100
from .digits import Digits
from .image_folder import ImageFolder
from .python_docs import PythonDocs
from .text_files import TextFiles
from .wikitext103 import WikiText103

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Digits",
    "ImageFolder",
    "PythonDocs",
    "TextDataModule",
    "TextFiles",
    "WikiText103",
]
