"""Any text on disk: plain, parquet or JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lightning_opt.errors import UsageError

from ._text import TextDataModule
from ._text_reading import ENDINGS, rows
from ._token_cache import Split

Paths = str | Path | Sequence[str | Path]


class TextFiles(TextDataModule):
    """Text of one's own, in blocks of masked tokens.

    A document is a row of a parquet or JSON-lines file, or what lies between empty lines of a text
    file. Where there are no files of their own for validation or test, a document goes there by a
    hash of a seed and its text, so that documents that are there twice are never in two splits.

    Args:
        train: A file, a folder, or several. Of a folder, all files below it that end in
            ``.parquet``, ``.jsonl``, ``.json`` (of lines) or ``.txt``.
        tokenizer: Name on the Hugging Face hub, a folder, or a ``tokenizer.json``. None trains a
            byte-level BPE on the training split.
        block_size: Tokens in a block, with ``<s>`` and ``</s>``.
        batch_size: Blocks a step.
        validation: Files as ``train``, or the share of its documents held out for validation.
        test: Files, or the share held out for testing.
        text_column: Of parquet and JSON lines.
        root: Folder that will hold ``tokens/``, what is made of the text.
        split_seed: Seed of the split.
        vocab_size: Size of the BPE that is trained; or of the tokenizer, which is checked.
        mask_probability: Share of the tokens that are predicted.
        mask_seed: What is masked for validation, test and analysis.
        num_workers: Processes that make batches.

    Raises:
        ValueError: an argument is out of range.
        UsageError: a file is not there, is not whole, or has no such column.

    Shape:
        As :class:`TextDataModule`.

    >>> from pydoc_data.topics import topics
    >>> _ = Path("mine.txt").write_text("\\n\\n".join(topics.values()))
    >>> data = TextFiles("mine.txt", tokenizer=None, vocab_size=500)
    >>> data.setup()
    >>> next(iter(data.test_dataloader()))["input_ids"].shape
    torch.Size([32, 128])
    """

    def __init__(
        self,
        train: Paths,
        tokenizer: str | None = "roberta-base",
        block_size: int = 128,
        batch_size: int = 32,
        *,
        validation: float | Paths = 0.05,
        test: float | Paths = 0.05,
        text_column: str = "text",
        root: str | Path = "data",
        split_seed: int = 0,
        vocab_size: int = 50_265,
        mask_probability: float = 0.15,
        mask_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            root,
            tokenizer,
            block_size,
            batch_size,
            vocab_size=vocab_size,
            mask_probability=mask_probability,
            mask_seed=mask_seed,
            num_workers=num_workers,
        )
        self._column = text_column
        self._split_seed = split_seed
        self._shares: dict[Split, float] = {}
        self._paths: dict[Split, Paths] = {"train": train}
        given: dict[Split, float | Paths] = {"val": validation, "test": test}
        for split, value in given.items():
            if isinstance(value, int | float):
                self._shares[split] = value
            else:
                self._paths[split] = value
        shares = self._shares.values()
        if any(share <= 0 for share in shares) or sum(shares) >= 1:
            raise ValueError(
                "TextFiles needs validation and test to be files or shares above 0, with a sum "
                f"below 1, got validation={validation}, test={test}."
            )

    def files(self) -> Sequence[Path]:
        return [path for split in self._paths for path in self._files(split)]

    def options(self) -> Mapping[str, Any]:
        return {
            "endings": {
                split: [path.suffix for path in self._files(split)] for split in self._paths
            },
            "column": self._column,
            "shares": self._shares,
            "seed": self._split_seed,
        }

    def documents(self, split: Split) -> Iterator[str]:
        origin = split if split in self._paths else "train"
        for path in self._files(origin):
            for text in rows(path, self._column):
                if origin != "train" or self._split_of(text) == split:
                    yield text

    def _files(self, split: Split) -> list[Path]:
        given = self._paths[split]
        several = [given] if isinstance(given, str | Path) else given
        return [file for path in several for file in _readable(Path(path), self.root / "tokens")]

    def _split_of(self, text: str) -> Split:
        key = self._split_seed.to_bytes(8, "little", signed=True)
        digest = blake2b(text.encode(errors="replace"), digest_size=8, key=key).digest()
        number = int.from_bytes(digest, "little") / 2**64
        for split, share in self._shares.items():
            if number < share:
                return split
            number -= share
        return "train"


def _readable(path: Path, tokens: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in ENDINGS)
        found = [file for file in files if tokens not in file.parents]
    else:
        found = [path] if path.suffix in ENDINGS and path.is_file() else []
    if not found:
        there = "has no text that can be read" if path.exists() else "is not there"
        raise UsageError(
            f"{path.resolve()} {there}: name a file or folder of {', '.join(ENDINGS)}."
        )
    return found
