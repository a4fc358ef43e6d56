"""WikiText-103 as the hub lays it out, small, for whatever test needs its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

from datasets import Dataset

TEXT = [topic for _, topic in sorted(topics.items())]


def lines(title: str, text: str) -> list[str]:
    """An article's rows: its title between empty rows, a section, and its paragraphs."""
    paragraphs = [f" {' '.join(part.split())} \n" for part in text.split("\n\n") if part.strip()]
    return ["", f" = {title} = \n", "", *paragraphs[:2], "", " = = Section = = \n", "", *paragraphs]


def write_wikitext(root: Path, *, articles: Sequence[int] = (20, 4, 4), shards: int = 2) -> Path:
    """Writes ``wikitext-103-raw-v1/`` below ``root`` and returns it.

    Args:
        root: The folder.
        articles: How many the training, validation and test splits have.
        shards: Files that the training rows are cut into, wherever that may be.
    """
    folder = root / "wikitext-103-raw-v1"
    folder.mkdir(parents=True)
    start = 0
    for name, count, files in zip(
        ("train", "validation", "test"), articles, (shards, 1, 1), strict=True
    ):
        rows = []
        for number in range(start, start + count):
            rows += lines(f"Article {number}", TEXT[number % len(TEXT)])
        start += count
        for index in range(files):
            part = rows[len(rows) * index // files : len(rows) * (index + 1) // files]
            file = folder / f"{name}-{index:05}-of-{files:05}.parquet"
            Dataset.from_dict({"text": part}).to_parquet(str(file))
    return folder
