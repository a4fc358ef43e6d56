"""Tokenized corpora: built once, found again by content.

A folder of tokens holds

    NAME-KEY/train.tokens, val.tokens, test.tokens    flat integers, uint16 or uint32
    NAME-KEY/tokens.json                              how many, of which type, and the special ids
    NAME-KEY/tokenizer/                               the tokenizer, for transformers
    requests/…json                                    what was asked for, and the KEY that it had

KEY is a hash of the content of the corpus' files, of its options, and of the tokenizer. What had
which content is remembered with the size and the time of modification of the files, so that a warm
start reads neither text nor tokenizer, and asks no network. Deleting any of it is safe: it is made
again.

One process builds at a time, under a temporary name; others wait for it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from lightning_opt.errors import UsageError
from lightning_opt.files import write_json

from ._tokenizer import load, train, vocabulary
from ._tokens import type_of_ids, write_tokens

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_FORMAT = 1  # to be raised where the same files and options give other tokens than before


class Corpus(Protocol):
    """Text in documents, in three splits."""

    def files(self) -> Sequence[Path]:
        """The files that the documents are read from, in an order that their content decides."""

    def options(self) -> Mapping[str, Any]:
        """What else decides the documents, as JSON has it."""

    def documents(self, split: Split) -> Iterator[str]:
        """The documents of a split, one after the other."""


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus on disk.

    Args:
        folder: Where it is.
        counts: Tokens in each split.
        dtype: Name of the ids' type.
        vocab_size: Ids are below it.
        begin, separator, mask: Ids of ``<s>``, ``</s>`` and ``<mask>``.
        special: All ids that are neither predicted nor drawn.
    """

    folder: Path
    counts: Mapping[str, int]
    dtype: str
    vocab_size: int
    begin: int
    separator: int
    mask: int
    special: Sequence[int]

    def path(self, split: Split) -> Path:
        return self.folder / f"{split}.tokens"

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder / "tokenizer")


def tokenized(
    corpus: Corpus, tokenizer: str | None, vocab_size: int, folder: Path
) -> TokenizedCorpus:
    """Finds the tokens of a corpus, or makes them.

    Args:
        corpus: The corpus; its class' name becomes part of a folder's.
        tokenizer: Name or path; None trains a byte-level BPE on the training split.
        vocab_size: Of the BPE, or what the tokenizer has.
        folder: Holds tokens of any number of corpora.

    Raises:
        UsageError: tokens on disk are not whole, the tokenizer does not fit, or the disk is full.
    """
    files = list(corpus.files())
    stamps = {str(path.resolve()): _stamp(path) for path in [*files, *_files_of(tokenizer)]}
    asked = [_FORMAT, type(corpus).__name__, corpus.options(), tokenizer, vocab_size, list(stamps)]
    request = folder / "requests" / f"{_digest(asked)}.json"
    if (found := _remembered(request, stamps)) is None:
        with alone(folder):
            # Another process may have built it while this one waited.
            if (found := _remembered(request, stamps)) is None:
                found = _made(corpus, files, tokenizer, vocab_size, folder)
                write_json(request, {"stamps": stamps, "entry": found.name})
    return _opened(found)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time fetch or build in a folder; the others say that they wait."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tqdm.write(f"Waiting for another process that prepares {folder.resolve()} ...")
            lock.acquire()
    except OSError as error:
        raise UsageError(
            f"{folder.resolve()} cannot be written to ({error.strerror}): name another folder "
            "(--data.root FOLDER)."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _remembered(request: Path, stamps: Mapping[str, Sequence[int]]) -> Path | None:
    try:
        content = json.loads(request.read_text(encoding="utf-8"))
        entry = request.parents[1] / content["entry"]
        known = content["stamps"] == {name: list(stamp) for name, stamp in stamps.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if known and entry.is_dir() else None


def _made(
    corpus: Corpus, files: Sequence[Path], name: str | None, vocab_size: int, folder: Path
) -> Path:
    """The folder of a corpus' tokens, which are built unless they are there."""
    tokenizer = None if name is None else load(name)
    if tokenizer is not None and (found := vocabulary(tokenizer)) != vocab_size:
        raise UsageError(
            f"The tokenizer {name} has {found} tokens, vocab_size says {vocab_size}: set it to "
            f"{found} (--data.vocab_size), and the network's with it."
        )
    contents = [_hash_of(path) for path in files]
    language = vocab_size if tokenizer is None else _fingerprint(tokenizer)
    corpus_name = type(corpus).__name__
    key = _digest([_FORMAT, corpus_name, corpus.options(), contents, language])
    entry = folder / f"{corpus_name.lower()}-{key[:16]}"
    if not entry.is_dir():
        for leftover in folder.glob(".*.tmp"):  # of killed processes: no other builds here now
            shutil.rmtree(leftover, ignore_errors=True)
        _build(corpus, tokenizer, vocab_size, entry)
    return entry


def _build(corpus: Corpus, tokenizer: Any, vocab_size: int, entry: Path) -> None:
    temporary = entry.with_name(f".{entry.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        if tokenizer is None:
            texts = corpus.documents("train")
            bar = tqdm(texts, "Training a tokenizer", unit=" documents", disable=None)
            tokenizer = train(bar, vocab_size)
        tokenizer.save_pretrained(temporary / "tokenizer")
        _write_splits(corpus, tokenizer, vocab_size, temporary)
        temporary.rename(entry)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UsageError(
            f"The disk of {entry.parent.resolve()} is full; tokens take about half as many bytes "
            "as their text. Free some space, or name a folder on another disk (--data.root FOLDER)."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_splits(corpus: Corpus, tokenizer: Any, vocab_size: int, folder: Path) -> None:
    dtype = type_of_ids(vocab_size)
    special = {
        "begin": tokenizer.cls_token_id,
        "separator": tokenizer.sep_token_id,
        "mask": tokenizer.mask_token_id,
        "special": sorted(tokenizer.all_special_ids),
    }
    counts = {}
    for split in SPLITS:
        counts[split] = write_tokens(
            folder / f"{split}.tokens",
            corpus.documents(split),
            tokenizer,
            separator=special["separator"],
            dtype=dtype,
            title=f"Tokenizing {split}",
        )
    content = {"counts": counts, "dtype": dtype.name, "vocab_size": vocab_size, **special}
    write_json(folder / "tokens.json", content)


def _opened(entry: Path) -> TokenizedCorpus:
    way_out = f"delete the folder {entry.resolve()}, and it is made again."
    try:
        content = json.loads((entry / "tokens.json").read_text(encoding="utf-8"))
        found = TokenizedCorpus(entry, **content)
        dtype = np.dtype(found.dtype)
        sizes = {found.path(split): dtype.itemsize * found.counts[split] for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"The tokens' tokens.json cannot be read ({error}): {way_out}") from error
    for path, size in sizes.items():
        if not path.is_file() or path.stat().st_size != size:
            there = f"{path.stat().st_size} bytes" if path.is_file() else "nothing"
            raise UsageError(f"{path.name} should have {size} bytes, there is {there}: {way_out}")
    return found


def _files_of(tokenizer: str | None) -> list[Path]:
    """The files that a tokenizer given by path is read from; none where it is a name."""
    path = Path(tokenizer or "/")
    if tokenizer is None or path.is_file():
        return [] if tokenizer is None else [path]
    return sorted(file for file in path.glob("*") if file.suffix in (".json", ".txt", ".model"))


def _fingerprint(tokenizer: Any) -> list[Any]:
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
    return [
        _digest(tokenizer.backend_tokenizer.to_str()),
        special,
        sorted(tokenizer.all_special_ids),
    ]


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
