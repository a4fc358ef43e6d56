"""What the data modules of language have in common: from documents to masked blocks of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from lightning_opt.errors import UsageError

from ._blocks import MaskedBlocks
from ._masking import Masking
from ._sampling import evaluation_loader, training_loader
from ._token_cache import Split, TokenizedCorpus, tokenized
from ._tokenizer import LEAST_VOCABULARY


class TextDataModule(LightningDataModule, ABC):
    """A corpus for masked language modeling; a subclass says what its documents are.

    The text is tokenized once, on all cores, and kept in ``root/tokens``; from there it is mapped
    into memory. It is packed into blocks ``<s> … </s>`` that go on across documents, with ``</s>``
    between these, and masked as RoBERTa does it: anew each time for training, always the same for
    validation, test and analysis.

    Args:
        root: Folder of the corpus, if it is kept in files, and of the tokens.
        tokenizer: Name on the Hugging Face hub, a folder, or a ``tokenizer.json``. None trains a
            byte-level BPE on the training split.
        vocab_size: Size of that BPE; or of the tokenizer, which is checked.
        block_size: Tokens in a block, with ``<s>`` and ``</s>``.
        batch_size: Blocks a step.
        mask_probability: Share of the tokens that are predicted.
        mask_seed: What is masked for validation, test and analysis. Training follows the run's own
            seed (``seed_everything``).
        num_workers: Processes that make batches; without any, a batch of 32 blocks of 128 tokens
            takes less than a millisecond.

    Attributes:
        vocab_size: As above.
        tokenizer: That of transformers, after ``setup``.

    Raises:
        ValueError: an argument is out of range.
        UsageError: from ``prepare_data`` and ``setup``, which say what is missing or broken.

    Shape:
        A batch is ``{"input_ids": …, "labels": …}``, each ``(batch, block_size)`` in int64. Labels
        are the tokens to predict, and -100 elsewhere. Each block has at least one to predict.

    >>> class Counting(TextDataModule):
    ...     def documents(self, split):
    ...         return (f"{number} and {number + 1}" for number in range(400))
    >>> data = Counting("data", None, vocab_size=300, block_size=16, batch_size=8)
    >>> data.setup()
    >>> batch = next(iter(data.train_dataloader()))
    >>> batch["input_ids"].shape, batch["labels"].shape
    (torch.Size([8, 16]), torch.Size([8, 16]))
    """

    def __init__(
        self,
        root: str | Path = "data",
        tokenizer: str | None = "roberta-base",
        block_size: int = 128,
        batch_size: int = 32,
        *,
        vocab_size: int = 50_265,
        mask_probability: float = 0.15,
        mask_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("block_size", block_size, 4),  # <s>, two tokens of text, and </s>
            ("batch_size", batch_size, 1),
            ("vocab_size", vocab_size, LEAST_VOCABULARY if tokenizer is None else 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"{type(self).__name__} needs {name} >= {least}, got {value}.")
        if not 0 < mask_probability < 1:
            raise ValueError(
                f"{type(self).__name__} needs mask_probability above 0 and below 1, got "
                f"{mask_probability}."
            )
        self.root = Path(root)
        self.block_size = block_size
        self.batch_size = batch_size
        self.vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._mask_probability = mask_probability
        self._mask_seed = mask_seed
        self._num_workers = num_workers
        self._corpus: TokenizedCorpus | None = None

    @abstractmethod
    def documents(self, split: Split) -> Iterator[str]:
        """The documents of a split; called only where they are not tokenized yet."""

    def files(self) -> Sequence[Path]:
        """The files that the documents are read from. When one changes, so do the tokens."""
        return ()

    def options(self) -> Mapping[str, Any]:
        """What else decides the documents, such as a seed, as JSON has it."""
        return {}

    @property
    def tokenizer(self) -> Any:
        return self._tokens().tokenizer

    def prepare_data(self) -> None:
        self._tokenized()

    def setup(self, stage: str | None = None) -> None:
        if self._corpus is None:
            self._corpus = self._tokenized()

    def train_dataloader(self) -> DataLoader[Any]:
        return training_loader(
            self, self._blocks("train"), self.batch_size, num_workers=self._num_workers
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._in_order("test")

    def analysis_dataloader(self) -> DataLoader[Any]:
        """The training blocks in order, masked always the same: what minima are compared on."""
        return self._in_order("train")

    def _in_order(self, split: Split) -> DataLoader[Any]:
        return evaluation_loader(
            self,
            self._blocks(split),
            self.batch_size,
            seed=self._mask_seed,
            num_workers=self._num_workers,
        )

    def _blocks(self, split: Split) -> MaskedBlocks:
        corpus = self._tokens()
        blocks = MaskedBlocks(
            corpus.path(split),
            corpus.counts[split],
            np.dtype(corpus.dtype),
            block_size=self.block_size,
            begin=corpus.begin,
            separator=corpus.separator,
            masking=Masking(
                mask=corpus.mask,
                special=corpus.special,
                vocab_size=corpus.vocab_size,
                probability=self._mask_probability,
            ),
        )
        if not len(blocks):
            raise UsageError(
                f"The {split} split of {type(self).__name__} has {corpus.counts[split]} tokens, "
                f"less than a block: block_size={self.block_size} needs {self.block_size - 2}."
            )
        return blocks

    def _tokenized(self) -> TokenizedCorpus:
        return tokenized(self, self._tokenizer, self.vocab_size, self.root / "tokens")

    def _tokens(self) -> TokenizedCorpus:
        if self._corpus is None:
            raise UsageError(f"{type(self).__name__} has no tokens yet: call setup() first.")
        return self._corpus
