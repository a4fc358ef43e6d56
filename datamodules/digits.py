"""Handwritten digits: 1,797 real images of 8 × 8 pixels, shipped inside scikit-learn.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ._images import ImageData, Sampling
from ._pictures import Pictures

_EVALUATION_BATCH = 512
_WHITE = 16  # pixel values are integers from 0 to 16


class Digits(ImageData):
    """The digits, split into training, validation and test sets by a seed, class by class.

    Args:
        batch_size: Training examples a step, of each process.
        validation: Share of the 1,797 images held out for validation.
        test: Share held out for testing.
        sampling: ``"without_replacement"`` goes through the training images once an epoch in
            random order, ``"with_replacement"`` draws as many independently of each other.
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
        sampling: Sampling = "without_replacement",
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            mean=[0.0],
            std=[_WHITE / 255],
            batch_size=batch_size,
            evaluation_batch_size=_EVALUATION_BATCH,
            sampling=sampling,
        )
        if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
            raise ValueError(
                "Digits needs validation and test above 0 with a sum below 1, got "
                f"validation={validation}, test={test}."
            )
        self._shares = {"val": validation, "test": test}
        self._split_seed = split_seed

    def read_training(self) -> tuple[Pictures, Pictures]:
        parts = self._read()
        return parts["train"], parts["val"]

    def read_test(self) -> Pictures:
        return self._read()["test"]

    def _read(self) -> dict[str, Pictures]:
        pixels, labels = load_digits(return_X_y=True)
        rest = range(len(labels))
        rows = {}
        for name, share in self._shares.items():
            rest, rows[name] = train_test_split(
                rest,
                test_size=round(share * len(labels)),
                stratify=labels[rest],
                random_state=self._split_seed,
            )
        rows["train"] = rest
        images = torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 8, 8)
        parts = self.in_memory(images, torch.tensor(labels), *map(torch.tensor, rows.values()))
        return dict(zip(rows, parts, strict=True))
