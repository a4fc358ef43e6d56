"""Handwritten digits: 1,797 real images of 8 × 8 pixels, shipped inside scikit-learn.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
"""

from __future__ import annotations

import torch
from pytorch_lightning import LightningDataModule
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import BatchSampler, DataLoader, Sampler, SequentialSampler, TensorDataset

from ._sampling import shuffled

_EVALUATION_BATCH = 512
_WHITE = 16.0  # pixel values are integers from 0 to 16


class Digits(LightningDataModule):
    """The digits, split into training, validation and test sets by a seed, class by class.

    Args:
        batch_size: Training examples a step.
        validation: Share of the 1,797 images held out for validation.
        test: Share held out for testing.
        split_seed: Seed of the split. The order of the training examples follows the run's own
            seed (``seed_everything``) instead, so that runs of several seeds share one split.

    Raises:
        ValueError: a share or the batch size is out of range.

    Shape:
        A batch is images ``(batch, 1, 8, 8)`` in float32, from 0 to 1, and labels ``(batch,)``.

    >>> digits = Digits(batch_size=32)
    >>> digits.setup("fit")
    >>> images, labels = next(iter(digits.train_dataloader()))
    >>> images.shape, labels.shape
    (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """

    def __init__(
        self,
        batch_size: int = 64,
        *,
        validation: float = 0.2,
        test: float = 0.2,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"Digits needs batch_size >= 1, got {batch_size}.")
        if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
            raise ValueError(
                "Digits needs validation and test above 0 with a sum below 1, got "
                f"validation={validation}, test={test}."
            )
        self.batch_size = batch_size
        self._shares = {"val": validation, "test": test}
        self._split_seed = split_seed
        self._sets: dict[str, TensorDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        pixels, labels = load_digits(return_X_y=True)
        rest = range(len(labels))
        splits = {}
        for name, share in self._shares.items():
            rest, splits[name] = train_test_split(
                rest,
                test_size=round(share * len(labels)),
                stratify=labels[rest],
                random_state=self._split_seed,
            )
        splits["train"] = rest
        images = torch.tensor(pixels / _WHITE, dtype=torch.float32).view(-1, 1, 8, 8)
        targets = torch.tensor(labels)
        for name, indices in splits.items():
            chosen = torch.tensor(indices)
            self._sets[name] = TensorDataset(images[chosen], targets[chosen])

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        order = shuffled(self, len(self._sets["train"]))
        return self._loader("train", order, self.batch_size)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return self._in_order("test")

    def _in_order(self, name: str) -> DataLoader[tuple[torch.Tensor, ...]]:
        return self._loader(name, SequentialSampler(self._sets[name]), _EVALUATION_BATCH)

    def _loader(
        self, name: str, order: Sampler[int], batch_size: int
    ) -> DataLoader[tuple[torch.Tensor, ...]]:
        # The sampler yields whole batches of indices: one indexing a batch instead of one an image.
        batches = BatchSampler(order, batch_size, drop_last=False)
        return DataLoader(self._sets[name], sampler=batches, batch_size=None)
