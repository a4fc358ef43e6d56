"""Tokens on disk, blocks of them, and the tokenizers that make them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from lightning_opt.datamodules import _tokens
from lightning_opt.datamodules._blocks import MaskedBlocks
from lightning_opt.datamodules._masking import Masking
from lightning_opt.datamodules._tokenizer import encoder, load, train, vocabulary
from lightning_opt.datamodules._tokens import type_of_ids, write_tokens
from lightning_opt.errors import UsageError

TEXTS = [topics[name] for name in sorted(topics)][:30]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train(TEXTS, 600)


def written(path: Path, texts, tokenizer: Any, dtype=np.uint16) -> np.ndarray:
    count = write_tokens(
        path / "tokens", texts, tokenizer, separator=2, dtype=np.dtype(dtype), title=""
    )
    found = np.fromfile(path / "tokens", dtype)
    assert len(found) == count
    return found


def test_tokens_are_those_of_the_tokenizer_each_document_ended(tmp_path: Path, tokenizer):
    expected = []
    for text in TEXTS:
        expected += [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]
    assert written(tmp_path, TEXTS, tokenizer).tolist() == expected


@pytest.mark.parametrize("threads", [1, 5])
def test_order_is_that_of_the_documents(tmp_path: Path, tokenizer, monkeypatch, threads: int):
    expected = written(tmp_path, TEXTS, tokenizer).tolist()
    monkeypatch.setattr(_tokens, "_BATCH", 5_000)
    monkeypatch.setattr(_tokens, "_cores", lambda: threads)
    assert written(tmp_path, iter(TEXTS), tokenizer).tolist() == expected


def test_empty_documents_leave_no_trace(tmp_path: Path, tokenizer):
    assert written(tmp_path, ["", "a", "", "b", ""], tokenizer).tolist()[1::2] == [2, 2]
    assert written(tmp_path, [], tokenizer).size == 0


def test_special_tokens_in_a_text_are_text(tmp_path: Path, tokenizer):
    ids = written(tmp_path, ["<s>a<mask>b</s>"], tokenizer)
    assert not set(ids[:-1].tolist()) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids[:-1]) == "<s>a<mask>b</s>"


def test_documents_are_read_no_further_ahead_than_threads_need(tmp_path: Path, tokenizer):
    """Reading ahead would hold the corpus in memory."""
    read = 0

    def source():
        nonlocal read
        for text in TEXTS * 10:
            read += 1
            yield [text]

    results = _tokens._in_order(lambda texts: texts, source(), 2)
    for count in range(1, 100):
        next(results)
        assert read <= count + 4
    results.close()


def test_an_error_in_a_thread_is_raised(tmp_path: Path, tokenizer):
    with pytest.raises(TypeError):
        written(tmp_path, ["a", 3], tokenizer)  # type: ignore[list-item]


def test_types_hold_their_vocabulary():
    assert [type_of_ids(2**16).name, type_of_ids(2**16 + 1).name] == ["uint16", "uint32"]


def test_the_trained_tokenizer_is_of_robertas_kind(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == 599 and vocabulary(tokenizer) == len(tokenizer) == 600
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 599]
    for text in ("Every byte: ¿ß 漢字 \x00 🙂", " spaces  and\n\n lines "):
        inner = tokenizer(text)["input_ids"]
        assert inner[0] == 0 and inner[-1] == 2 and 3 not in inner
        assert tokenizer.decode(inner, skip_special_tokens=True) == text


def test_training_a_tokenizer_is_deterministic(tokenizer):
    """Also in another process, whose hashes have other seeds."""
    code = (
        "from lightning_opt.datamodules._tokenizer import train\n"
        "from pydoc_data.topics import topics\n"
        "texts = [topics[name] for name in sorted(topics)][:30]\n"
        "print(train(texts, 600).backend_tokenizer.to_str())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(other.stdout) == json.loads(tokenizer.backend_tokenizer.to_str())


def test_a_vocabulary_that_the_text_cannot_fill_is_refused():
    with pytest.raises(UsageError, match=r"merges for 26[1-9] tokens, and vocab_size=5000"):
        train(["aaab aaab"], 5000)


def test_an_error_while_training_is_the_readers_own():
    def broken():
        yield "text"
        raise UsageError("not whole")

    with pytest.raises(UsageError, match="not whole"):
        train(broken(), 300)


def test_a_tokenizer_loads_from_its_folder_and_from_its_file(tmp_path: Path, tokenizer):
    tokenizer.backend_tokenizer.enable_truncation(5)  # as the files of a sentence encoder say
    tokenizer.save_pretrained(tmp_path)
    tokenizer.backend_tokenizer.no_truncation()
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        found = load(str(name))
        assert found.all_special_ids == tokenizer.all_special_ids
        assert (found.cls_token_id, found.sep_token_id, found.mask_token_id) == (0, 2, 599)
        assert encoder(found).encode(TEXTS[0]).ids == encoder(tokenizer).encode(TEXTS[0]).ids


def test_what_is_no_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"no tokenizer .*missing\.json: check --data\.tokenizer"):
        load(str(tmp_path / "missing.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UsageError, match=r"bad\.json is no tokenizer"):
        load(str(tmp_path / "bad.json"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="folder has no tokenizer that transformers can read"):
        load(str(tmp_path / "folder"))


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path):
    plain = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "a": 2}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel()
    plain.save(str(tmp_path / "plain.json"))
    with pytest.raises(UsageError, match="has no <mask> \\(mask_token\\)"):
        load(str(tmp_path / "plain.json"))


def test_a_name_without_a_network_says_what_to_fetch_and_where_to_put_it(monkeypatch):
    from transformers import AutoTokenizer

    def unreachable(name):
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(UsageError) as error:
        load("roberta-base")
    message = str(error.value)
    assert "We couldn't connect to the hub)" in message
    for part in ("tokenizer.json", "huggingface.co/roberta-base", "--data.tokenizer FOLDER"):
        assert part in message
    assert "--data.tokenizer null" in message


def blocks_of(folder: Path, tokens: list[int], block_size: int) -> MaskedBlocks:
    np.array(tokens, np.uint16).tofile(folder / "tokens")
    return MaskedBlocks(
        folder / "tokens",
        len(tokens),
        np.dtype(np.uint16),
        block_size=block_size,
        begin=0,
        separator=2,
        masking=Masking(mask=99, special=[0, 2, 99], vocab_size=100, probability=0.15),
    )


def original(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    found = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    return found.tolist()


def test_blocks_are_consecutive_and_framed(tmp_path: Path):
    blocks = blocks_of(tmp_path, [*range(10, 15), 2, *range(20, 25), 2, 30, 31], block_size=6)
    assert len(blocks) == 3  # two tokens at the end make no block
    draws = torch.tensor([[2, 7], [0, 8], [1, 9], [0, 10]])
    assert original(blocks[draws]) == [
        [0, 22, 23, 24, 2, 2],
        [0, 10, 11, 12, 13, 2],
        [0, 14, 2, 20, 21, 2],
        [0, 10, 11, 12, 13, 2],
    ]


def test_bits_decide_what_is_masked(tmp_path: Path):
    blocks = blocks_of(tmp_path, list(range(10, 90)), block_size=42)
    one, other, same = (blocks[torch.tensor([[1, bits]])]["labels"] for bits in (5, 6, 5))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_block_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(IndexError):
        blocks_of(tmp_path, list(range(10, 20)), block_size=6)[torch.tensor([[2, 0]])]


def test_pickled_blocks_take_their_file_along_by_name(tmp_path: Path):
    blocks = blocks_of(tmp_path, list(range(10, 90)) * 500, block_size=42)
    draws = torch.tensor([[3, 1], [4, 2]])
    batch = blocks[draws]
    content = pickle.dumps(blocks)
    assert len(content) < 5_000
    assert torch.equal(pickle.loads(content)[draws]["labels"], batch["labels"])


def test_tokenizers_starts_no_threads_of_its_own(tmp_path: Path, tokenizer, monkeypatch):
    """Those of tokenizers 0.22 make it warn in every process that is forked later."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    seen = []

    def texts():
        for text in TEXTS:
            seen.append(os.environ.get("TOKENIZERS_PARALLELISM"))
            yield text

    train(texts(), 600)
    written(tmp_path, texts(), tokenizer)
    assert seen == ["false"] * 2 * len(TEXTS)
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    written(tmp_path, texts(), tokenizer)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_workers_that_are_forked_after_tokenizing_say_nothing(tmp_path: Path):
    code = (
        "import os\n"
        "from lightning_opt.datamodules import PythonDocs\n"
        "data = PythonDocs(vocab_size=400, num_workers=2)\n"
        "data.setup()\n"
        "print(len(list(data.val_dataloader())), os.environ.get('TOKENIZERS_PARALLELISM'))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=100,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.split()[1] == "None"
