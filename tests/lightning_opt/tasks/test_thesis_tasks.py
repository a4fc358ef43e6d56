"""Every vision task of the thesis, as shipped: it fits, on CIFAR-100 in its true format."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from cifar import write_cifar100
from classifier import read
from lightning_opt.cli import main
from lightning_opt.configs import shipped
from lightning_opt.lightning_cli import OptLightningCLI

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

# What makes a step take less than a second; the sizes that the thesis needs are in a slow test.
SMALL = {"cifar100_inception_v3": ["--model.network.image_size=75"]}
HEAVY = {"cifar100_vgg11"}
VISION = [
    pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else [])
    for name in shipped("tasks")
    if name.startswith("cifar100_")
]


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    write_cifar100(tmp_path / "data", monkeypatch, train=14, test=5)
    monkeypatch.chdir(tmp_path)


def arguments(name: str, *more: str) -> list[str]:
    quiet = ["accelerator=cpu", "enable_progress_bar=false", "enable_model_summary=false"]
    return [
        *("--config", name, "--optimizer", "SGD", "--optimizer.lr=0.01"),
        *("--data.batch_size=3", "--data.validation=5"),
        *(f"--trainer.{option}" for option in quiet),
        *SMALL.get(name, []),
        *more,
    ]


def test_all_tasks_of_the_thesis_are_shipped():
    networks = {"resnet18", "efficientnet_b0", "inception_v3", "vgg11"}
    assert {f"cifar100_{network}" for network in networks} < set(shipped("tasks"))


@pytest.mark.parametrize("name", VISION)
def test_it_is_as_the_thesis_has_it(name: str):
    config = yaml.safe_load(shipped("tasks")[name].read_text())
    assert config["trainer"] == {"max_epochs": 200 if name.endswith("_200") else 40}
    assert config["data"]["init_args"] == {"root": "data", "batch_size": 128, "crop_padding": 4}
    assert config["model"]["init_args"]["network"]["init_args"]["num_classes"] == 100
    assert ("lr_scheduler" in config) is name.endswith("_200")


@pytest.mark.parametrize("name", VISION)
def test_a_trial_run(name: str):
    assert main(["fit", *arguments(name), "--trainer.fast_dev_run=true"]) == 0


@pytest.mark.slow
def test_a_trial_run_at_the_full_size_of_inception(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(SMALL, "cifar100_inception_v3")
    assert main(["fit", *arguments("cifar100_inception_v3"), "--trainer.fast_dev_run=true"]) == 0


@pytest.mark.parametrize("name", [task for task in VISION if "_200" not in str(task)])
def test_it_trains_checkpoints_reloads_and_is_looked_at(name: str):
    """Lanczos and the plane on one batch of three images."""
    looks = ["--trainer.callbacks+=HessianSpectrum", "--trainer.callbacks.steps=2"]
    looks += ["--trainer.callbacks.samples=1", "--trainer.callbacks.batches=1"]
    looks += ["--trainer.callbacks+=LossSurface", "--trainer.callbacks.resolution=[3,3]"]
    looks += ["--trainer.callbacks.batches=1"]
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=out"]
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    assert main(["fit", *arguments(name, *logger, *short, *looks)]) == 0

    (spectrum,) = Path("out").rglob("spectrum.npz")
    (surface,) = Path("out").rglob("surface.npz")
    assert read(spectrum)["terms"] == 3 and read(spectrum)["residuals"].size
    assert read(surface)["values"].shape == (3, 3)
    # At the middle of the plane are the trained weights.
    middle, at_rest = read(surface)["values"][1, 1], read(spectrum)["loss"]
    np.testing.assert_allclose(middle, at_rest, rtol=1e-4)

    (logged,) = Path("out").rglob("metrics.csv")
    with logged.open() as file:
        (at_the_end,) = (float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"])
    (checkpoint,) = Path("out").rglob("*.ckpt")
    cli = OptLightningCLI(
        ["--seed_everything=1", *arguments(name)], run=False, trainer_overrides={"logger": False}
    )
    (metrics,) = cli.trainer.validate(cli.model, cli.datamodule, str(checkpoint), verbose=False)
    assert metrics["val_loss"] == pytest.approx(at_the_end)
