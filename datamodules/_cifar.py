"""What CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) have in common."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_opt.errors import UsageError

from ._cifar_files import Format, fetch, read
from ._images import ImageData, Pipeline, Sampling
from ._pictures import Pictures


class CIFAR(ImageData):
    """Reads one of the two sets, which says what :attr:`source`, :attr:`mean` and :attr:`std` are.

    Args:
        root: Folder that holds, or will hold, the set's own folder.
        batch_size: Examples a step.
        validation: Number of training images held out for validation.
        crop_padding: Black pixels added on each side before the random crop.
        flip: Whether half of the training images are mirrored.
        sampling: ``"without_replacement"`` or ``"with_replacement"``.
        pipeline: ``"tensor"`` or ``"torchvision"``.
        split_seed: Seed of the split.
        num_workers: Processes that make batches.
    """

    source: Format
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 128,
        *,
        validation: int = 5_000,
        crop_padding: int = 4,
        flip: bool = True,
        sampling: Sampling = "without_replacement",
        pipeline: Pipeline = "tensor",
        split_seed: int = 0,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(
            mean=self.mean,
            std=self.std,
            batch_size=batch_size,
            crop_padding=crop_padding,
            flip=flip,
            sampling=sampling,
            pipeline=pipeline,
            num_workers=num_workers,
        )
        self._check("validation", validation, 1)
        self.root = Path(root).expanduser()
        self._validation = validation
        self._split_seed = split_seed

    def prepare_data(self) -> None:
        stage = None if self.trainer is None else self.trainer.state.fn
        if stage not in ("test", "predict"):
            fetch(self.source, self.root, train=True)
        if stage in ("test", "predict", None):
            fetch(self.source, self.root, train=False)

    def read_training(self) -> tuple[Pictures, Pictures]:
        images, labels = read(self.source, self.root, train=True)
        if self._validation >= len(images):
            raise UsageError(
                f"{type(self).__name__} has {len(images)} training images; "
                f"validation={self._validation} leaves none to train on."
            )
        generator = torch.Generator().manual_seed(self._split_seed)
        order = torch.randperm(len(images), generator=generator)
        held_out, rest = order[: self._validation], order[self._validation :]
        train, val = self.in_memory(images, labels, rest, held_out)
        return train, val

    def read_test(self) -> Pictures:
        images, labels = read(self.source, self.root, train=False)
        (test,) = self.in_memory(images, labels, torch.arange(len(images)))
        return test
