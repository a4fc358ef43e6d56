"""Optimizers that this project does not have plug in by class path, through ``fit`` as it is.

Once they are imported, a short name such as SGD is one of several classes, in the whole process: so
the tests of this file run in a process of their own, which the last one starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_opt.lightning_cli import OptLightningCLI

_HERE = "LIGHTNING_OPT_FOREIGN_OPTIMIZERS"
alone = pytest.mark.skipif(_HERE not in os.environ, reason="runs in a process of its own")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:(?s).*(By default only one Jsonargparse|deprecated in v4)"),
]


class Matrices(LightningModule):
    """A classifier of the digits whose parameters are all matrices, as Muon wants them."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 10, bias=False)]
        self.network = nn.Sequential(nn.Flatten(), *layers)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("val_loss", nn.functional.cross_entropy(self.network(images), labels))


FOREIGN = {
    "torch.optim.Muon": ["--optimizer.lr=0.02", "--optimizer.momentum=0.9"],
    "torch.optim.AdamW": ["--optimizer.lr=0.01"],
    "schedulefree.AdamWScheduleFree": ["--optimizer.lr=0.01"],
    "pytorch_optimizer.Lion": ["--optimizer.lr=0.003"],
    "pytorch_optimizer.Prodigy": ["--optimizer.lr=1.0"],
    "heavyball.AdamW": ["--optimizer.lr=0.01", "--optimizer.compile_step=false"],
    # HeavyBall's others compile their linear algebra in any case, which takes long.
}


def fit(folder: Path, optimizer: str, options: list[str], *callbacks: Callback) -> OptLightningCLI:
    pytest.importorskip(optimizer.split(".")[0])
    arguments = ["fit", "--model=Matrices", "--data=Digits", "--optimizer", optimizer, *options]
    arguments += ["--trainer.max_epochs=3", "--seed_everything=0", "--trainer.accelerator=cpu"]
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    return OptLightningCLI(arguments, trainer_overrides=quiet, save_config_callback=None)


@alone
@pytest.mark.parametrize("optimizer", FOREIGN)
def test_runs_through_fit(optimizer: str, tmp_path: Path) -> None:
    cli = fit(tmp_path, optimizer, FOREIGN[optimizer])
    assert type(cli.trainer.optimizers[0]).__name__ == optimizer.rsplit(".", 1)[1]
    # The loss of a network that knows nothing is log 10 = 2.3.
    assert cli.trainer.callback_metrics["val_loss"] < 1.5


class Modes(Callback):
    """Whether the optimizer was in training mode, at every batch of training and validation."""

    def __init__(self) -> None:
        self.training: set[bool] = set()
        self.validation: set[bool] = set()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.training.add(trainer.optimizers[0].param_groups[0]["train_mode"])

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.validation.add(trainer.optimizers[0].param_groups[0]["train_mode"])


@alone
def test_schedule_free_is_switched_between_training_and_evaluation(tmp_path: Path) -> None:
    """Validation and the checkpoint have the averaged weights, training the others."""
    modes = Modes()
    name = "schedulefree.AdamWScheduleFree"
    cli = fit(tmp_path, name, FOREIGN[name], modes)
    assert (modes.training, modes.validation) == ({True}, {False})

    (checkpoint,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    averaged = {name: weight.clone() for name, weight in cli.model.state_dict().items()}
    cli.trainer.optimizers[0].train()
    for name, weight in cli.model.state_dict().items():
        # To rounding: Schedule-Free computes the one from the other at every switch.
        torch.testing.assert_close(saved[name], averaged[name], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(weight, averaged[name], rtol=1e-2)


@alone
def test_a_default_that_stands_for_not_given_is_left_out(tmp_path: Path) -> None:
    """HeavyBall's; the optimizer gets its own default, and the saved configuration repeats it."""
    pytest.importorskip("heavyball")
    arguments = ["--model=Matrices", "--optimizer=heavyball.AdamW", "--seed_everything=0"]
    cli = OptLightningCLI(arguments, run=False, trainer_overrides={"logger": False})
    assert "promote" not in cli.resolved_config()
    assert "compile_step" not in cli.resolved_config()
    saved = tmp_path / "config.yaml"
    saved.write_text(cli.resolved_config())
    OptLightningCLI([f"--config={saved}"], run=False, trainer_overrides={"logger": False})


@pytest.mark.skipif(_HERE in os.environ, reason="is what started this process")
def test_foreign_optimizers_in_a_process_of_their_own() -> None:
    command = [sys.executable, "-m", "pytest", "-q", __file__]
    environment = {**os.environ, _HERE: "1"}
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert f"{len(FOREIGN) + 2} passed" in result.stdout
