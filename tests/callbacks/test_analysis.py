"""What both analysis callbacks promise: they leave no trace, on any module, from any loader."""

from __future__ import annotations

import csv
import gc
import random
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from classifier import Everything, Plain, examples, plain, read
from lightning_opt.callbacks import HessianSpectrum, LossLine, LossSurface
from lightning_opt.errors import UsageError
from lightning_opt.optimizers import Lookahead


def spectrum(**options: Any) -> HessianSpectrum:
    return HessianSpectrum(**{"steps": 3, "batches": 2, **options})


def surface(**options: Any) -> LossSurface:
    return LossSurface(**{"resolution": (3, 3), "batches": 2, **options})


def line(**options: Any) -> LossLine:
    return LossLine(**{"resolution": 3, "reach": (0.0, 1.0), "batches": 2, **options})


BOTH = pytest.mark.parametrize("make", [spectrum, surface])
ALL = pytest.mark.parametrize("make", [spectrum, surface, line])


# Its teacher, which becomes trainable in the middle, is no part of what LossLine remembers.
BECOMES_TRAINABLE = pytest.mark.filterwarnings("ignore:LossLine. the start has no 'teacher")


class Record(pl.Callback):
    """Takes down, before and after the callbacks between two of these, all there is to change."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, Any]] = {}

    def look(self, hook: str, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # First, because this computes metrics, which they remember.
        metrics, logged = plain(dict(trainer.callback_metrics)), plain(dict(trainer.logged_metrics))
        modules = dict(module.named_modules())
        self.seen[hook] = {
            "metrics": metrics,
            "logged": logged,
            "tensors": plain(module.state_dict(keep_vars=True)),
            "identities": {k: id(v) for k, v in module.state_dict(keep_vars=True).items()},
            "gradients": {k: plain(p.grad) for k, p in module.named_parameters()},
            "attributes": {
                f"{k}.{name}": plain(value)
                for k, m in modules.items()
                for name, value in vars(m).items()
                if name != "_current_fx_name"  # Lightning's own: the hook that is running
            },
            "modes": {k: m.training for k, m in modules.items()},
            "python": random.getstate(),
            "numpy": plain(np.random.get_state()),
            "torch": plain(torch.get_rng_state()),
            "loader": plain(module.generator.get_state()),
            "loggers": [id(logger) for logger in trainer.loggers],
            "workers": trainer.train_dataloader.num_workers,
            "grad_enabled": torch.is_grad_enabled(),
        }

    def on_train_epoch_end(self, trainer, pl_module):
        self.look("epoch", trainer, pl_module)

    def on_train_end(self, trainer, pl_module):
        self.look("end", trainer, pl_module)

    def on_exception(self, trainer, pl_module, exception):
        self.look("exception", trainer, pl_module)


@ALL
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("split", ["train", "val"])
@BECOMES_TRAINABLE
def test_everything_is_left_as_it_was_found(fit, make, mode, split, tmp_path):
    """Each part by name, so that a failure says what was not put back."""
    before, after = Record(), Record()
    module = Everything()
    analysis = make(mode=mode, split=split, every_n_epochs=1)
    fit(module, before, analysis, after, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert analysis.result is not None
    assert any(gradient is not None for gradient in before.seen["end"]["gradients"].values())
    for hook in ("epoch", "end"):
        for part, value in before.seen[hook].items():
            assert after.seen[hook][part] == value, (hook, part)


@ALL
@BECOMES_TRAINABLE
def test_everything_is_left_as_it_was_found_after_an_exception(fit, make):
    class Fails(Everything):
        def training_step(self, batch, batch_idx):
            output = super().training_step(batch, batch_idx)
            if self.count == 3 + 4:  # three batches an epoch, then in the middle of the analysis
                raise RuntimeError("boom")
            return output

    before, after = Record(), Record()
    with pytest.raises(RuntimeError, match="boom"):
        fit(Fails(), before, make(mode="train"), after)
    for part, value in before.seen["end"].items():
        if part not in ("metrics", "logged"):  # Lightning's own handling of the exception
            assert after.seen["exception"][part] == value, part


@pytest.mark.parametrize("workers", [0, 1])
@BECOMES_TRAINABLE
def test_training_is_bitwise_the_same_with_and_without_the_callbacks(fit, tmp_path, workers):
    """Every epoch is analyzed; a single random number more or less would show in the next one."""

    def train(*callbacks: Any) -> tuple[Any, ...]:
        pl.seed_everything(1, verbose=False)
        module = Everything(workers)
        name = f"with{len(callbacks)}"
        logger = CSVLogger(tmp_path, name=name)
        trainer = fit(module, *callbacks, max_epochs=3, logger=logger, log_every_n_steps=1)
        with (Path(logger.log_dir) / "metrics.csv").open() as file:
            rows = [
                {name: value for name, value in row.items() if value and "/" not in name}
                for row in csv.DictReader(file)
            ]
        logged = [row for row in rows if set(row) > {"step"}]  # those that are not the analyses'
        return plain(module.state_dict()), plain(dict(trainer.callback_metrics)), logged

    alone = train()
    analyzed = train(
        spectrum(every_n_epochs=1, mode="train"),
        surface(every_n_epochs=1),
        spectrum(every_n_epochs=1, split="val", name="other"),
        line(every_n_epochs=2),
    )
    assert alone[0] == analyzed[0]
    assert alone[1] == analyzed[1]
    assert alone[2] == analyzed[2]


def loss_of(analysis: Any, tmp_path: Path) -> float:
    return float(read(tmp_path / f"{analysis.name}.npz")["loss"])


@BOTH
def test_a_dict_batch_is_weighted_by_its_labels_and_may_be_emptied(fit, make, tmp_path):
    """Steps that pop their labels are common; the batch is needed again."""

    class Tokens(Plain):
        loss_terms = None

        def training_step(self, batch, batch_idx):
            labels = batch.pop("labels")
            return F.cross_entropy(self.network(batch["x"]).flatten(0, 1), labels.flatten())

        def train_dataloader(self):
            x, y = examples(20).tensors
            y = y.clone()
            y[:7], y[18:] = -100, -100
            batch = {"x": x.view(4, 5, 6), "labels": y.view(4, 5)}
            rows = [{key: value[row] for key, value in batch.items()} for row in range(4)]
            return DataLoader(rows, batch_size=1)

    module, analysis = Tokens(), make(batches=4)
    fit(module, analysis)
    x, y = examples(20).tensors
    exact = F.cross_entropy(module.network(x[7:18]), y[7:18]).item()
    assert loss_of(analysis, tmp_path) == pytest.approx(exact, rel=1e-6)
    assert read(tmp_path / f"{analysis.name}.npz")["terms"] == 11


@BOTH
def test_other_batches_are_weighted_by_their_size_with_one_warning(fit, make, tmp_path):
    class Unknown(Plain):
        loss_terms = None

        def train_dataloader(self):
            return DataLoader(examples(11), batch_size=8)

    module, analysis = Unknown(), make()
    with pytest.warns(UserWarning, match="has no loss_terms") as caught:
        fit(module, analysis)
    assert len([w for w in caught if "loss_terms" in str(w.message)]) == 1
    x, y = examples(11).tensors
    exact = F.cross_entropy(module.network(x), y).item()
    assert loss_of(analysis, tmp_path) == pytest.approx(exact, rel=1e-6)


def test_a_batch_of_unknown_size_asks_for_loss_terms(fit):
    class Sizeless(Plain):
        loss_terms = None

        def training_step(self, batch, batch_idx):
            return self.network(torch.ones(1, 6)).mean()

        def train_dataloader(self):
            return DataLoader([object()], batch_size=None)

    with (
        pytest.warns(UserWarning, match="has no loss_terms"),
        pytest.raises(UsageError, match=r"Sizeless.loss_terms\(batch\)"),
    ):
        fit(Sizeless(), spectrum())


def test_a_step_may_lack_the_batch_index_and_return_a_dict(fit):
    class Short(Plain):
        def training_step(self, batch):
            return {"loss": super().training_step(batch, 0), "more": 1}

    analysis = spectrum()
    fit(Short(), analysis)
    assert analysis.result.eigenvalues.size


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda loss: None, "returned None"),
        (lambda loss: {"value": loss}, r"a dict without 'loss' \(value\)"),
        (lambda loss: loss.expand(3), r"shape \(3,\)"),
        (lambda loss: 1.0, "returned float"),
    ],
)
def test_a_loss_that_is_none_is_refused(fit, output, message):
    """Training itself goes on as usual: only the analysis sees the bad output."""

    class Odd(Plain):
        def analyzed(self, batch):
            return output(self.training_step(batch, 0))

    with pytest.raises(UsageError, match=rf"Odd.analyzed returned.*{message}|{message}"):
        fit(Odd(), spectrum(loss="analyzed"))


@BOTH
def test_loss_is_a_callable_or_the_name_of_a_method(fit, make, tmp_path):
    class Named(Plain):
        def doubled(self, batch):
            return 2 * self.training_step(batch, 0)

    named = make(loss="doubled", name="named")
    called = make(loss=lambda module, batch: 2 * module.training_step(batch, 0), name="called")
    usual = make(name="usual")
    fit(Named(), named, called, usual)
    assert loss_of(named, tmp_path) == loss_of(called, tmp_path)
    assert loss_of(named, tmp_path) == pytest.approx(2 * loss_of(usual, tmp_path))


class Manual(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def energy(self, batch):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.energy(batch))
        optimizer.step()


@BOTH
def test_manual_optimization_needs_a_loss(fit, make):
    with pytest.raises(UsageError, match="Manual optimizes manually"):
        fit(Manual(), make())
    analysis = make(loss="energy")
    fit(Manual(), analysis)
    assert analysis.result is not None


def test_a_misspelt_loss_is_answered_with_the_nearest_name(fit):
    with pytest.raises(UsageError, match=r"loss='enrgy'.*Did you mean energy\?"):
        fit(Manual(), spectrum(loss="enrgy"))


def test_a_module_without_trainable_parameters_is_refused_before_training(fit):
    class Fixed(Plain):
        def configure_optimizers(self):
            return None

    module = Fixed()
    module.requires_grad_(False)
    with (
        pytest.warns(UserWarning, match="configure_optimizers"),
        pytest.raises(UsageError, match="Fixed has no trainable parameters"),
    ):
        fit(module, spectrum())


def test_sharded_parameters_are_refused_and_replicated_ones_are_not():
    class Stub:
        strategy: Any = FSDPStrategy.__new__(FSDPStrategy)
        callbacks: Any = ()
        global_step = 0

    with pytest.raises(UsageError, match="FSDPStrategy"):
        spectrum().setup(Stub(), Plain(), "fit")
    Stub.strategy = DDPStrategy.__new__(DDPStrategy)
    spectrum().setup(Stub(), Plain(), "fit")


def test_validation_batches_need_a_validation_loader(fit):
    with pytest.raises(UsageError, match="split='val'"):
        fit(Plain(), spectrum(split="val"))


@BOTH
def test_files_are_written_without_pickle_and_with_a_figure(fit, make, tmp_path):
    analysis = make(every_n_epochs=2, name="mine")
    trainer = fit(Plain(), analysis, max_epochs=4, logger=CSVLogger(tmp_path))
    directory = Path(trainer.log_dir)
    names = {"mine", "mine-epoch=1", "mine-epoch=3"}
    names |= {"mine-history"} if make is spectrum else set()
    assert {path.stem for path in directory.glob("*.npz")} == names
    assert {path.stem for path in directory.glob("*.png")} == names
    assert {path.suffix for path in directory.iterdir()} <= {".npz", ".png", ".csv", ".yaml"}
    for name, epoch in (("mine-epoch=1", 1), ("mine-epoch=3", 3)):
        arrays = read(directory / f"{name}.npz")
        assert arrays["epoch"] == epoch
        assert arrays["step"] == 3 * (epoch + 1)
        assert str(arrays["mode"]) == "eval"
        assert str(arrays["split"]) == "train"
        assert arrays["seed"] == 0
        assert arrays["parameters"] == 38
        assert arrays["terms"] == 16


@BOTH
def test_fast_dev_run_tries_the_analysis_and_writes_nothing(fit, make, tmp_path):
    big = {"steps": 10**6} if make is spectrum else {"resolution": (10**4, 10**4)}
    analysis = make(**big)
    fit(Plain(), analysis, fast_dev_run=True)
    assert analysis.result is not None
    assert not list(tmp_path.iterdir())


@BOTH
def test_only_rank_zero_writes(fit, make, tmp_path, monkeypatch):
    monkeypatch.setattr(pl.Trainer, "is_global_zero", property(lambda self: False))
    analysis = make()
    fit(Plain(), analysis)
    assert analysis.result is not None
    assert not list(tmp_path.iterdir())


@BOTH
@pytest.mark.parametrize("private", [False, True])
def test_the_same_batches_whatever_the_random_state(fit, make, private):
    """Runs that are compared must not differ in the data they are analyzed on."""
    seen: list[list[Tensor]] = []

    class Spied(Plain):
        def train_dataloader(self):
            generator = torch.Generator().manual_seed(torch.initial_seed()) if private else None
            return DataLoader(examples(), batch_size=8, shuffle=True, generator=generator)

        def spy(self, batch):
            seen[-1].append(batch[0])
            return self.training_step(batch, 0)

    for seed in (1, 2):
        torch.manual_seed(seed)
        seen.append([])
        module = Spied()
        torch.manual_seed(seed)
        fit(module, make(loss="spy", every_n_epochs=1), max_epochs=2)
    assert len(seen[0]) == len(seen[1])
    assert all(map(torch.equal, *seen))
    assert not torch.equal(seen[0][0], seen[0][1])
    # Batches at the second analysis are those of the first.
    assert torch.equal(seen[0][0], seen[0][-2])
    other: list[Tensor] = []
    seen.append(other)
    fit(Spied(), make(loss="spy", seed=1))
    assert not torch.equal(other[0], seen[0][0])


@BOTH
def test_batches_pass_the_transfer_hooks_of_the_datamodule(fit, make):
    shapes = set()

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(examples(), batch_size=8)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0][:5], batch[1][:5]

    class Bare(Plain):
        train_dataloader = pl.LightningModule.train_dataloader

        def training_step(self, batch, batch_idx):
            shapes.add(tuple(batch[0].shape))
            return super().training_step(batch, batch_idx)

    fit(Bare(), make(), datamodule=Data())
    assert shapes == {(5, 6)}


@BOTH
@pytest.mark.parametrize(("split", "inputs"), [("train", 2.0), ("val", 1.0)])
def test_training_batches_are_those_that_the_datamodule_has_for_it(fit, make, split, inputs):
    seen = set()

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(examples(), batch_size=8)

        def val_dataloader(self):
            return DataLoader(TensorDataset(torch.ones(8, 6), torch.zeros(8).long()), batch_size=8)

        def analysis_dataloader(self):
            x = torch.full((24, 6), 2.0)
            return DataLoader(TensorDataset(x, torch.zeros(24).long()), batch_size=8)

    class Bare(Plain):
        train_dataloader = pl.LightningModule.train_dataloader

        def validation_step(self, batch, batch_idx):
            pass

        def watched(self, batch):
            seen.add((batch[0].unique().item(), len(batch[0])))
            return super().training_step(batch, 0)

    fit(Bare(), make(split=split, loss="watched", batches=4), datamodule=Data())
    assert seen == {(inputs, 8)}


def test_no_more_batches_than_the_trainer_would_use(fit, tmp_path):
    analysis = spectrum(batches=8)
    fit(Plain(), analysis, limit_train_batches=1)
    assert read(tmp_path / "spectrum.npz")["terms"] == 8


@BOTH
def test_several_loaders_arrive_combined(fit, make):
    class Two(Plain):
        def loss_terms(self, batch):
            return len(batch["a"][1]) + len(batch["b"][1])

        def training_step(self, batch, batch_idx):
            return sum(super(Two, self).training_step(batch[k], batch_idx) for k in "ab") / 2

        def train_dataloader(self):
            return {key: DataLoader(examples(), batch_size=4) for key in "ab"}

    analysis = make()
    fit(Two(), analysis)
    assert analysis.result is not None


@BOTH
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_steps_that_draw_random_numbers_are_a_function_nevertheless(fit, make, mode, tmp_path):
    """Dropout in training mode, and noise that a step adds in either mode."""

    class Random(Plain):
        def __init__(self):
            super().__init__()
            self.network.append(nn.Dropout(0.5))

        def training_step(self, batch, batch_idx):
            x = batch[0] + torch.randn_like(batch[0]) * random.random() * np.random.rand()
            return super().training_step((x, batch[1]), batch_idx)

    losses: dict[float, list[float]] = {}

    class Spied(Random):
        def spy(self, batch):
            loss = self.training_step(batch, 0)
            losses.setdefault(batch[0].sum().item(), []).append(loss.item())
            return loss

    fit(Spied(), make(loss="spy", mode=mode))
    if make is spectrum:  # the weights never change, so neither does the loss
        first, second = losses.values()
        assert len(first) > 1
        assert len({*first}) == len({*second}) == 1
        assert first[0] != second[0]
    else:
        arrays = read(tmp_path / "surface.npz")
        assert arrays["values"][1, 1] == pytest.approx(float(arrays["loss"]), rel=1e-6)


@BOTH
@pytest.mark.parametrize("anomalies", [False, True])
def test_weights_that_are_not_finite_do_not_end_the_fit(fit, make, tmp_path, anomalies):
    class Diverged(Plain):
        def on_train_epoch_end(self):
            with torch.no_grad():
                self.network[0].weight.fill_(torch.nan)

    analysis = make()
    if make is spectrum:
        with pytest.warns(UserWarning, match="not finite.*no file"):
            fit(Diverged(), analysis, detect_anomaly=anomalies)
        assert analysis.result is None
        assert not list(tmp_path.iterdir())
    else:
        fit(Diverged(), analysis, detect_anomaly=anomalies)
        assert np.isnan(read(tmp_path / "surface.npz")["values"]).all()
        assert (tmp_path / "surface.png").exists()


@BOTH
def test_lookahead_is_analyzed_at_its_slow_weights(fit, make, tmp_path):
    class Slow(Plain):
        def train_dataloader(self):
            return DataLoader(examples(), batch_size=22)

        def configure_optimizers(self):
            return Lookahead(self.parameters(), lambda params: torch.optim.SGD(params, lr=1.0), k=5)

    start = F.cross_entropy(Slow().network(examples().tensors[0]), examples().tensors[1]).item()
    module, analysis = Slow(), make()
    fit(module, analysis, max_epochs=3)  # three steps of five: the slow weights are the first ones
    assert loss_of(analysis, tmp_path) == pytest.approx(start, rel=1e-6)
    now = F.cross_entropy(module.network(examples().tensors[0]), examples().tensors[1]).item()
    assert now < 0.9 * start


@BOTH
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_every_precision(fit, make, precision):
    class New(Plain):
        """A constant made inside a step has the default dtype, which the precision sets."""

        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0] @ torch.eye(6), batch[1]), batch_idx)

    analysis = make()
    fit(New(), analysis, precision=precision)
    arrays = analysis.result.to_arrays()
    assert np.isfinite(arrays["values" if make is surface else "eigenvalues"]).all()


@BOTH
def test_mixed_precision_is_off(fit, make):
    """A point of the surface must not differ from its neighbor by roundoff of bfloat16."""
    dtypes = set()

    class Spied(Plain):
        def spy(self, batch):
            dtypes.add(self.network(batch[0]).dtype)
            return self.training_step(batch, 0)

    fit(Spied(), make(loss="spy"), precision="bf16-mixed")
    assert dtypes == {torch.float32}


def test_recurrent_networks_do_without_cudnn(fit):
    """Its kernels have no backward in eval mode and no second one at all."""
    enabled: list[bool] = []

    class Recurrent(Plain):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(6, 6, batch_first=True)

        def spy(self, batch):
            enabled.append(torch.backends.cudnn.enabled)
            return self.training_step((self.rnn(batch[0])[0], batch[1]), 0)

        def training_step(self, batch, batch_idx):
            return super().training_step((self.rnn(batch[0])[0], batch[1]), batch_idx)

    fit(Recurrent(), spectrum(loss="spy"))
    assert enabled
    assert not any(enabled)
    assert torch.backends.cudnn.enabled


@BOTH
def test_a_progress_bar_is_shown_where_the_trainer_shows_one(fit, make, capsys):
    name = type(make()).__name__
    fit(Plain(), make())
    assert name not in capsys.readouterr().err
    fit(Plain(), make(), enable_progress_bar=True)
    assert name in capsys.readouterr().err


@BOTH
def test_a_second_fit_takes_its_own_batches(fit, make, tmp_path):
    class Small(Plain):
        def train_dataloader(self):
            return DataLoader(examples(3), batch_size=8)

    class Ends(Plain):
        def on_train_epoch_end(self):
            raise RuntimeError("in the middle of the fit")

    analysis = make(every_n_epochs=1)
    with pytest.raises(RuntimeError, match="in the middle"):
        fit(Ends(), analysis)
    fit(Small(), analysis)
    assert read(tmp_path / f"{analysis.name}.npz")["terms"] == 3


@BOTH
def test_batches_are_let_go_at_the_end(fit, make):
    """They are memory of the device."""
    alive = []

    class Spied(Plain):
        def spy(self, batch):
            alive.append(weakref.ref(batch[0]))
            return self.training_step(batch, 0)

    analysis = make(loss="spy")
    trainer = fit(Spied(), analysis)
    gc.collect()
    assert trainer.callbacks[0] is analysis
    assert alive
    assert not any(reference() is not None for reference in alive)


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": 0}, "batches is 0"),
        ({"every_n_epochs": 0}, "every_n_epochs is 0"),
        ({"split": "test"}, "split is 'test'.*'train' or 'val'"),
        ({"mode": "both"}, "mode is 'both'.*'eval' or 'train'"),
    ],
)
def test_bad_options_are_named(make, options, message):
    with pytest.raises(UsageError, match=message):
        make(**options)
