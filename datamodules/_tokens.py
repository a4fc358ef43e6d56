"""Tokens on disk: a file of integers, written as it is encoded and mapped into memory to be read.

Documents follow each other, each ended by a separator. Nothing is pickled, and neither writing nor
reading holds more than a few batches.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ._tokenizer import encoder, no_threads

_BATCH = 250_000  # characters: enough to drown what a call costs, little beside a core's caches

T = TypeVar("T")
R = TypeVar("R")


def type_of_ids(vocab_size: int) -> np.dtype[Any]:
    """The smallest type for ids below ``vocab_size``.

    >>> type_of_ids(50_265).name, type_of_ids(250_002).name
    ('uint16', 'uint32')
    """
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def write_tokens(
    path: Path,
    documents: Iterable[str],
    tokenizer: Any,
    *,
    separator: int,
    dtype: np.dtype[Any],
    title: str,
) -> int:
    """Encodes documents on all cores, in order, and returns the number of tokens written.

    Args:
        path: The file to write.
        documents: Their text; empty ones are left out.
        tokenizer: A tokenizer of transformers.
        separator: Id that ends each document.
        dtype: Type of the ids on disk.
        title: What the progress bar says.
    """
    encode_batch = encoder(tokenizer).encode_batch_fast

    def encode(texts: list[str]) -> tuple[np.ndarray, int]:
        ids: list[int] = []
        for encoding in encode_batch(texts, add_special_tokens=False):
            if found := encoding.ids:
                ids += found
                ids.append(separator)
        return np.array(ids, dtype=dtype), sum(map(len, texts))

    count = 0
    bar = tqdm(desc=title, unit=" characters", unit_scale=True, disable=None)
    with path.open("wb") as file, bar, no_threads():
        for ids, characters in _in_order(encode, _batches(documents), _cores()):
            file.write(ids.data)
            count += len(ids)
            bar.update(characters)
    return count


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= _BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Maps in threads, no further ahead of the reader than keeps them busy."""
    running: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > 2 * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # what Slurm and containers leave to this process
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
