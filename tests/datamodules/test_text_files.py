"""TextFiles: text of any format, with files or a seed for the splits."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
from datasets import Dataset

from lightning_opt.datamodules import TextFiles
from lightning_opt.errors import UsageError

TEXTS = [f"Document {number} of many, which all say something else." for number in range(2000)]


def module(root: Path, *files: str, **options) -> TextFiles:
    paths = [root / file for file in files]
    return TextFiles(paths, None, 16, 4, root=root / "data", vocab_size=300, **options)


def write(path: Path, texts: list[str], column: str = "text") -> Path:
    if path.suffix == ".parquet":
        Dataset.from_dict({column: texts}).to_parquet(str(path))
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(texts))
    else:
        path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


def documents(data: TextFiles) -> dict[str, list[str]]:
    return {split: list(data.documents(split)) for split in ("train", "val", "test")}


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_same_documents(tmp_path: Path, ending: str):
    write(tmp_path / f"a{ending}", TEXTS)
    found = documents(module(tmp_path, f"a{ending}"))
    assert sorted(chain(*found.values())) == sorted(TEXTS)
    assert found["train"] == [text for text in TEXTS if text in set(found["train"])]


def test_lines_of_text_belong_together_until_an_empty_one(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("one\r\ntwo\r\n\r\n\r\n\r\nthrée\n".encode())
    data = module(tmp_path, "a.txt", validation=[tmp_path / "a.txt"], test=[tmp_path / "a.txt"])
    assert [text.strip() for text in data.documents("train")] == ["one\ntwo", "thrée"]


def test_batches_come_from_all_files(tmp_path: Path):
    write(tmp_path / "a.jsonl", TEXTS[:1000])
    write(tmp_path / "b.parquet", TEXTS[1000:])
    data = module(tmp_path, "a.jsonl", "b.parquet")
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["input_ids"].shape == (4, 16)
    train = list(data.documents("train"))
    assert train[0] in TEXTS[:10] and train[-1] in TEXTS[-10:]


def test_a_folder_stands_for_its_files(tmp_path: Path):
    (tmp_path / "text/deeper").mkdir(parents=True)
    write(tmp_path / "text/b.txt", ["b"])
    write(tmp_path / "text/deeper/a.jsonl", ["a"])
    (tmp_path / "text/README.md").write_text("not of the corpus")
    data = module(tmp_path, "text")
    assert [path.name for path in data.files()] == ["b.txt", "a.jsonl"]


def test_tokens_below_the_folder_are_no_text(tmp_path: Path):
    write(tmp_path / "a.txt", TEXTS)
    for _ in range(2):
        data = TextFiles(tmp_path, None, 16, root=tmp_path, vocab_size=300)
        data.setup("fit")
        assert [path.name for path in data.files()] == ["a.txt"]


def test_splits_by_seed_are_a_partition_in_the_shares_asked_for(tmp_path: Path):
    write(tmp_path / "a.jsonl", TEXTS)
    found = documents(module(tmp_path, "a.jsonl", validation=0.2, test=0.1))
    assert sorted(chain(*found.values())) == sorted(TEXTS)
    counts = {split: len(texts) for split, texts in found.items()}
    for split, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        assert abs(counts[split] - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5
    assert documents(module(tmp_path, "a.jsonl", validation=0.2, test=0.1)) == found
    other = documents(module(tmp_path, "a.jsonl", validation=0.2, test=0.1, split_seed=1))
    assert len(set(other["val"]) & set(found["val"])) < 2 * 2000 * 0.2**2


def test_copies_of_a_document_are_in_one_split(tmp_path: Path):
    write(tmp_path / "a.jsonl", TEXTS + TEXTS[::-1])
    found = documents(module(tmp_path, "a.jsonl", validation=0.3, test=0.3))
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not set(found[one]) & set(found[other])


def test_files_for_validation_and_test_leave_all_of_train_to_training(tmp_path: Path):
    write(tmp_path / "a.jsonl", TEXTS[:100])
    write(tmp_path / "b.parquet", TEXTS[100:120])
    write(tmp_path / "c.txt", TEXTS[120:130])
    data = TextFiles(
        tmp_path / "a.jsonl",
        None,
        validation=tmp_path / "b.parquet",
        test=str(tmp_path / "c.txt"),
        root=tmp_path,
        vocab_size=300,
    )
    found = documents(data)
    assert found == {"train": TEXTS[:100], "val": TEXTS[100:120], "test": TEXTS[120:130]}
    assert [path.name for path in data.files()] == ["a.jsonl", "b.parquet", "c.txt"]


def test_one_split_of_files_and_one_by_seed(tmp_path: Path):
    write(tmp_path / "a.jsonl", TEXTS)
    write(tmp_path / "b.txt", ["other"])
    found = documents(module(tmp_path, "a.jsonl", validation=str(tmp_path / "b.txt"), test=0.25))
    assert found["val"] == ["other"]
    assert sorted(found["train"] + found["test"]) == sorted(TEXTS)
    assert 400 < len(found["test"]) < 600


def test_what_decides_the_documents_decides_the_tokens(tmp_path: Path):
    """Options that change the documents change the cache's key."""
    write(tmp_path / "a.jsonl", TEXTS)
    base = module(tmp_path, "a.jsonl").options()
    assert module(tmp_path, "a.jsonl").options() == base
    for options in (
        {"validation": 0.06},
        {"test": 0.06},
        {"split_seed": 1},
        {"text_column": "other"},
        {"validation": [tmp_path / "a.jsonl"]},
    ):
        assert module(tmp_path, "a.jsonl", **options).options() != base


def test_the_column_is_the_one_asked_for_and_empty_rows_are_left_out(tmp_path: Path):
    rows = [{"body": "a", "text": "x"}, {"body": None, "text": "x"}, {"body": "b", "text": "x"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = module(tmp_path, "a.jsonl", text_column="body")
    assert sorted(chain(*documents(data).values())) == ["a", "b"]


def test_mistakes_are_named(tmp_path: Path):
    write(tmp_path / "a.jsonl", TEXTS, column="body")
    with pytest.raises(UsageError, match=r"a\.jsonl has no column 'text', it has body: name one"):
        module(tmp_path, "a.jsonl").prepare_data()
    (tmp_path / "b.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(UsageError, match=r"'text' of .*b\.jsonl holds int, not text"):
        module(tmp_path, "b.jsonl").prepare_data()
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text": "b')
    with pytest.raises(UsageError, match=r"c\.jsonl cannot be read as jsonl, it may not be whole"):
        module(tmp_path, "c.jsonl").prepare_data()
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"d\.txt cannot be read as txt, .*utf-8"):
        module(tmp_path, "d.txt").prepare_data()
    with pytest.raises(
        UsageError, match=r"none\.txt is not there: name a file or folder of \.parq"
    ):
        module(tmp_path, "none.txt").prepare_data()
    (tmp_path / "e.pdf").write_bytes(b"")
    with pytest.raises(UsageError, match=r"e\.pdf has no text that can be read"):
        module(tmp_path, "e.pdf").prepare_data()


@pytest.mark.parametrize("shares", [(0.0, 0.1), (0.1, -0.1), (0.5, 0.5)])
def test_shares_out_of_range_are_named(shares: tuple[float, float]):
    validation, test = shares
    with pytest.raises(ValueError, match=f"validation={validation}, test={test}"):
        TextFiles("a.txt", validation=validation, test=test)
