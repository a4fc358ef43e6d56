"""Tokenizing beside the tokenizers library, and the first batch of a large corpus."""

from __future__ import annotations

import argparse
import json
import os
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer

from _measuring import Results, in_new_process, timed
from _tables import print_table, say, yes
from lightning_opt.datamodules import TextFiles, WikiText103

VOCABULARY = 16_384
OURS, PEER, FAST = "lightning_opt, from parquet to blocks", "encode_batch", "encode_batch_fast"
TOKENS = 12_000_000, 120_000_000  # WikiText-103 has as many as the second


def tokenize(options: argparse.Namespace) -> None:
    """Of Python's standard library, which is on every machine, the sources as documents."""
    disable_progress_bars()
    documents = _sources()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        Dataset.from_dict({"text": documents}).to_parquet(str(root / "text.parquet"))
        say("training a tokenizer")
        trained = TextFiles(root / "text.parquet", None, vocab_size=VOCABULARY, root=root)
        trained.prepare_data()
        (saved,) = (root / "tokens").glob("textfiles-*/tokenizer")
        tokenizer = Tokenizer.from_file(str(saved / "tokenizer.json"))

        def ours() -> None:
            with tempfile.TemporaryDirectory(dir=root) as cache:
                TextFiles(
                    root / "text.parquet", str(saved), vocab_size=VOCABULARY, root=cache
                ).prepare_data()

        measures: dict[str, Callable[[], Any]] = {
            OURS: ours,
            PEER: lambda: tokenizer.encode_batch(documents),
            FAST: lambda: tokenizer.encode_batch_fast(documents),
        }
        results = Results(
            {name: lambda f=function: timed(f) for name, function in measures.items()},
            options.repeats,
        )
    characters = sum(map(len, documents)) / 1e6
    results.show(
        f"{len(documents):,} documents, {characters:.0f} million characters",
        results.seconds,
        PEER,
        [(OURS, 1.2, PEER)],
    )


def first_batch(options: argparse.Namespace) -> None:
    """Corpora of two sizes, cached: what the same start takes, and how much memory."""
    disable_progress_bars()
    rows = []
    for count in TOKENS:
        with tempfile.TemporaryDirectory() as folder:
            say(f"a corpus of {count:,} tokens")
            _write_corpus(Path(folder), count)
            found = [in_new_process(_first_batch, folder) for _ in range(options.repeats)]
        seconds, memory = (sorted(values)[len(values) // 2] for values in zip(*found, strict=True))
        rows.append(
            [f"{count:,}", f"{seconds:.3f} s", f"{memory:.0f} MB", "≤ 1 s", yes(seconds <= 1)]
        )
    print_table(
        "From a data module's arguments to its first batch, after imports, tokens not in memory",
        ["tokens", "time", "more memory", "to reach", "reached"],
        rows,
    )


def _sources() -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    return [path.read_text(encoding="utf-8", errors="ignore") for path in files]


def _write_corpus(root: Path, count: int) -> None:
    """WikiText103's files and tokens, of which those for training are made up."""
    folder = root / "wikitext-103-raw-v1"
    folder.mkdir()
    for name, text in zip(("train", "validation", "test"), _sources()[:3], strict=True):
        rows = Dataset.from_dict({"text": text.splitlines(keepends=True)})
        rows.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))
    _module(root).prepare_data()
    (entry,) = (root / "tokens").glob("wikitext103-*")
    generator = np.random.default_rng(0)
    with (entry / "train.tokens").open("wb") as file:
        file.write(generator.integers(4, 299, count, dtype=np.uint16).data)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    content = json.loads((entry / "tokens.json").read_text())
    content["counts"]["train"] = count
    (entry / "tokens.json").write_text(json.dumps(content))


def _module(root: Path) -> WikiText103:
    return WikiText103(root, None, vocab_size=300)


def _first_batch(folder: str) -> tuple[float, float]:
    """Seconds, and the megabytes that the process has grown by at most."""
    data = _module(Path(folder))

    def start() -> None:
        data.prepare_data()
        data.setup("fit")
        next(iter(data.train_dataloader()))

    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak that imports have left
    before = _memory("VmRSS")
    seconds = timed(start)
    return seconds, _memory("VmHWM") - before


def _memory(name: str) -> float:
    """Megabytes of this process, as Linux counts them: now (VmRSS), or at most (VmHWM)."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6
