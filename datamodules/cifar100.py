"""CIFAR-100 (Krizhevsky, 2009): 60,000 color images of 32 × 32 pixels in 100 classes."""

from __future__ import annotations

from torchvision import datasets

from ._cifar import CIFAR


class CIFAR100(CIFAR):
    """CIFAR-100 through torchvision, with the thesis' random crop and horizontal flip.

    Downloaded on first use, with torchvision's checksums. The validation set is held out of the
    training images by a seed and is never augmented; the test set is touched by ``test`` and
    ``predict`` only. All images lie in memory as bytes, on the accelerator that trains if it is a
    CUDA device with room for them, and batches are augmented and normalized whole. How an image is
    augmented follows from the run's seed (``seed_everything``), the epoch and its place in it.

    Args:
        root: Folder that holds, or will hold, ``cifar-100-python/``.
        batch_size: Examples a step, of each process.
        validation: Number of training images held out for validation.
        crop_padding: Black pixels added on each side before the random crop; the thesis does not
            name it.
        flip: Whether half of the training images, at random, are mirrored.
        sampling: ``"without_replacement"`` goes through the training images once an epoch in
            random order, ``"with_replacement"`` draws as many independently of each other.
        pipeline: ``"tensor"``, or ``"torchvision"`` for torchvision's transforms, image by image:
            the same distribution, from other random numbers, and far slower.
        split_seed: Seed of the split. The order of the training examples follows the run's own
            seed.
        num_workers: Processes that make batches; by default none for ``"tensor"``, which does not
            need any and with them keeps the images off the accelerator, and 2 for
            ``"torchvision"``.

    Attributes:
        mean, std: Of each channel over the training images, on a scale from 0 to 1: a batch is
            (image − mean) / std, so that ``images * std + mean`` can be looked at.

    Raises:
        ValueError: an argument is out of range.
        UsageError: the data are not whole in ``root`` and cannot be downloaded.

    Shape:
        A batch is images ``(batch, 3, 32, 32)`` in float32, normalized by channel, and labels
        ``(batch,)``.

    >>> CIFAR100(root="data", batch_size=256).batch_size
    256
    """

    source = datasets.CIFAR100
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
