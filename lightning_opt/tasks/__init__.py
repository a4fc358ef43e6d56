"""The LightningModules of the thesis: what is trained, whatever the network and the optimizer."""

from .image_classifier import ImageClassifier
from .masked_language_model import MaskedLanguageModel

__all__ = ["ImageClassifier", "MaskedLanguageModel"]
