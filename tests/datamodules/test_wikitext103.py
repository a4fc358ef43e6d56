"""WikiText103 on parquet as the hub lays it out, written here: no network."""

from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path

import huggingface_hub
import pytest
import torch
from datasets import Dataset

from lightning_opt.datamodules import WikiText103
from lightning_opt.datamodules.wikitext103 import articles
from lightning_opt.errors import UsageError
from wikitext import TEXT, lines, write_wikitext


def module(root: Path, **options) -> WikiText103:
    options = {"vocab_size": 400, "block_size": 32, "batch_size": 4, **options}
    return WikiText103(root, None, **options)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args, **where):
        if "local_dir" in where:
            raise ConnectionError("no route to host\nand more")
        raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)


def text(title: str, topic: str) -> str:
    """What an article's rows say, without the empty ones."""
    return "".join(line for line in lines(title, topic) if line).rstrip("\n")


def test_articles_are_read_across_shards(tmp_path: Path):
    write_wikitext(tmp_path, articles=(7, 2, 3), shards=3)
    data = module(tmp_path)
    found = {split: list(data.documents(split)) for split in ("train", "val", "test")}
    assert [len(documents) for documents in found.values()] == [7, 2, 3]
    expected = [text(f"Article {number}", TEXT[number]) for number in range(12)]
    assert list(chain(*found.values())) == expected


def test_batches_are_blocks_of_the_articles(tmp_path: Path, no_network):
    write_wikitext(tmp_path)
    data = module(tmp_path)
    data.prepare_data()
    data.setup("fit")
    stream = []
    for document in data.documents("val"):
        stream += [*data.tokenizer(document, add_special_tokens=False)["input_ids"], 2]
    rows = []
    for batch in data.val_dataloader():
        assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
        assert batch["input_ids"].shape[1] == 32
        ids = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
        assert (ids[:, 0] == 0).all() and (ids[:, -1] == 2).all()
        rows.append(ids[:, 1:-1].flatten())
    assert torch.cat(rows).tolist() == stream[: len(stream) // 30 * 30]


def test_training_is_masked_anew_and_the_rest_always_the_same(tmp_path: Path):
    write_wikitext(tmp_path)
    data = module(tmp_path)
    data.setup()

    def labels(name: str) -> torch.Tensor:
        return torch.cat([batch["labels"] for batch in getattr(data, f"{name}_dataloader")()])

    for name in ("val", "test", "analysis"):
        first = labels(name)
        torch.manual_seed(1)
        assert torch.equal(labels(name), first)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(0)
    first = next(iter(loader))["input_ids"]
    loader.sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader))["input_ids"], first)
    other = module(tmp_path, mask_seed=1)
    other.setup()
    assert not torch.equal(next(iter(other.val_dataloader()))["labels"], labels("val")[:4])


def test_analysis_sees_the_training_blocks_in_order(tmp_path: Path):
    write_wikitext(tmp_path)
    data = module(tmp_path)
    data.setup()
    batch = next(iter(data.analysis_dataloader()))
    ids = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    start = data.tokenizer.decode(ids[0, 1:-1])
    assert next(data.documents("train")).startswith(start)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], []),
        ([" no title \n", ""], [" no title "]),
        (["", " = A = \n", "", " a \n", " b \n", ""], [" = A = \n a \n b "]),
        # A title between empty lines begins an article; a section, or a formula in a text, not.
        (
            [" = A = \n", "", " = = S = = \n", "", " = x = \n", " b \n", "", " = B = \n", ""],
            [" = A = \n = = S = = \n = x = \n b ", " = B = "],
        ),
        (["", " = A = \n", "", " a \n", " = x = \n", ""], [" = A = \n a \n = x = "]),
        (["", " = 2 = 1 + 1 = \n", "", "", " = B = \n"], [" = 2 = 1 + 1 = ", " = B = "]),
    ],
)
def test_where_articles_begin(rows: list[str], expected: list[str]):
    assert list(articles(rows)) == expected


def test_missing_files_say_what_to_fetch_and_where_to_put_it(tmp_path: Path, no_network):
    with pytest.raises(UsageError) as error:
        WikiText103(tmp_path).prepare_data()
    message = str(error.value)
    for part in (
        f"{tmp_path / 'wikitext-103-raw-v1'} (train-*.parquet, validation-*.parquet",
        "fetched: no route to host",
        "huggingface.co/datasets/Salesforce/wikitext",
        "--data.root FOLDER",
    ):
        assert part in message
    assert "and more" not in message


def test_a_shard_that_is_missing_is_named(tmp_path: Path, no_network):
    folder = write_wikitext(tmp_path)
    (folder / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UsageError, match=r"\(train-00001-of-00002\.parquet missing\)"):
        module(tmp_path).prepare_data()


@pytest.mark.parametrize("damage", ["truncated", "other bytes"])
def test_a_corrupt_shard_is_named(tmp_path: Path, damage: str):
    shard = write_wikitext(tmp_path) / "train-00001-of-00002.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"x" * 5000)
    with pytest.raises(UsageError, match=r"train-00001-of-00002\.parquet cannot be read as parq"):
        module(tmp_path).prepare_data()
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [".lock"]


def test_parquet_without_text_is_named(tmp_path: Path):
    folder = write_wikitext(tmp_path)
    Dataset.from_dict({"words": ["a"]}).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    with pytest.raises(UsageError, match=r"test-00000.* has no column 'text', it has words"):
        module(tmp_path).prepare_data()


def test_files_are_downloaded_into_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub = write_wikitext(tmp_path / "hub")
    calls = []

    def download(repository, *, repo_type, allow_patterns, local_dir=None, local_files_only=False):
        calls.append((repository, repo_type, allow_patterns))
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        shutil.copytree(hub, Path(local_dir) / hub.name)
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    root = tmp_path / "data"
    module(root).prepare_data()
    assert calls == [("Salesforce/wikitext", "dataset", "wikitext-103-raw-v1/*")] * 2
    module(root).setup("fit")
    assert len(calls) == 2 and (root / "tokens").is_dir()


def test_files_in_the_hubs_own_cache_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the layout of that cache, which other programs share: nothing is fetched."""
    hub = tmp_path / "hub/datasets--Salesforce--wikitext"
    write_wikitext(hub / "snapshots/0123456789abcdef0123456789abcdef01234567")
    (hub / "refs").mkdir()
    (hub / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")
    real = huggingface_hub.snapshot_download

    def cached(*args, **where):
        assert where["local_files_only"]
        return real(*args, **where, cache_dir=tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    data = module(tmp_path / "data")
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["input_ids"].shape == (4, 32)
    assert not (tmp_path / "data/wikitext-103-raw-v1").exists()


def test_a_cache_of_the_hub_that_is_not_whole_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write_wikitext(tmp_path / "hub")
    (folder / "test-00000-of-00001.parquet").unlink()

    def part(*args, local_dir=None, **where):
        return str(local_dir or folder.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", part)
    with pytest.raises(UsageError, match=r"could not be fetched: the hub sent none"):
        module(tmp_path / "data").prepare_data()


def test_offline_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=r"could not be fetched: .*--data.root FOLDER"):
        WikiText103(tmp_path / "data").prepare_data()
