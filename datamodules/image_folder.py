"""Any images in folders, one a class, as ``torchvision.datasets.ImageFolder`` has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from lightning_opt.errors import UsageError
from lightning_opt.memory import available

from ._decoding import decoded, picture
from ._images import ImageData, Pipeline, Sampling
from ._pictures import Pictures

# An image file and its label.
File = tuple[Path, int]


class ImageFolder(ImageData):
    """Images in ``root/train/``, ``root/val/`` and ``root/test/``, each with a folder for a class.

    Without ``val/``, validation images are held out of the training images by a seed. Without any
    of the three, the classes are the folders in ``root``, and test images are held out first.

    Each image is scaled until its shorter side has ``image_size`` pixels, and the middle is cut
    out. All are decoded once, into a file of bytes that is mapped into memory, and kept on the
    accelerator that trains if it is a CUDA device with room for them. The test images are touched
    by ``test`` and ``predict`` only.

    Args:
        root: The folder.
        image_size: Height and width of an image in pixels.
        batch_size: Examples a step, of each process.
        validation: Share of the training images held out for validation where there is no ``val/``.
        test: Share of all images held out for testing where there is no ``train/``.
        crop_padding: Black pixels added on each side before the random crop.
        flip: Whether half of the training images, at random, are mirrored: not for characters.
        mean, std: Of red, green and blue, on a scale from 0 to 1: a batch is (image − mean) / std,
            so that ``images * std + mean`` can be looked at. The defaults are ImageNet's.
        sampling: ``"without_replacement"`` goes through the training images once an epoch in
            random order, ``"with_replacement"`` draws as many independently of each other.
        pipeline: ``"tensor"``, or ``"torchvision"``, which reads and transforms the files one by
            one: the same distribution without a place for all images, and far slower.
        split_seed: Seed of the splits. The order of the training examples follows the run's own
            seed (``seed_everything``).
        num_workers: Processes that make batches; by default none for ``"tensor"``, which does not
            need any and with them keeps the images off the accelerator, and 2 for
            ``"torchvision"``.
        cache: Folder for the decoded images, which may be deleted.

    Raises:
        ValueError: an argument is out of range.
        UsageError: the folders are not laid out as above, an image is broken, or all do not fit
            into memory; the message says which and what to do.

    Shape:
        A batch is images ``(batch, 3, image_size, image_size)`` in float32, normalized by channel,
        and labels ``(batch,)``, the places of the classes in :attr:`classes`.

    >>> ImageFolder("photographs", image_size=64).batch_size
    128
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int,
        batch_size: int = 128,
        *,
        validation: float = 0.1,
        test: float = 0.1,
        crop_padding: int = 4,
        flip: bool = True,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        sampling: Sampling = "without_replacement",
        pipeline: Pipeline = "tensor",
        split_seed: int = 0,
        num_workers: int | None = None,
        cache: str | Path = "data/images",
    ) -> None:
        super().__init__(
            mean=mean,
            std=std,
            batch_size=batch_size,
            crop_padding=crop_padding,
            flip=flip,
            sampling=sampling,
            pipeline=pipeline,
            num_workers=num_workers,
        )
        self._check("image_size", image_size, 1)
        if not (0 < validation < 1 and 0 < test < 1):
            raise ValueError(
                "ImageFolder needs validation and test between 0 and 1, got "
                f"validation={validation}, test={test}."
            )
        if not (len(mean) == len(std) == 3 and min(std) > 0):
            raise ValueError(
                "ImageFolder needs three numbers as mean and three above 0 as std, got "
                f"mean={mean}, std={std}."
            )
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self._shares = {"val": validation, "test": test}
        self._split_seed = split_seed
        self._cache = Path(cache).expanduser()

    @property
    def classes(self) -> list[str]:
        """The names of the classes: of the folders that hold the training images."""
        try:
            names: list[str] = find_classes(self._training_folder())[0]
            return names
        except FileNotFoundError as error:
            raise UsageError(f"ImageFolder: {error} Each class needs a folder there.") from error

    def read_training(self) -> tuple[Pictures, Pictures]:
        files = self._files(self._training_folder())
        if not self._has("train"):
            files = _chosen(files, self._split(files, "test")[0])
        if not self._has("val"):
            train, val = self._load(files, *self._split(files, "val"))
            return train, val
        # In random order, of which an analysis takes the first.
        (train,) = self._load(files, self._shuffled(files))
        return train, self._whole(self._files(self.root / "val"))

    def read_test(self) -> Pictures:
        if self._has("train") and not self._has("test"):
            raise UsageError(
                f"ImageFolder has no test images: there is a folder {self.root / 'train'}, but no "
                f"{self.root / 'test'}."
            )
        if self._has("test"):
            return self._whole(self._files(self.root / "test"))
        files = self._files(self.root)
        return self._whole(_chosen(files, self._split(files, "test")[1]))

    def _has(self, part: str) -> bool:
        return (self.root / part).is_dir()

    def _training_folder(self) -> Path:
        if not self.root.is_dir():
            raise UsageError(f"ImageFolder: there is no folder {self.root.resolve()}.")
        if self._has("train"):
            return self.root / "train"
        if others := [part for part in ("val", "test") if self._has(part)]:
            raise UsageError(
                f"ImageFolder: {self.root} has {' and '.join(others)} but no train: put the "
                "folders of the training images into it."
            )
        return self.root

    def _files(self, folder: Path) -> list[File]:
        """The image files in the folders of the training images' classes."""
        labels = {name: label for label, name in enumerate(self.classes)}
        try:
            strangers = sorted(set(find_classes(folder)[0]) - set(labels))
            partial = folder != self._training_folder()
            found = make_dataset(folder, labels, IMG_EXTENSIONS, allow_empty=partial)
        except FileNotFoundError as error:
            raise UsageError(f"ImageFolder, in {folder}: {error}") from error
        if strangers:
            raise UsageError(
                f"ImageFolder: {folder} has classes without training images: "
                f"{', '.join(strangers)}."
            )
        if not found:
            raise UsageError(f"ImageFolder: there are no images in {folder}.")
        return [(Path(path), label) for path, label in found]

    def _shuffled(self, files: Sequence[File]) -> Tensor:
        generator = torch.Generator().manual_seed(self._split_seed)
        return torch.randperm(len(files), generator=generator)

    def _split(self, files: Sequence[File], part: str) -> tuple[Tensor, Tensor]:
        """The rest, and the share of the files that is held out for a part."""
        count = round(self._shares[part] * len(files))
        if not 0 < count < len(files):
            raise UsageError(
                f"ImageFolder: {self._shares[part]} of {len(files)} images in {self.root} makes "
                f"{count} for {part} and {len(files) - count} for the rest."
            )
        order = self._shuffled(files)
        return order[count:], order[:count]

    def _whole(self, files: Sequence[File]) -> Pictures:
        (part,) = self._load(files, torch.arange(len(files)))
        return part

    def _load(self, files: Sequence[File], *rows: Tensor) -> Sequence[Pictures]:
        if self._pipeline == "torchvision":
            return [_Files(_chosen(files, part), self.image_size) for part in rows]
        size = self.image_size
        needed, free = len(files) * 3 * size**2, available(torch.device("cpu"))
        if needed > free:
            raise UsageError(
                f"ImageFolder: {len(files)} images of {size} × {size} pixels take "
                f"{needed / 2**30:.1f} GiB of memory, where {free / 2**30:.1f} GiB are: choose "
                "a smaller image_size, or pipeline=torchvision, which reads the files one by one."
            )
        images = decoded(self.root, [path for path, _ in files], size, self._cache)
        return self.in_memory(images, torch.tensor([label for _, label in files]), *rows)


class _Files:
    """Image files, read one by one."""

    def __init__(self, files: Sequence[File], size: int) -> None:
        self._files = files
        self.size = (size, size)

    def __len__(self) -> int:
        return len(self._files)

    def picture(self, index: int) -> tuple[Any, int]:
        path, label = self._files[index]
        return picture(path, self.size[0]), label


def _chosen(files: Sequence[File], rows: Tensor) -> list[File]:
    return [files[row] for row in rows.tolist()]
