"""Draws: a function of seed and epoch, shared out over processes, continued where they stopped."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_opt.datamodules._sampling import (
    EvaluationDraws,
    TrainingDraws,
    evaluation_loader,
    training_loader,
)
from lightning_opt.errors import UsageError

SIZE = 23


class Echo(Dataset[Tensor]):
    """Gives back what it is asked for."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, draws: Tensor) -> Tensor:
        return draws


class Data(LightningDataModule):
    def __init__(self, workers: int = 0) -> None:
        super().__init__()
        self.workers = workers

    def train_dataloader(self) -> Any:
        return training_loader(self, Echo(), 4, num_workers=self.workers)

    def val_dataloader(self) -> Any:
        return evaluation_loader(self, Echo(), 4)


def on_rank(rank: int, ranks: int) -> LightningDataModule:
    data = LightningDataModule()
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    loop = SimpleNamespace(epoch_progress=progress)
    data.trainer = SimpleNamespace(world_size=ranks, global_rank=rank, fit_loop=loop)
    return data


def epoch_of(
    seed: int = 0, epoch: int = 0, *, size: int = 50, replacement: bool = False, **rank: int
) -> Tensor:
    data = on_rank(**rank) if rank else LightningDataModule()
    draws = TrainingDraws(data, size, 4, seed=seed, replacement=replacement)
    draws.set_epoch(epoch)
    batches = list(draws)
    assert len(batches) == len(draws)
    assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1)
    return torch.cat(batches)


def test_each_epoch_is_a_permutation():
    assert epoch_of(0, 5)[:, 0].sort().values.equal(torch.arange(50))


def test_draws_differ_by_epoch_and_by_seed():
    epochs = [epoch_of(seed, epoch) for seed in range(5) for epoch in range(5)]
    assert len({tuple(draws[:, 0].tolist()) for draws in epochs}) == 25
    assert len(torch.cat(epochs)[:, 1].unique()) == 25 * 50


def test_global_random_state_neither_matters_nor_moves():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = epoch_of()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert epoch_of().equal(first)


@pytest.mark.parametrize("replacement", [False, True])
def test_every_position_is_uniform(replacement):
    firsts = torch.stack(
        [epoch_of(0, epoch, size=5, replacement=replacement)[:2, 0] for epoch in range(1000)]
    )
    for position in firsts.unbind(dim=1):
        assert ((torch.bincount(position, minlength=5) - 200).abs() < 65).all()  # 5 deviations


def test_with_replacement_some_examples_repeat_with_other_bits():
    draws = epoch_of(size=10_000, replacement=True)
    share = len(draws[:, 0].unique()) / 10_000
    assert abs(share - (1 - torch.exp(torch.tensor(-1.0)))) < 0.02
    assert len(draws[:, 1].unique()) == 10_000


def test_bits_are_uniform_over_their_range():
    bits = epoch_of(size=20_000)[:, 1]
    assert bits.min() >= 0
    for position in range(62):
        ones = int(((bits >> position) & 1).sum())
        assert abs(ones - 10_000) < 5 * 71, position  # 5 deviations


@pytest.mark.parametrize("size", [1, 48, 50, 51])
def test_processes_share_an_epoch_and_make_as_many_steps(size):
    one = epoch_of(size=size)
    shares = [epoch_of(size=size, rank=rank, ranks=4) for rank in range(4)]
    assert {len(share) for share in shares} == {-(-size // 4)}
    together = torch.stack(shares, dim=1).flatten(0, 1)
    assert together[:size].equal(one)
    assert together[size:].equal(one.repeat(4, 1)[: len(together) - size])


@pytest.mark.parametrize("size", [4, 10, 12])
def test_evaluation_gives_every_example_once_with_the_same_bits(size):
    def drawn(rank: int, ranks: int, seed: int = 0) -> Tensor:
        draws = EvaluationDraws(on_rank(rank, ranks), size, 3, seed=seed)
        first, second = list(draws), list(draws)
        assert len(first) == len(draws)
        assert torch.cat(first).equal(torch.cat(second))
        return torch.cat(first)

    one = drawn(0, 1)
    assert one[:, 0].equal(torch.arange(size))
    shares = torch.cat([drawn(rank, 4) for rank in range(4)])
    assert shares[shares[:, 0].argsort()].equal(one)
    assert not drawn(0, 1, seed=1)[:, 1].equal(one[:, 1])


def test_overfit_batches_are_refused():
    data = Data()
    data.trainer = SimpleNamespace(overfit_batches=2)
    with pytest.raises(UsageError, match="limit_train_batches"):
        data.train_dataloader()


class Recording(LightningModule):
    """Keeps the draws that it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int, list[int]]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch_idx, batch.flatten().tolist()))
        return self.weight.square()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Save(Callback):
    """Saves a checkpoint the n-th time that a hook is called."""

    def __init__(self, hook: str, n: int, path: Any) -> None:
        self.left, self.path = n, path
        setattr(self, hook, self.save)

    def save(self, trainer: Trainer, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)


def fit(tmp_path: Any, data: Data, callbacks: Sequence[Callback] = (), **options: Any) -> Recording:
    ckpt_path = options.pop("ckpt_path", None)
    options = {"max_epochs": 3, **options}
    torch.manual_seed(5)
    module = Recording()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize(
    ("hook", "n", "steps_done", "options"),
    [
        ("on_train_batch_end", 1, 1, {}),
        ("on_train_batch_end", 6, 6, {}),  # the last batch of an epoch
        ("on_train_batch_end", 9, 9, {}),
        ("on_train_batch_end", 9, 9, {"workers": 2}),
        ("on_train_batch_start", 9, 8, {}),
        ("on_train_epoch_end", 1, 6, {}),
        ("on_train_epoch_end", 2, 12, {"workers": 2}),
        ("on_validation_end", 1, 6, {}),
        ("on_validation_end", 2, 6, {"val_check_interval": 3}),
        ("on_validation_end", 3, 9, {"val_check_interval": 3}),
        ("on_train_batch_end", 4, 4, {"accumulate_grad_batches": 2}),
    ],
)
def test_resumed_run_sees_what_was_left(tmp_path, hook, n, steps_done, options):
    workers = options.pop("workers", 0)
    whole = fit(tmp_path, Data(), **options).seen
    assert len(whole) == 18
    assert len({tuple(draws) for _, _, draws in whole}) == 18
    path = tmp_path / "saved.ckpt"
    fit(tmp_path, Data(workers), [Save(hook, n, path)], **options)
    assert fit(tmp_path, Data(workers), ckpt_path=path, **options).seen == whole[steps_done:]


def test_resumes_twice_in_one_epoch(tmp_path):
    whole = fit(tmp_path, Data(), max_epochs=1).seen
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    fit(tmp_path, Data(), [Save("on_train_batch_end", 2, first)], max_epochs=1)
    fit(tmp_path, Data(), [Save("on_train_batch_end", 2, second)], max_epochs=1, ckpt_path=first)
    assert fit(tmp_path, Data(), max_epochs=1, ckpt_path=second).seen == whole[4:]
