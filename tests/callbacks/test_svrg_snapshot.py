"""SVRGSnapshot: when it takes which gradient, and that nothing else changes by it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from pytorch_lightning.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

import classifier
from classifier import examples
from lightning_opt.callbacks import SVRGSnapshot
from lightning_opt.callbacks import _untouched as untouched_module
from lightning_opt.errors import UsageError
from lightning_opt.optimizers import SVRG, LinearDecay, Lookahead

EXAMPLES = 22  # three batches of at most 8


class Plain(classifier.Plain):
    """Trained by SVRG, unless by another."""

    def __init__(self, build: Callable[..., Optimizer] = SVRG, **options: Any) -> None:
        super().__init__(build, **options)


class Noisy(Dataset):
    """Augments its examples from every random generator there is."""

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = examples()[index]
        return x + 0.1 * torch.randn(6) + random.random() + float(np.random.rand()), y


class Everything(Plain):
    """Whatever a training_step may change or draw, this one does."""

    def __init__(self, build: Callable[..., Optimizer] = SVRG, workers: int = 0, **options: Any):
        super().__init__(build, **options)
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2)
        )
        self.teacher = nn.Linear(6, 4).requires_grad_(False)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.mean = torchmetrics.MeanMetric()
        self.history: list[Tensor] = []
        self.count = 0
        self.workers = workers

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        x = x + 0.1 * (random.random() + float(np.random.rand()))
        logits = self.network(x)
        loss = F.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.mean.update(loss.detach())
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log_dict({"loss": loss, "hidden": logits.mean()}, on_step=True, on_epoch=True)
        self.history.append(loss.detach())
        self.count += 1
        with torch.no_grad():
            self.teacher.weight.lerp_(self.network[0].weight, 0.1)
        self.logger.log_metrics({"direct": loss.item()}, step=self.count)
        return {"loss": loss}

    def on_after_backward(self) -> None:
        self.count += 100

    def train_dataloader(self) -> Any:
        return DataLoader(
            Noisy(),
            batch_size=8,
            shuffle=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 1,
            multiprocessing_context="fork" if self.workers else None,
        )


def finish(fit: Any, module: Everything, tmp_path: Path, *callbacks: Any) -> dict[str, Any]:
    """All that a seeded fit of three epochs leaves behind."""
    pl.seed_everything(1, verbose=False)
    logger = CSVLogger(tmp_path, name=type(module.configure_optimizers()).__name__)
    trainer = fit(module, *callbacks, max_epochs=3, logger=logger, log_every_n_steps=1)
    return {
        "csv": (Path(logger.log_dir) / "metrics.csv").read_text(),
        "metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
        "tensors": {name: value.tolist() for name, value in module.state_dict().items()},
        "history": [value.item() for value in module.history],
        "count": module.count,
        "generators": (random.random(), np.random.rand(), torch.rand(()).item()),
    }


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"coefficient": 0.0}], ids=["two evaluations", "snapshots alone"]
)
def test_all_else_is_as_with_sgd(fit, tmp_path, workers, options):
    """Logs, metrics, buffers, attributes, the order of the data, and every random number.

    With a rate of 0 both stay where they are and so have the same to log, evaluation at the
    snapshot or not. With a coefficient of 0 they walk the same way, if snapshots leave no trace.
    """
    every = SVRGSnapshot(every_n_steps=2)
    svrg = finish(fit, Everything(SVRG, workers, **options), tmp_path, every)
    sgd = finish(fit, Everything(SGD, workers, lr=options.get("lr", 0.1)), tmp_path)
    for part, value in sgd.items():
        assert svrg[part] == value, part


def test_no_trace_after_an_exception(fit, tmp_path):
    """In a snapshot and at a step's evaluation there: nothing is left switched off."""

    class Fails(Everything):
        fatal = 0

        def training_step(self, batch, batch_idx):
            calls.append(self.count)
            output = super().training_step(batch, batch_idx)
            if len(calls) == self.fatal:
                raise RuntimeError("boom")
            return output

    for fatal in (2, 4):  # three batches of the snapshot, then θ̃, then θ
        calls: list[int] = []
        module = Fails(SVRG)
        module.fatal = fatal
        start = {name: value.clone() for name, value in module.state_dict().items()}
        logger = CSVLogger(tmp_path)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=[SVRGSnapshot()],
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        before = list(trainer.callbacks)
        with pytest.raises(RuntimeError, match="boom"):
            trainer.fit(module)
        assert len(calls) == fatal
        for name, value in module.state_dict().items():
            assert torch.equal(value, start[name]), name
        assert module.count == 0 and not module.history and "log" not in vars(module)
        assert trainer.callbacks == before and trainer.loggers == [logger]


def test_mu_is_the_exact_gradient_over_uneven_batches(fit):
    """Of 8, 8 and 6 examples, at the weights before the first step."""
    module = Plain(lr=0.0).double()
    data = examples()
    module.train_dataloader = lambda: DataLoader(
        TensorDataset(data.tensors[0].double(), data.tensors[1]), batch_size=8, shuffle=True
    )
    trainer = fit(module, SVRGSnapshot())
    loss = F.cross_entropy(module.network(data.tensors[0].double()), data.tensors[1])
    exact = torch.autograd.grad(loss, list(module.parameters()))
    for p, g in zip(module.parameters(), exact, strict=True):
        mu = trainer.optimizers[0].state[p]["mu"]
        torch.testing.assert_close(mu, g, rtol=1e-12, atol=1e-14)


def test_masked_labels_are_the_terms_and_skipped_batches_have_none(fit):
    """Batches without a term, or with a step that returns None, are left out; their loss is NaN."""

    class Masked(Plain):
        loss_terms = None

        def training_step(self, batch, batch_idx):
            if batch["x"][0, 0] == data.tensors[0][5, 0]:
                return None
            return F.cross_entropy(self.network(batch["x"]), batch["labels"])

        def train_dataloader(self):
            rows = [{"x": x[i : i + 5], "labels": y[i : i + 5]} for i in range(0, EXAMPLES, 5)]
            return DataLoader(rows, batch_size=None)

    data = examples()
    x, y = data.tensors
    y = y.clone()
    y[:3], y[10:15], y[20] = -100, -100, -100
    kept = torch.tensor([*range(5), *range(15, EXAMPLES)])
    module = Masked(lr=0.0)
    with pytest.warns(UserWarning, match="training_step. returned .None."):
        trainer = fit(module, SVRGSnapshot(), limit_train_batches=5)
    loss = F.cross_entropy(module.network(x[kept]), y[kept])
    for p, g in zip(
        module.parameters(), torch.autograd.grad(loss, list(module.parameters())), strict=True
    ):
        torch.testing.assert_close(trainer.optimizers[0].state[p]["mu"], g)


def test_batches_of_unknown_terms_are_weighted_by_size_with_one_warning(fit):
    class Unknown(Plain):
        loss_terms = None

    with pytest.warns(UserWarning, match="has no loss_terms") as caught:
        fit(Unknown(), SVRGSnapshot(), max_epochs=3)
    assert len([w for w in caught if "loss_terms" in str(w.message)]) == 1


class Spied(Plain):
    """Remembers which examples each evaluation has seen, and in which step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("seen", None)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        SEEN.append((self.trainer.global_step, batch[0][:, 0].tolist(), self.training))
        return super().training_step(batch, batch_idx)


SEEN: list[tuple[int, list[float], bool]] = []


def evaluations(fit: Any, callback: SVRGSnapshot, **options: Any) -> dict[int, int]:
    """How many batches the snapshot before each step took, where there was one."""
    SEEN.clear()
    fit(Spied(), callback, **options)
    steps = [step for step, *_ in SEEN]
    return {step: steps.count(step) - 2 for step in sorted(set(steps)) if steps.count(step) > 2}


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, {0: 3, 3: 3, 6: 3, 9: 3}),
        ({"every_n_epochs": 3}, {0: 3, 9: 3}),
        ({"every_n_steps": 5, "batches": 2}, {0: 2, 5: 2, 10: 2}),
        ({"batches": 100, "every_n_epochs": 2}, {0: 3, 6: 3}),
    ],
)
def test_intervals_and_numbers_of_batches(fit, options, expected):
    assert evaluations(fit, SVRGSnapshot(**options), max_epochs=4) == expected


def test_no_more_batches_than_the_trainer_would_use(fit):
    assert evaluations(fit, SVRGSnapshot(), limit_train_batches=2) == {0: 2}


def test_an_optimizer_without_one_gets_one_at_once(fit):
    """A second fit has a new optimizer, in an epoch that is not the callback's turn."""
    module = Spied()
    trainer = fit(module, SVRGSnapshot(every_n_epochs=3))
    SEEN.clear()
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module)
    assert [step for step, *_ in SEEN] == [3] * 5 + [4] * 2 + [5] * 2


def test_an_epoch_of_unknown_length(fit, capsys):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(examples())

    class Streaming(Spied):
        def train_dataloader(self):
            return DataLoader(Stream(), batch_size=8)

    SEEN.clear()
    fit(Streaming(), SVRGSnapshot(), enable_progress_bar=True)
    assert [step for step, *_ in SEEN] == [0] * 5 + [1] * 2 + [2] * 2
    assert str(2**31) not in capsys.readouterr().err


def test_each_snapshot_takes_other_batches_in_training_mode(fit):
    """The same in a run that is repeated, and others if it is repeated with another seed."""

    def first_batches(seed: int) -> list[list[float]]:
        pl.seed_everything(seed, verbose=False)
        SEEN.clear()
        fit(Spied(), SVRGSnapshot(batches=1), max_epochs=3)
        assert all(training for *_, training in SEEN)
        return [SEEN[i][1] for i in (0, 7, 14)]

    one, again, other = first_batches(1), first_batches(1), first_batches(2)
    assert one == again
    assert len({tuple(batch) for batch in one + other}) == 6


def test_other_callbacks_see_one_evaluation_a_step_and_none_of_a_snapshot(fit):
    class Watch(pl.Callback):
        def __init__(self) -> None:
            self.events: list[str] = []

        def __getattribute__(self, name: str) -> Any:
            if name in HOOKS:
                return lambda *args: self.events.append(name)
            return super().__getattribute__(name)

    class Hooked(Plain):
        calls = 0

        def on_after_backward(self):
            Hooked.calls += 1

    hooks = ["on_before_zero_grad", "on_before_backward", "on_after_backward"]
    HOOKS = {*hooks, "on_before_optimizer_step"}
    watch = Watch()
    fit(Hooked(), watch, SVRGSnapshot())
    assert watch.events == [*hooks, "on_before_optimizer_step"] * 3
    assert Hooked.calls == 3 + 2 * 3


def test_no_copy_is_made_of_the_parameters(fit, monkeypatch):
    """It would be one more than the two that SVRG needs."""
    copied: list[int] = []
    original = untouched_module._tensor_restorer
    monkeypatch.setattr(
        untouched_module, "_tensor_restorer", lambda t: copied.append(id(t)) or original(t)
    )
    module = Everything()
    fit(module, SVRGSnapshot(), logger=CSVLogger("unused"), fast_dev_run=True)
    assert not copied_of(module.network, copied)
    assert copied_of(module.teacher, copied)  # which the step changes, and no optimizer has


def copied_of(module: nn.Module, copied: list[int]) -> list[str]:
    return [name for name, p in module.named_parameters() if id(p) in copied]


def test_lookahead_over_it(fit):
    """It finds its SVRG inside, and the fit is that of Lookahead over SGD where c is 0."""
    weights = []
    for base in (partial(SVRG, lr=0.1, coefficient=0.0), partial(SGD, lr=0.1)):
        module = Plain()
        module.build = partial(Lookahead, base=base, k=2)
        torch.manual_seed(1)
        callbacks = [SVRGSnapshot()] if base.func is SVRG else []
        trainer = fit(module, *callbacks, max_epochs=3)
        weights.append([p.detach().clone() for p in module.parameters()])
        if callbacks:
            assert trainer.optimizers[0].base.has_snapshot
    for ours, theirs in zip(*weights, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_every_precision_that_needs_no_scaler(fit, precision):
    """In each of the three kinds of evaluation; μ has at least float32's."""
    dtypes = set()

    class Dtypes(Plain):
        def training_step(self, batch, batch_idx):
            dtypes.add(self.network(batch[0]).dtype)
            return super().training_step((batch[0] @ torch.eye(6), batch[1]), batch_idx)

    module = Dtypes()
    trainer = fit(module, SVRGSnapshot(), precision=precision)
    expected = {"32": torch.float32, "64": torch.float64, "bf": torch.bfloat16}[precision[:2]]
    assert dtypes == {expected}
    of_state = {state["mu"].dtype for state in trainer.optimizers[0].state.values()}
    assert of_state == {torch.promote_types(module.network[0].weight.dtype, torch.float32)}
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_progress_bar_is_shown_where_the_trainer_shows_one(fit, capsys):
    fit(Plain(), SVRGSnapshot())
    fit(Plain(), SVRGSnapshot(progress_bar=False), enable_progress_bar=True)
    assert "SVRGSnapshot" not in capsys.readouterr().err
    fit(Plain(), SVRGSnapshot(), enable_progress_bar=True)
    assert "SVRGSnapshot" in capsys.readouterr().err


def test_the_trainers_bar_can_find_itself_at_any_time(fit):
    """Rich's draws from a thread, which ends with an error where it cannot."""

    class Looks(Plain):
        def training_step(self, batch, batch_idx):
            assert self.trainer.progress_bar_callback is not None
            return super().training_step(batch, batch_idx)

    fit(Looks(), SVRGSnapshot(), enable_progress_bar=True)


# ------------------------------------------------------------------------------------- resume


class Resumable(Everything):
    """Lightning restarts data loader and generators when it resumes: let it not matter."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        pl.seed_everything(self.trainer.global_step, verbose=False)
        os.environ.pop("PL_GLOBAL_SEED")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        generator = torch.Generator().manual_seed(batch_idx)
        return super().training_step(
            (torch.randn(8, 6, generator=generator), batch_idx % 2 * torch.ones(8).long()),
            batch_idx,
        )


@pytest.mark.filterwarnings("ignore:.*(is not resumable|exists and is not empty)")
@pytest.mark.parametrize("interval", [{}, {"every_n_epochs": 2}, {"every_n_steps": 2}])
@pytest.mark.parametrize("step", [3, 4, 5])
def test_resume_is_bitwise(fit, tmp_path, monkeypatch, interval, step):
    """From any step of an epoch, also that of a snapshot; θ̃, μ and c come from the checkpoint."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)

    def run(ckpt_path: Path | None = None) -> tuple[dict[str, Any], list[int]]:
        taken: list[int] = []

        class Counts(SVRG):
            def snapshot(self, closures):
                taken.append(trainer.global_step)
                super().snapshot(closures)

        build = partial(Counts, momentum=0.9, coefficient=LinearDecay(steps=12))
        saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=4,
            callbacks=[SVRGSnapshot(**interval), saver],
            logger=CSVLogger(tmp_path),
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Resumable(build), ckpt_path=ckpt_path, weights_only=True)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        return torch.load(tmp_path / "end.ckpt", weights_only=True), taken

    whole, taken = run()
    resumed, taken_again = run(tmp_path / f"step={step}.ckpt")
    assert taken_again == [at for at in taken if at >= step]
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    ours, theirs = resumed["optimizer_states"][0], whole["optimizer_states"][0]
    assert ours["param_groups"] == theirs["param_groups"]
    for key, state in theirs["state"].items():
        for name, value in state.items():
            assert torch.equal(ours["state"][key][name], value), name


# ----------------------------------------------------------------------------------- refusals


class Manual(Plain):
    """Takes its snapshot itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False
        self.with_closure = True

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(self.network(batch[0]), batch[1])
            self.manual_backward(loss)
            return loss

        if batch_idx == 0:
            optimizer.snapshot([closure])
        if self.with_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


class Clips(Plain):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        self.clip_gradients(optimizer, 0.5, "norm")


class Iterates(Plain):
    def training_step(self, dataloader_iter):  # type: ignore[override]
        raise AssertionError


SCALED = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))


@pytest.mark.filterwarnings("ignore:.*dataloader_iter. step flavor")
@pytest.mark.parametrize(
    "module, options, message",
    [
        (Plain, {"plugins": [SCALED]}, "16-mixed.*bf16-mixed"),
        (Plain, {"accumulate_grad_batches": 2}, "accumulate_grad_batches=2.*larger batches"),
        (
            Plain,
            {"callbacks": [GradientAccumulationScheduler({4: 2})]},
            "accumulated gradients.*larger batches",
        ),
        (Plain, {"gradient_clip_val": 0.5}, "gradient_clip_val=0.5.*remove it"),
        (Clips, {}, "Clips.configure_gradient_clipping.*remove it"),
        (Manual, {}, r"Manual optimizes manually.*snapshot\(closures\).*yourself"),
        (Iterates, {}, "Iterates.training_step takes dataloader_iter"),
        (partial(Plain, SGD), {}, r"no SVRG among its optimizers \(SGD\).*optional=True"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_would_be_silently_wrong_is_refused_before_training(fit, module, options, message):
    module = module()
    module.on_train_start = lambda: pytest.fail("too late")
    more = options.pop("callbacks", [])
    with pytest.raises(UsageError, match=message):
        fit(module, SVRGSnapshot(), *more, **options)


def test_sharded_parameters_are_refused(fit):
    """A strategy that could train here would need more than one process, so it is a stand-in."""
    trainer = fit(Plain(SGD))
    trainer.strategy.optimizers = [SVRG(trainer.model.parameters())]
    kinds = (type(trainer.strategy), FSDPStrategy)
    trainer.strategy.__class__ = type("Sharding", kinds, {"precision_plugin": None})
    with pytest.raises(UsageError, match="Sharding may split them"):
        SVRGSnapshot().on_fit_start(trainer, trainer.model)


@pytest.mark.parametrize("option", ["batches", "every_n_epochs", "every_n_steps"])
def test_ranges_name_the_option_and_the_value(option):
    with pytest.raises(UsageError, match=f"{option} is 0"):
        SVRGSnapshot(**{option: 0})


def test_without_the_callback_the_optimizer_says_what_is_missing(fit):
    with pytest.raises(RuntimeError, match="SVRGSnapshot"):
        fit(Plain())
    with pytest.raises(RuntimeError, match=r"step\(closure\).*16-mixed"):
        fit(Plain(), plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))])


def test_optional_does_nothing_where_there_is_nothing_to_do(fit):
    """No SVRG: as without. Manual optimization: the module takes its snapshots itself."""
    weights = []
    for callbacks in ([], [SVRGSnapshot(optional=True)]):
        module = Plain(SGD)
        torch.manual_seed(1)
        fit(module, *callbacks, accumulate_grad_batches=2, gradient_clip_val=0.1)
        weights.append([p.detach().clone() for p in module.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)

    trainer = fit(Manual(), SVRGSnapshot(optional=True), max_epochs=2)
    assert trainer.optimizers[0].param_groups[0]["steps"] == 6
    forgetful = Manual()
    forgetful.with_closure = False
    with pytest.raises(RuntimeError, match="computed no gradients"):
        fit(forgetful)


def test_the_optimizer_is_left_to_itself_after_the_fit(fit):
    """It may go on outside of Lightning."""
    module = Plain()
    trainer = fit(module, SVRGSnapshot())
    optimizer = trainer.optimizers[0]
    assert "unobserved" not in vars(optimizer)
    x, y = examples().tensors

    def closure() -> Tensor:
        loss = F.cross_entropy(module.network(x), y)
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0


# ---------------------------------------------------------------------------------------- DDP


class Shared(Plain):
    """Double precision, in the order of the data, which two processes share."""

    def __init__(self, masked: bool, **options: Any) -> None:
        super().__init__(**options)
        self.double()
        self.masked = masked

    def loss_terms(self, batch: Any) -> int:
        return int((batch[1] != -100).sum())

    def train_dataloader(self) -> Any:
        x, y = examples().tensors
        y = y.clone()
        if self.masked:  # more in the one process than in the other
            y[1:9:2] = -100
        data = TensorDataset(x[:16].double(), y[:16])
        world, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(data, world, rank, shuffle=False)
        return DataLoader(data, batch_size=8 // world, sampler=sampler)


def train_shared(folder: Path, devices: int) -> None:
    """Two fits, in this process or in two: their weights and μ, saved by the first."""
    for masked, lr in ((False, 0.5), (True, 0.0)):
        module = Shared(masked, lr=lr, momentum=0.5)
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            max_epochs=3,
            callbacks=[SVRGSnapshot(every_n_steps=3)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module)
        states = trainer.optimizers[0].state
        saved = {
            name: {"weight": p.detach(), "mu": states[p]["mu"]}
            for name, p in module.named_parameters()
        }
        if trainer.is_global_zero:
            torch.save(saved, folder / f"{devices}-{masked}.pt")


@pytest.mark.slow
def test_two_processes_are_as_one_on_the_union(tmp_path):
    """Steps and μ; where the ranks have different numbers of terms, μ is still the exact mean."""
    tests = Path(__file__).parents[1]  # where `classifier` is; the checkout first, as in pytest
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    for devices in (1, 2):
        command = [sys.executable, __file__, str(tmp_path), str(devices)]
        subprocess.run(command, check=True, timeout=300, env=environment)
    for masked in (False, True):
        one, two = (torch.load(tmp_path / f"{devices}-{masked}.pt") for devices in (1, 2))
        for name, values in one.items():
            for part, value in values.items():
                torch.testing.assert_close(two[name][part], value, rtol=1e-12, atol=1e-13)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_shared(Path(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # gloo's threads may abort an interpreter that ends in order
