"""Text out of files, a batch of rows a time, through Hugging Face ``datasets``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_opt.errors import UsageError

# What reads a file of each ending. Lines of text that no empty line parts are one document.
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".parquet": ("parquet", {}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".txt": ("text", {"sample_by": "paragraph"}),
}
ENDINGS = tuple(_READERS)
_ROWS = 1_000


def rows(path: Path, column: str = "text") -> Iterator[str]:
    """The text of each row of a parquet or JSON-lines file, or each paragraph of a text file.

    Rows without a text are left out.

    Raises:
        UsageError: the file cannot be read as what its ending says, or has no such column of text.
    """
    from datasets import load_dataset

    reader, options = _READERS[path.suffix]
    with tempfile.TemporaryDirectory() as folder:  # for locks: nothing is copied when streaming
        try:
            table = load_dataset(
                reader,
                data_files=str(path),
                split="train",
                streaming=True,
                cache_dir=folder,
                **options,
            )
            for batch in table.with_format("arrow").iter(_ROWS):
                yield from _column(batch, column, path)
        except UsageError:
            raise
        except (ValueError, OSError) as error:  # pyarrow's and datasets' own are among them
            raise UsageError(
                f"{path.resolve()} cannot be read as {path.suffix[1:]}, it may not be whole "
                f"({error}): fetch or write it again."
            ) from error


def _column(batch: Any, column: str, path: Path) -> Iterator[str]:
    name = "text" if path.suffix == ".txt" else column
    if name not in batch.column_names:
        raise UsageError(
            f"{path.resolve()} has no column {name!r}, it has {', '.join(batch.column_names)}: "
            "name one of these (--data.text_column)."
        )
    for text in batch[name].to_pylist():
        if isinstance(text, str):
            yield text
        elif text is not None:
            raise UsageError(
                f"Column {name!r} of {path.resolve()} holds {type(text).__name__}, not text: name "
                "another (--data.text_column)."
            )
