"""Tokenized corpora are built once, by one process, whole or not at all, and found by content."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from filelock import FileLock

from lightning_opt.datamodules import PythonDocs, TextDataModule, _token_cache
from lightning_opt.datamodules._tokenizer import train
from lightning_opt.errors import UsageError

TEXTS = [topics[name] for name in sorted(topics)][:12]


class Notes(TextDataModule):
    """Reads a file, and counts how often it does."""

    def __init__(self, root: Path, seed: int = 0, tokenizer: str | None = None, **options) -> None:
        size = options.pop("vocab_size", 300)
        super().__init__(root, tokenizer, vocab_size=size, block_size=16, batch_size=4, **options)
        self.seed = seed
        self.read = 0

    def files(self):
        return [self.root / "notes"]

    def options(self):
        return {"seed": self.seed}

    def documents(self, split):
        self.read += 1
        texts = (self.root / "notes").read_text().split("\f")
        return iter(texts[{"train": slice(4, None), "val": slice(2), "test": slice(2, 4)}[split]])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "notes").write_text("\f".join(TEXTS))
    return tmp_path


def ready(data: Notes) -> Notes:
    data.prepare_data()
    data.setup("fit")
    return data


def entries(root: Path) -> list[Path]:
    return sorted((root / "tokens").glob("notes-*"))


def first_ids(data: Notes) -> torch.Tensor:
    batch = next(iter(data.val_dataloader()))
    return torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])


def test_text_is_read_once(root: Path):
    first = ready(Notes(root))
    assert first.read == 4  # one more for the tokenizer
    again = ready(Notes(root))
    assert again.read == 0
    assert torch.equal(first_ids(again), first_ids(first))


def test_batches_say_what_the_text_says(root: Path):
    data = ready(Notes(root))
    ids = torch.cat([row[1:-1] for row in first_ids(data)])
    assert data.tokenizer.decode(ids) == (TEXTS[0] + "</s>" + TEXTS[1])[: len(
        data.tokenizer.decode(ids)
    )]  # fmt: skip


def test_the_tokenizer_is_trained_on_the_training_split_alone(root: Path):
    data = ready(Notes(root))
    assert data.tokenizer.get_vocab() == train(data.documents("train"), 300).get_vocab()
    assert data.tokenizer.get_vocab() != train(TEXTS, 300).get_vocab()


def test_another_block_size_takes_the_same_tokens(root: Path):
    ready(Notes(root))
    data = Notes(root)
    data.block_size = 50
    assert ready(data).read == 0
    assert first_ids(data).shape == (4, 50)


def test_changed_text_gives_other_tokens(root: Path):
    ready(Notes(root))
    changed = "\f".join(TEXTS).replace("e", "o")
    (root / "notes").write_text(changed)  # as many bytes
    data = ready(Notes(root))
    assert data.read == 4 and len(entries(root)) == 2
    assert data.tokenizer.decode(first_ids(data)[0][1:-1]) in changed


def test_a_file_that_is_only_touched_or_moved_is_not_tokenized_again(root: Path):
    ready(Notes(root))
    os.utime(root / "notes", (1, 1))
    assert ready(Notes(root)).read == 0
    shutil.copytree(root, root.with_name("moved"))
    assert ready(Notes(root.with_name("moved"))).read == 0


@pytest.mark.parametrize("options", [{"seed": 1}, {"vocab_size": 310}])
def test_other_options_give_other_tokens(root: Path, options):
    ready(Notes(root))
    assert ready(Notes(root, **options)).read == 4
    assert len(entries(root)) == 2
    assert ready(Notes(root)).read == 0


def test_tokenizers_of_a_folder_are_told_apart_by_content(root: Path):
    folder = root / "tokenizer"
    train(TEXTS, 320).save_pretrained(folder)
    assert ready(Notes(root, tokenizer=str(folder), vocab_size=320)).read == 3
    train(TEXTS[:3], 320).save_pretrained(folder)
    assert ready(Notes(root, tokenizer=str(folder), vocab_size=320)).read == 3
    assert ready(Notes(root, tokenizer=str(folder), vocab_size=320)).read == 0
    assert len(entries(root)) == 2


def test_a_tokenizer_of_another_size_is_refused(root: Path):
    train(TEXTS, 320).save_pretrained(root / "tokenizer")
    with pytest.raises(UsageError, match="has 320 tokens, vocab_size says 300: set it to 320"):
        Notes(root, tokenizer=str(root / "tokenizer")).prepare_data()


def test_a_name_is_asked_of_the_hub_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def hub(name: str):
        asked.append(name)
        return train(TEXTS, 320)

    monkeypatch.setattr(_token_cache, "load", hub)
    for _ in range(2):
        ready(Notes(root, tokenizer="some/name", vocab_size=320))
    assert asked == ["some/name"]


def test_a_warm_start_imports_nothing_that_tokenizes(tmp_path: Path):
    """And is quick: what it would import takes longer than all else that it does."""
    code = (
        "import sys\n"
        "from lightning_opt.datamodules import PythonDocs\n"
        "before = set(sys.modules)\n"
        "data = PythonDocs(vocab_size=300)\n"
        "data.prepare_data(); data.setup('fit'); next(iter(data.train_dataloader()))\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'datasets', 'tokenizers', 'transformers', 'huggingface_hub'}, new\n"
    )
    PythonDocs(vocab_size=300, root=tmp_path / "data").prepare_data()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=100)


def test_a_warm_start_needs_no_lock_and_writes_nothing(root: Path):
    ready(Notes(root))
    folders = [root / "tokens", root / "tokens/requests", entries(root)[0]]
    before = {path: path.stat().st_mtime_ns for path in folders}
    with FileLock(root / "tokens/.lock"):
        assert ready(Notes(root)).read == 0
    assert {path: path.stat().st_mtime_ns for path in folders} == before


def interrupted(root: Path, error: BaseException) -> None:
    class Broken(Notes):
        def documents(self, split):
            if split == "test":
                raise error
            return super().documents(split)

    Broken.__name__ = "Notes"
    Broken(root).prepare_data()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")])
def test_an_interrupted_build_leaves_nothing(root: Path, error: BaseException):
    with pytest.raises(type(error)):
        interrupted(root, error)
    assert [path.name for path in (root / "tokens").iterdir()] == [".lock"]
    assert ready(Notes(root)).read == 4


def test_what_killed_processes_left_is_removed(root: Path):
    (root / "tokens/.notes-0123.77.tmp/tokenizer").mkdir(parents=True)
    ready(Notes(root))
    assert not list((root / "tokens").glob(".*.tmp"))


def test_a_full_disk_is_named(root: Path):
    with pytest.raises(UsageError) as error:
        interrupted(root, OSError(errno.ENOSPC, "No space left on device"))
    assert "is full" in str(error.value) and "--data.root FOLDER" in str(error.value)
    assert not entries(root)
    with pytest.raises(OSError, match="something else"):
        interrupted(root, OSError(errno.EIO, "something else"))


def test_a_folder_that_cannot_be_written_to_is_named(root: Path):
    (root / "tokens").write_text("a file is in the way")
    with pytest.raises(UsageError, match=r"tokens cannot be written to .*--data\.root FOLDER"):
        Notes(root).prepare_data()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_truncated_tokens_are_named_with_the_way_out(root: Path, split: str):
    ready(Notes(root))
    (entry,) = entries(root)
    file = entry / f"{split}.tokens"
    size = file.stat().st_size
    os.truncate(file, size - 2)
    there = f"{split}.tokens should have {size} bytes, there is {size - 2} bytes"
    with pytest.raises(UsageError, match=f"{there}: delete .*{entry.name}"):
        Notes(root).setup("fit")
    shutil.rmtree(entry)
    assert ready(Notes(root)).read == 4


@pytest.mark.parametrize("content", ["", "{", "{}", '{"counts": 3}'])
def test_a_corrupt_description_is_named_with_the_way_out(root: Path, content: str):
    ready(Notes(root))
    (entry,) = entries(root)
    (entry / "tokens.json").write_text(content)
    with pytest.raises(UsageError, match=rf"cannot be read .*delete the folder .*{entry.name}"):
        Notes(root).setup("fit")


def test_tokens_that_are_gone_are_made_again(root: Path):
    ready(Notes(root))
    (entry,) = entries(root)
    (entry / "val.tokens").unlink()
    with pytest.raises(UsageError, match=r"val.tokens should have \d+ bytes, there is nothing"):
        Notes(root).setup("fit")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"entry": 3, "stamps": {}}'])
def test_a_corrupt_memory_only_costs_another_look(root: Path, content: str):
    ready(Notes(root))
    (request,) = (root / "tokens/requests").iterdir()
    whole = json.loads(request.read_text())
    request.write_text(content)
    assert ready(Notes(root)).read == 0
    assert json.loads(request.read_text()) == whole


def _prepare(root: Path, start, reads) -> None:
    data = Notes(root)
    start.wait()
    ready(data)
    reads.put(data.read)


def test_one_of_several_processes_builds(root: Path):
    context = multiprocessing.get_context("fork")
    start, reads = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_prepare, args=(root, start, reads)) for _ in range(3)]
    for process in processes:
        process.start()
    found = sorted(reads.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert found == [0, 0, 4]


def test_who_waits_says_so(root: Path, capsys: pytest.CaptureFixture[str]):
    context = multiprocessing.get_context("fork")
    held = context.Event()

    def hold() -> None:
        with FileLock(root / "tokens/.lock"):
            held.set()
            time.sleep(0.3)

    (root / "tokens").mkdir()
    process = context.Process(target=hold)
    process.start()
    assert held.wait(60)
    ready(Notes(root))
    process.join(60)
    assert f"Waiting for another process that prepares {root / 'tokens'}" in capsys.readouterr().out


def test_a_split_of_less_than_a_block_is_named(root: Path):
    data = Notes(root)
    data.block_size = 100_000
    data.setup("fit")
    with pytest.raises(
        UsageError, match=r"The val split of Notes has \d+ tokens, less than a block"
    ):
        data.val_dataloader()


def test_before_setup_there_are_no_tokens(root: Path):
    with pytest.raises(UsageError, match=r"Notes has no tokens yet: call setup\(\)"):
        Notes(root).train_dataloader()


def test_the_tokenizer_is_transformers_own(root: Path):
    data = ready(Notes(root))
    assert data.tokenizer is data.tokenizer
    assert (data.vocab_size, len(data.tokenizer), data.tokenizer.mask_token_id) == (300, 300, 299)
    assert data.tokenizer("a")["input_ids"][::2] == [0, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_size": 3}, "block_size >= 4, got 3"),
        ({"batch_size": 0}, "batch_size >= 1, got 0"),
        ({"num_workers": -1}, "num_workers >= 0, got -1"),
        ({"vocab_size": 260, "tokenizer": None}, "vocab_size >= 261, got 260"),
        ({"mask_probability": 0.0}, "mask_probability above 0 and below 1, got 0.0"),
        ({"mask_probability": 1.0}, "mask_probability above 0 and below 1, got 1.0"),
    ],
)
def test_options_out_of_range_are_named(options, words: str):
    class Empty(TextDataModule):
        def documents(self, split):
            return iter(())

    with pytest.raises(ValueError, match=f"Empty needs {words}"):
        Empty(**options)
