"""CIFAR-10 (Krizhevsky, 2009): 60,000 color images of 32 × 32 pixels in 10 classes."""

from __future__ import annotations

from torchvision import datasets

from ._cifar import CIFAR


class CIFAR10(CIFAR):
    """CIFAR-10 in ``root/cifar-10-batches-py/``, with all that :class:`CIFAR100` has.

    Args:
        root, batch_size, validation, crop_padding, flip, sampling, pipeline, split_seed,
        num_workers: As :class:`CIFAR100`'s.

    >>> CIFAR10(root="data", batch_size=256).batch_size
    256
    """

    source = datasets.CIFAR10
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
