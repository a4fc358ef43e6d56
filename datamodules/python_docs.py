"""The language reference inside every CPython: 465,000 characters of English, no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from lightning_opt.errors import UsageError

from ._text import TextDataModule
from ._token_cache import Split


class PythonDocs(TextDataModule):
    """What ``help()`` says about the language, in blocks of masked tokens.

    A document is a topic, such as ``help("lambda")``. Topics go to training, validation and test by
    a seed, so that no text is in two of them: in the seed's order to validation as long as they fit
    into its share, then to test, and the others to training.

    Args:
        vocab_size: Size of the byte-level BPE that is trained on the training topics; or of the
            tokenizer, which is checked.
        block_size: Tokens in a block, with ``<s>`` and ``</s>``.
        batch_size: Blocks a step.
        root: Folder that will hold ``tokens/``, what is made of the text.
        tokenizer: In place of the BPE: a name on the Hugging Face hub, a folder, or a
            ``tokenizer.json``.
        validation: Share of the characters held out for validation.
        test: Share held out for testing.
        split_seed: Seed of the split.
        mask_probability: Share of the tokens that are predicted.
        mask_seed: What is masked for validation, test and analysis.
        num_workers: Processes that make batches.

    Raises:
        ValueError: an argument is out of range.
        UsageError: this Python comes without its reference.

    Shape:
        As :class:`TextDataModule`.

    >>> docs = PythonDocs(vocab_size=1000, block_size=64)
    >>> docs.setup()
    >>> batch = next(iter(docs.val_dataloader()))
    >>> batch["input_ids"].shape
    torch.Size([32, 64])
    >>> docs.tokenizer.decode([0, 2, 999])
    '<s></s><mask>'
    """

    def __init__(
        self,
        vocab_size: int = 4_096,
        block_size: int = 128,
        batch_size: int = 32,
        *,
        root: str | Path = "data",
        tokenizer: str | None = None,
        validation: float = 0.1,
        test: float = 0.1,
        split_seed: int = 0,
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
        if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
            raise ValueError(
                "PythonDocs needs validation and test above 0 with a sum below 1, got "
                f"validation={validation}, test={test}."
            )
        self._shares: dict[Split, float] = {"val": validation, "test": test}
        self._split_seed = split_seed

    def options(self) -> Mapping[str, Any]:
        text = "\0".join(_topics())  # which change with the version of Python
        content = sha256(text.encode()).hexdigest()
        return {"topics": content, "shares": self._shares, "seed": self._split_seed}

    def documents(self, split: Split) -> Iterator[str]:
        return iter(self._split[split])

    @cached_property
    def _split(self) -> dict[Split, list[str]]:
        topics = _topics()
        generator = torch.Generator().manual_seed(self._split_seed)
        rest = [topics[i] for i in torch.randperm(len(topics), generator=generator).tolist()]
        characters = sum(map(len, topics))
        found: dict[Split, list[str]] = {}
        for name, share in self._shares.items():
            left = share * characters
            found[name] = []
            for topic in rest:
                if len(topic) <= left:
                    found[name].append(topic)
                    left -= len(topic)
            rest = [topic for topic in rest if topic not in found[name]]
        return {**found, "train": rest}


def _topics() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UsageError(
            "This Python comes without pydoc_data, its language reference: use one from "
            "python.org, conda or uv, or another corpus, such as TextFiles."
        ) from error
    # Some are there under two names ("if" and "else").
    return list(dict.fromkeys(topics[name] for name in sorted(topics)))
