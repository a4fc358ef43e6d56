"""CIFAR-100 (Krizhevsky, 2009): 60,000 colour images of 32 × 32 pixels in 100 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets
from torchvision.transforms import v2

from ._sampling import shuffled

# Mean and standard deviation of each channel over the training images.
_MEAN = (0.5071, 0.4865, 0.4409)
_STD = (0.2673, 0.2564, 0.2762)


class CIFAR100(LightningDataModule):
    """CIFAR-100 through torchvision, with the thesis' random crop and horizontal flip.

    Downloaded on first use, with torchvision's checksums. The validation set is held out of the
    training images by a seed and is never augmented; the test set is touched by ``test`` only.

    Args:
        root: Folder that holds, or will hold, ``cifar-100-python/``.
        batch_size: Examples a step.
        validation: Number of training images held out for validation.
        crop_padding: Pixels added on each side before the random crop; the thesis does not name it.
        split_seed: Seed of the split. The order of the training examples follows the run's own
            seed (``seed_everything``).
        num_workers: Processes that load and augment images.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: the data are not in ``root`` and cannot be downloaded.

    Shape:
        A batch is images ``(batch, 3, 32, 32)`` in float32, normalized by channel, and labels
        ``(batch,)``.

    >>> CIFAR100(root="data", batch_size=256).batch_size
    256
    """

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 128,
        *,
        validation: int = 5_000,
        crop_padding: int = 4,
        split_seed: int = 0,
        num_workers: int = 2,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("validation", validation, 1),
            ("crop_padding", crop_padding, 0),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"CIFAR100 needs {name} >= {least}, got {value}.")
        self.root = Path(root)
        self.batch_size = batch_size
        self._validation = validation
        self._split_seed = split_seed
        self._num_workers = num_workers
        to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
        self._plain = v2.Compose(to_float)
        self._augmented = v2.Compose(
            [v2.RandomCrop(32, padding=crop_padding), v2.RandomHorizontalFlip(), *to_float]
        )
        self._train: Dataset[Any] | None = None
        self._val: Dataset[Any] | None = None
        self._test: Dataset[Any] | None = None

    def prepare_data(self) -> None:
        try:
            datasets.CIFAR100(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise RuntimeError(
                f"CIFAR-100 is not whole in {self.root.resolve()} and could not be downloaded "
                f"({error}). Download cifar-100-python.tar.gz with a browser, put it into that "
                "folder, and run again; or name the folder that has it: --data.root FOLDER."
            ) from error

    def setup(self, stage: str | None = None) -> None:
        if stage in ("test", "predict"):
            self._test = datasets.CIFAR100(self.root, train=False, transform=self._plain)
            return
        augmented = datasets.CIFAR100(self.root, train=True, transform=self._augmented)
        plain = datasets.CIFAR100(self.root, train=True, transform=self._plain)
        if self._validation >= len(plain):
            raise ValueError(
                f"CIFAR100 has {len(plain)} training images; validation={self._validation} leaves "
                "none to train on."
            )
        generator = torch.Generator().manual_seed(self._split_seed)
        order = torch.randperm(len(plain), generator=generator).tolist()
        self._val = Subset(plain, order[: self._validation])
        self._train = Subset(augmented, order[self._validation :])

    def train_dataloader(self) -> DataLoader[Any]:
        assert self._train is not None
        return DataLoader(
            self._train,
            self.batch_size,
            sampler=shuffled(self, len(self._train)),  # type: ignore[arg-type]
            # Not persistent: new workers draw their seeds from the run's random state, so that a
            # run that resumes augments as the uninterrupted one would.
            num_workers=self._num_workers,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._in_order(self._val)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._in_order(self._test)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._in_order(self._test)

    def _in_order(self, images: Dataset[Any] | None) -> DataLoader[Any]:
        assert images is not None
        return DataLoader(images, self.batch_size, num_workers=self._num_workers)
