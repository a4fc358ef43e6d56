"""Tokenizers of masked language models: by name or path, or trained on the text.

The one trained is RoBERTa's kind: byte-level byte-pair encoding (Radford et al., 2019), which knows
every text, with ``<s>``, ``<pad>``, ``</s>`` and ``<unk>`` as ids 0 to 3, and ``<mask>`` last.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_opt.errors import UsageError

if TYPE_CHECKING:  # what a cached corpus does without
    from tokenizers import Tokenizer

_NAMES = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
_FIRST = ["<s>", "<pad>", "</s>", "<unk>"]
LEAST_VOCABULARY = 256 + len(_FIRST) + 1  # every byte, and <mask>


def load(name: str) -> Any:
    """A tokenizer of transformers, with the special tokens that masking needs.

    Args:
        name: A name on the Hugging Face hub, a folder that has a tokenizer, or a
            ``tokenizer.json``, whose special tokens go by RoBERTa's names.

    Raises:
        UsageError: there is none, it cannot be fetched, or it has no ``<mask>``, no token that
            begins a sequence, or none that ends one.
    """
    from transformers import AutoTokenizer

    path = Path(name)
    if path.suffix == ".json":
        tokenizer = _from_file(path)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # the hub's, transformers', and those of the network below
            raise UsageError(_unavailable(path, error)) from error
    _check(tokenizer, name)
    return tokenizer


def train(documents: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE of ``vocab_size`` tokens, the same for the same documents.

    Raises:
        UsageError: the documents have fewer pairs worth merging.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        special_tokens=_FIRST,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with no_threads():
        bpe.train_from_iterator(documents, trainer)
    bpe.add_special_tokens(["<mask>"])
    if (found := bpe.get_vocab_size()) < vocab_size:
        raise UsageError(
            f"The training text has merges for {found} tokens, and vocab_size={vocab_size} asks "
            f"for more: set vocab_size to {found} or less (--data.vocab_size), and the network's "
            "with it."
        )
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return _wrapped(tokenizer_object=bpe)


def vocabulary(tokenizer: Any) -> int:
    """What the ids of a tokenizer are below."""
    return int(max(tokenizer.get_vocab().values())) + 1


def encoder(tokenizer: Any) -> Tokenizer:
    """A copy of what encodes inside of a tokenizer, for text alone.

    Special tokens come from packing only: where a text itself says ``<mask>``, that is six
    characters of it.
    """
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.encode_special_tokens = True
    copy.no_truncation()
    copy.no_padding()
    return copy


@contextmanager
def no_threads() -> Iterator[None]:
    """Keeps tokenizers from starting its own threads.

    Once it has, it prints a warning in each process that is forked later, such as the workers of a
    data loader. Threads of Python's share its work as well, since it releases the GIL.
    """
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _from_file(path: Path) -> Any:
    from tokenizers import Tokenizer

    if not path.is_file():
        raise UsageError(f"There is no tokenizer {path.resolve()}: check --data.tokenizer.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers has no type for it
        raise UsageError(f"{path.resolve()} is no tokenizer of tokenizers: {error}") from error
    known = tokenizer.get_vocab()
    return _wrapped(
        {kind: name for kind, name in _NAMES.items() if name in known}, tokenizer_object=tokenizer
    )


def _wrapped(names: dict[str, str] = _NAMES, **options: Any) -> Any:
    import transformers

    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(**options, **names, clean_up_tokenization_spaces=False)


def _check(tokenizer: Any, name: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(f"The tokenizer {name} is not of the tokenizers library: choose another.")
    for kind in ("mask", "cls", "sep"):
        if getattr(tokenizer, f"{kind}_token_id") is None:
            raise UsageError(
                f"The tokenizer {name} has no {_NAMES[f'{kind}_token']} ({kind}_token), which a "
                "masked language model needs: choose that of one, such as roberta-base."
            )


def _unavailable(path: Path, error: Exception) -> str:
    what = str(error).strip().splitlines() or [type(error).__name__]
    if path.exists():
        return f"{path.resolve()} has no tokenizer that transformers can read: {what[0]}"
    return (
        f"There is no tokenizer {path} here, and none could be fetched from the Hugging Face hub "
        f"({what[0]}). Fetch tokenizer.json, tokenizer_config.json and config.json of "
        f"huggingface.co/{path} into a folder where there is a network and name that folder "
        "(--data.tokenizer FOLDER), or train one on the training text: --data.tokenizer null."
    )
