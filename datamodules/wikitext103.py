"""WikiText-103 (Merity et al., 1609.07843): 28,475 articles of Wikipedia, 540 MB, raw."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

from lightning_opt.errors import UsageError

from ._text import TextDataModule
from ._text_reading import rows
from ._token_cache import Split, alone

_REPOSITORY, _CONFIG = "Salesforce/wikitext", "wikitext-103-raw-v1"
_NAMES: dict[Split, str] = {"train": "train", "val": "validation", "test": "test"}
_TITLE = re.compile(r"= (?!= ).*\S =")


class WikiText103(TextDataModule):
    """WikiText-103, raw, in blocks of masked tokens.

    Fetched from the Hugging Face hub on first use, unless ``root`` or the hub's own cache has it.
    The validation and test articles are those of the authors. A document is an article.

    Args:
        root: Folder that holds, or will hold, ``wikitext-103-raw-v1/`` with the parquet files of
            the hub, and ``tokens/`` with what is made of them.
        tokenizer: Name on the Hugging Face hub, a folder, or a ``tokenizer.json``. None trains a
            byte-level BPE on the training articles.
        block_size: Tokens in a block, with ``<s>`` and ``</s>``.
        batch_size: Blocks a step.
        vocab_size: Size of the BPE that is trained; or of the tokenizer, which is checked.
        mask_probability: Share of the tokens that are predicted.
        mask_seed: What is masked for validation, test and analysis.
        num_workers: Processes that make batches.

    Raises:
        ValueError: an argument is out of range.
        UsageError: from ``prepare_data`` and ``setup``, which say what is missing or broken.

    Shape:
        As :class:`TextDataModule`.

    >>> WikiText103(root="data", batch_size=16).vocab_size
    50265
    """

    def files(self) -> Sequence[Path]:
        own = self.root / _CONFIG
        if _missing(own):
            with alone(self.root):
                # Another process may have fetched them while this one waited.
                return _shards(_fetched(self.root) if _missing(own) else own)
        return _shards(own)

    def documents(self, split: Split) -> Iterator[str]:
        shards = (path for path in self.files() if path.name.startswith(f"{_NAMES[split]}-"))
        return articles(chain.from_iterable(map(rows, shards)))


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Splits the lines of WikiText into articles, without the empty ones.

    An article begins at a line `` = Title = `` between empty ones; its sections have more signs of
    equality.

    >>> list(articles(["", " = A = \\n", "", " = = B = = \\n", "", " text \\n", "", " = C = \\n"]))
    [' = A = \\n = = B = = \\n text ', ' = C = ']
    """
    article: list[str] = []
    before = ""
    for line, after in pairwise(chain(lines, [""])):
        if _TITLE.fullmatch(line.strip()) and article and not before.strip() + after.strip():
            yield "\n".join(article)
            article = []
        if line.strip():
            article.append(line.rstrip("\n"))
        before = line
    if article:
        yield "\n".join(article)


def _shards(folder: Path) -> list[Path]:
    return [path for name in _NAMES.values() for path in sorted(folder.glob(f"{name}-*.parquet"))]


def _missing(folder: Path) -> list[str]:
    """What lacks of the files that the hub has: each split's name says of how many they are."""
    missing = []
    for name in _NAMES.values():
        found = {path.name for path in folder.glob(f"{name}-*.parquet")}
        numbers = [re.fullmatch(rf"{name}-\d{{5}}-of-(\d{{5}})\.parquet", file) for file in found]
        count = max([int(number[1]) for number in numbers if number], default=0)
        wanted = [f"{name}-{i:05}-of-{count:05}.parquet" for i in range(count)]
        missing += (
            [file for file in wanted if file not in found] if count else [f"{name}-*.parquet"]
        )
    return missing


def _fetched(root: Path) -> Path:
    """The folder that has the files: the hub's own cache, or else ``root``."""
    from huggingface_hub import snapshot_download

    download = partial(
        snapshot_download, _REPOSITORY, repo_type="dataset", allow_patterns=f"{_CONFIG}/*"
    )
    try:
        cached = Path(download(local_files_only=True)) / _CONFIG
        if not _missing(cached):
            return cached
    except FileNotFoundError:
        pass
    try:
        fetched = Path(download(local_dir=root)) / _CONFIG
    except Exception as error:  # the hub's, and those of the network below
        raise UsageError(_unavailable(root, str(error))) from error
    if _missing(fetched):
        raise UsageError(_unavailable(root, "the hub sent none (is HF_HUB_OFFLINE set?)."))
    return fetched


def _unavailable(root: Path, why: str) -> str:
    folder = root / _CONFIG
    reason = (why.strip().splitlines() or ["no reason given"])[0]
    return (
        f"WikiText-103 is not whole in {folder.resolve()} ({', '.join(_missing(folder))} missing) "
        f"and could not be fetched: {reason} Fetch the folder {_CONFIG} of "
        f"huggingface.co/datasets/{_REPOSITORY} where there is a network, put it there, and run "
        "again; or name the folder that holds it: --data.root FOLDER."
    )
