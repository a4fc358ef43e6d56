"""The LightningModules of the thesis: what is trained, whatever the network and the optimizer."""

from .image_classifier import ImageClassifier

__all__ = ["ImageClassifier"]
