"""PythonDocs: a split by topic, and training that resumes in the middle of its only epoch."""

from __future__ import annotations

import multiprocessing
import os
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything

from lightning_opt.datamodules import PythonDocs, python_docs
from lightning_opt.errors import UsageError

SPLITS = ("train", "val", "test")


def documents(**options) -> dict[str, list[str]]:
    data = PythonDocs(**options)
    return {split: list(data.documents(split)) for split in SPLITS}


def test_topics_are_split_without_copies():
    found = documents()
    together = list(chain(*found.values()))
    assert len(together) == len(set(together))
    assert set(together) == set(topics.values())


def test_shares_are_of_characters_and_hold():
    found = documents(validation=0.2, test=0.1)
    total = len("".join(set(topics.values())))
    for split, share in (("val", 0.2), ("test", 0.1)):
        length = sum(map(len, found[split]))
        assert share * total - 1_000 < length <= share * total


def test_split_depends_on_its_own_seed_only():
    torch.manual_seed(1)
    first = documents()
    torch.manual_seed(2)
    assert documents() == first
    assert documents(split_seed=1)["val"] != first["val"]
    options = [PythonDocs(split_seed=seed, test=test).options() for seed, test in
               ((0, 0.1), (1, 0.1), (0, 0.2))]  # fmt: skip
    assert options[0] != options[1] != options[2] != options[0]


def test_another_python_has_other_topics_and_other_tokens(monkeypatch: pytest.MonkeyPatch):
    before = PythonDocs().options()
    monkeypatch.setattr(python_docs, "_topics", lambda: ["one", "two"])
    assert PythonDocs().options() != before


def test_a_python_without_its_reference_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(UsageError, match="without pydoc_data"):
        PythonDocs().prepare_data()


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.1), (0.1, 0.0), (0.6, 0.4)])
def test_shares_out_of_range_are_named(validation: float, test: float):
    with pytest.raises(ValueError, match=f"validation={validation}, test={test}"):
        PythonDocs(validation=validation, test=test)


class Watcher(LightningModule):
    """Keeps what it is trained and validated on, a batch an entry."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[torch.Tensor]] = {"train": [], "val": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(torch.stack([batch["input_ids"], batch["labels"]]))
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(torch.stack([batch["input_ids"], batch["labels"]]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAfter(Callback):
    """Saves a checkpoint after a number of steps, while data loaders' workers are further."""

    def __init__(self, steps: int, path: Path) -> None:
        self._steps, self._path = steps, path

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self._steps:
            trainer.save_checkpoint(self._path)


def fit(root: Path, checkpoint: Path | None = None, workers: int = 0, **options):
    seed_everything(3)
    watcher = Watcher()
    data = PythonDocs(400, 32, 64, root=root / "data", num_workers=workers)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(watcher, data, ckpt_path=checkpoint)
    return watcher.seen, data, trainer


def test_an_epoch_sees_every_block_once(tmp_path: Path):
    seen, data, _ = fit(tmp_path)
    ids, labels = torch.cat(seen["train"], dim=1)
    original = torch.where(labels == -100, ids, labels)
    in_order = [
        torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
        for batch in data.analysis_dataloader()
    ]
    assert sorted(original.tolist()) == sorted(torch.cat(in_order).tolist())
    assert original.tolist() != torch.cat(in_order).tolist()


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0), (2, 2)])
def test_a_run_resumes_in_the_middle_of_its_only_epoch(tmp_path: Path, before: int, after: int):
    whole, _, _ = fit(tmp_path)
    checkpoint = tmp_path / "middle.ckpt"
    first, _, _ = fit(tmp_path, workers=before, max_steps=10, callbacks=[SaveAfter(7, checkpoint)])
    second, _, trainer = fit(tmp_path, checkpoint, workers=after)
    assert len(whole["train"]) == trainer.global_step
    seen = first["train"][:7] + second["train"]
    assert len(seen) == len(whole["train"])
    assert all(torch.equal(one, other) for one, other in zip(seen, whole["train"], strict=True))
    assert all(map(torch.equal, second["val"], whole["val"]))


def _rank(folder: Path, rank: int, port: int) -> None:
    os.environ.update(
        {
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "TORCHELASTIC_RUN_ID": "test",
        }
    )
    torch.set_num_threads(1)
    seen, data, _ = fit(folder, strategy="ddp", devices=2)
    torch.save((seen, len(data._blocks("train"))), folder / f"rank-{rank}.pt")
    os._exit(0)  # gloo's threads may abort an interpreter that ends in order


@pytest.mark.slow
def test_two_processes_build_once_and_share_the_blocks(tmp_path: Path):
    alone, _, _ = fit(tmp_path / "alone")
    context = multiprocessing.get_context("spawn")
    port = 29_000 + os.getpid() % 1_000
    processes = [context.Process(target=_rank, args=(tmp_path, r, port)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        assert process.exitcode == 0
    (first, size), (second, _) = (torch.load(tmp_path / f"rank-{r}.pt") for r in range(2))
    assert [len(list((tmp_path / "data/tokens").glob("pythondocs-*")))] == [1]

    def rows(*seen: dict[str, list[torch.Tensor]], split: str) -> list[list[list[int]]]:
        return [r.tolist() for part in seen for r in torch.cat(part[split], dim=1).unbind(1)]

    # Validation: each block once. Training: the same blocks and masks, one repeated if odd.
    assert sorted(rows(first, second, split="val")) == sorted(rows(alone, split="val"))
    together, single = rows(first, second, split="train"), rows(alone, split="train")
    assert len(together) == size + size % 2
    assert {str(row) for row in together} == {str(row) for row in single}
