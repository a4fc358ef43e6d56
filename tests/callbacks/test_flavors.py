"""Every callback in both flavors of Lightning, from Python and from YAML."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from classifier import Plain, other_plain
from lightning_opt.callbacks import (
    EvaluationWeights,
    FisherScale,
    HessianSpectrum,
    LossLine,
    LossSurface,
    ScheduleLength,
    SVRGSnapshot,
    TrainingCost,
    analyze,
)
from lightning_opt.errors import UsageError
from lightning_opt.optimizers import SVRG, Lookahead

pytest.importorskip("lightning.pytorch")


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning leaves it in the environment: here, no longer than for a test."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


FLAVORS = pytest.mark.parametrize("flavor", ["pytorch_lightning", "lightning.pytorch"])
OPTIONS: dict[str, dict[str, Any]] = {
    "EvaluationWeights": {},
    "FisherScale": {},
    "ScheduleLength": {},
    "SVRGSnapshot": {"optional": True},
    "HessianSpectrum": {"steps": 3, "batches": 1, "every_n_epochs": 1},
    "LossLine": {"resolution": 3, "batches": 1},
    "LossSurface": {"resolution": [3, 3], "batches": 1},
    "TrainingCost": {"warmup": 1},
}
CLASSES = (
    EvaluationWeights,
    FisherScale,
    ScheduleLength,
    SVRGSnapshot,
    HessianSpectrum,
    LossLine,
    LossSurface,
    TrainingCost,
)
FILES = {f"{name}.npz" for name in ("spectrum", "spectrum-epoch=0", "spectrum-history")}
FILES |= {"line.npz", "surface.npz", "cost.npz"}


def module_class(flavor: str) -> type[Any]:
    return Plain if flavor == "pytorch_lightning" else other_plain()


def quiet(folder: Path) -> dict[str, Any]:
    return {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "default_root_dir": str(folder),
    }


@FLAVORS
def test_from_python(flavor, tmp_path):
    callbacks = [kind(**OPTIONS[kind.__name__]) for kind in CLASSES]
    trainer = importlib.import_module(flavor).Trainer(**quiet(tmp_path), callbacks=callbacks)
    trainer.fit(module_class(flavor)())
    assert {path.name for path in tmp_path.glob("*.npz")} == FILES


@FLAVORS
def test_from_yaml(flavor, tmp_path, monkeypatch):
    """The flavor's own LightningCLI, which knows classes by their bases."""
    callbacks = [
        {"class_path": f"lightning_opt.callbacks.{name}", "init_args": options}
        for name, options in OPTIONS.items()
    ]
    config = tmp_path / "config.yaml"
    trainer = {**quiet(tmp_path), "callbacks": callbacks}
    config.write_text(yaml.safe_dump({"seed_everything": 0, "trainer": trainer}))
    cli = importlib.import_module(f"{flavor}.cli").LightningCLI
    module = module_class(flavor)
    monkeypatch.setattr("sys.argv", ["program", "fit", "--config", str(config)])
    cli(module, save_config_callback=None)
    assert {path.name for path in tmp_path.glob("*.npz")} == FILES


@FLAVORS
def test_the_same_numbers(flavor, tmp_path):
    spectrum = HessianSpectrum(steps=4, batches=2)
    importlib.import_module(flavor).seed_everything(0, verbose=False)
    trainer = importlib.import_module(flavor).Trainer(**quiet(tmp_path), callbacks=[spectrum])
    trainer.fit(module_class(flavor)())
    np.testing.assert_array_equal(spectrum.result.eigenvalues, _reference(tmp_path))


def _reference(folder: Path) -> Any:
    import pytorch_lightning as pl

    pl.seed_everything(0, verbose=False)
    spectrum = HessianSpectrum(steps=4, batches=2, name="reference")
    pl.Trainer(**quiet(folder), callbacks=[spectrum]).fit(Plain())
    return spectrum.result.eigenvalues


@FLAVORS
def test_optimizers_that_need_callbacks(flavor, tmp_path):
    """SVRG inside of Lookahead: a snapshot before the first step, slow weights at the end."""

    def build(params: Any, lr: float) -> Lookahead:
        return Lookahead(params, lambda inner: SVRG(inner, lr=lr), k=2)

    trainer = importlib.import_module(flavor).Trainer(
        **quiet(tmp_path), callbacks=[EvaluationWeights(), SVRGSnapshot()]
    )
    trainer.fit(module_class(flavor)(build))
    assert trainer.optimizers[0].param_groups[0]["train_mode"] is False


@FLAVORS
@pytest.mark.parametrize("make", [HessianSpectrum, LossLine, LossSurface])
def test_split_parameters_are_refused(flavor, make):
    strategies = importlib.import_module(f"{flavor}.strategies")
    for name in ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"):
        strategy = object.__new__(getattr(strategies, name))
        trainer: Any = SimpleNamespace(strategy=strategy, callbacks=[], global_step=0)
        with pytest.raises(UsageError, match=name):
            make().setup(trainer, Plain(), "fit")


@FLAVORS
@pytest.mark.parametrize("option", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}])
def test_what_makes_svrg_wrong_is_refused(flavor, option, tmp_path):
    trainer = importlib.import_module(flavor).Trainer(
        **quiet(tmp_path), **option, callbacks=[SVRGSnapshot()]
    )
    with pytest.raises(UsageError, match=next(iter(option))):
        trainer.fit(module_class(flavor)(SVRG))


@FLAVORS
def test_own_gradient_clipping_is_seen(flavor, tmp_path):
    class Clips(module_class(flavor)):  # type: ignore[misc]
        def configure_gradient_clipping(self, *args, **kwargs):
            """Does as it likes."""

    trainer = importlib.import_module(flavor).Trainer(**quiet(tmp_path), callbacks=[SVRGSnapshot()])
    with pytest.raises(UsageError, match=r"Clips\.configure_gradient_clipping"):
        trainer.fit(Clips(SVRG))


@FLAVORS
def test_analyze_takes_the_trainer_of_the_modules_flavor(flavor, tmp_path):
    surface = LossSurface(resolution=(3, 3), batches=1)
    trainer = analyze(module_class(flavor)(), surface, **quiet(tmp_path))
    assert type(trainer).__module__.startswith(flavor)
    assert surface.result.values.shape == (3, 3)
