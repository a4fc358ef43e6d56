"""What the data modules of images have in common: everything but where the images come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lightning_opt.memory import available

from ._augmentation import Normalization, crop_and_flip
from ._pictures import PictureBatches, Pictures
from ._pixels import PixelBatches, Pixels
from ._sampling import evaluation_loader, training_loader

Sampling = Literal["without_replacement", "with_replacement"]
Pipeline = Literal["tensor", "torchvision"]

# The share of an accelerator's free memory that a data set may take: the rest is for training.
_SHARE = 0.25


class ImageData(LightningDataModule, ABC):
    """Images as bytes in memory, cropped, mirrored and normalized in whole batches.

    A data set adds :meth:`read_training` and :meth:`read_test`. The test set is read for ``test``
    and ``predict`` only.

    Args:
        mean, std: Of each channel, on a scale from 0 to 1: a batch is (image − mean) / std.
        batch_size: Training examples a step, of each process.
        evaluation_batch_size: Examples of the other batches; ``batch_size`` by default.
        crop_padding: Black pixels on each side before a training image is cropped at random.
        flip: Whether half of the training images are mirrored.
        sampling: Whether an epoch draws every training image once, or each independently of the
            others.
        pipeline: ``"tensor"``, or ``"torchvision"`` for its transforms image by image.
        num_workers: Processes that make batches; by default none for ``"tensor"``, whose batches
            are made sooner than handed over, and 2 for ``"torchvision"``.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        evaluation_batch_size: int | None = None,
        crop_padding: int = 0,
        flip: bool = False,
        sampling: Sampling = "without_replacement",
        pipeline: Pipeline = "tensor",
        num_workers: int | None = None,
    ) -> None:
        super().__init__()
        if num_workers is None:
            num_workers = 2 if pipeline == "torchvision" else 0
        self._check("batch_size", batch_size, 1)
        self._check("crop_padding", crop_padding, 0)
        self._check("num_workers", num_workers, 0)
        self._check_choice("sampling", sampling, ("without_replacement", "with_replacement"))
        self._check_choice("pipeline", pipeline, ("tensor", "torchvision"))
        self.batch_size = batch_size
        self._evaluation_batch_size = evaluation_batch_size or batch_size
        self._mean, self._std = mean, std
        self._crop_padding, self._flip = crop_padding, flip
        self._replacement = sampling == "with_replacement"
        self._pipeline = pipeline
        self._num_workers = num_workers
        self._parts: dict[str, Pictures] = {}

    @abstractmethod
    def read_training(self) -> tuple[Pictures, Pictures]:
        """The training and the validation images: :class:`Pixels` if the pipeline is "tensor"."""

    @abstractmethod
    def read_test(self) -> Pictures:
        """The test images, likewise."""

    def setup(self, stage: str | None = None) -> None:
        testing = stage in ("test", "predict")
        if not testing and "train" not in self._parts:
            self._parts["train"], self._parts["val"] = self.read_training()
        if (testing or stage is None) and "test" not in self._parts:
            self._parts["test"] = self.read_test()

    def train_dataloader(self) -> DataLoader[Any]:
        return training_loader(
            self,
            self._batches("train", augmented=True),
            self.batch_size,
            replacement=self._replacement,
            num_workers=self._num_workers,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._in_order("test")

    def analysis_dataloader(self) -> DataLoader[Any]:
        """The training images in a fixed order that mixes their classes, not augmented."""
        images = self._batches("train", augmented=False)
        return evaluation_loader(self, images, self.batch_size)

    def in_memory(self, images: Tensor, labels: Tensor, *rows: Tensor) -> list[Pixels]:
        """Parts of a set of images: on the accelerator that trains where they fit.

        Args:
            images: ``(all, channels, height, width)`` in uint8.
            labels: ``(all,)``.
            rows: The images of each part.
        """
        device = self._device(images.nbytes)
        images, labels = images.to(device), labels.to(device)
        return [Pixels(images, labels, part) for part in rows]

    def _device(self, size: int) -> torch.device:
        """Where so many bytes of images are kept."""
        trainer = self.trainer
        # Workers are other processes, which leave an accelerator alone.
        if trainer is not None and not self._num_workers and self._pipeline == "tensor":
            device = trainer.strategy.root_device
            if device.type == "cuda" and size <= _SHARE * available(device):
                return device
        return torch.device("cpu")

    def _in_order(self, part: str) -> DataLoader[Any]:
        return evaluation_loader(
            self,
            self._batches(part, augmented=False),
            self._evaluation_batch_size,
            num_workers=self._num_workers,
        )

    def _batches(self, part: str, *, augmented: bool) -> Dataset[tuple[Tensor, Tensor]]:
        images = self._parts[part]
        if self._pipeline == "torchvision":
            return PictureBatches(images, self._transform(images.size if augmented else None))
        assert isinstance(images, Pixels)
        crop = partial(crop_and_flip, padding=self._crop_padding, flip=self._flip)
        augment = crop if augmented and (self._crop_padding or self._flip) else None
        return PixelBatches(images, Normalization(self._mean, self._std), augment)

    def _transform(self, crop: tuple[int, int] | None) -> v2.Compose:
        """The transforms of an image, which first crop it at random to a size, if one is given."""
        steps: list[Any] = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        steps.append(v2.Normalize(self._mean, self._std))
        if crop is not None:
            flip = v2.RandomHorizontalFlip(0.5 if self._flip else 0.0)
            steps = [v2.RandomCrop(crop, padding=self._crop_padding), flip, *steps]
        return v2.Compose(steps)

    def _check(self, name: str, value: int, least: int) -> None:
        if value < least:
            raise ValueError(f"{type(self).__name__} needs {name} >= {least}, got {value}.")

    def _check_choice(self, name: str, value: str, known: Sequence[str]) -> None:
        if value not in known:
            raise ValueError(
                f"{type(self).__name__}'s {name} is {' or '.join(known)}, got {value}."
            )
