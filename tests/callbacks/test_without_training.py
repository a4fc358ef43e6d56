"""From a checkpoint, or a module as it is: the numbers are those of the end of the fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch.nn import functional as F
from torch.utils.data import DataLoader

from classifier import Everything, Plain, examples, plain, read
from lightning_opt import lightning_cli
from lightning_opt.callbacks import HessianSpectrum, LossLine, LossSurface, analyze
from lightning_opt.errors import UsageError


class Validated(Plain):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def val_dataloader(self) -> Any:
        return DataLoader(examples(10), batch_size=4)


def analyses() -> list[Any]:
    return [
        HessianSpectrum(steps=5, batches=2),
        LossSurface(resolution=(3, 3), batches=2),
        LossLine(resolution=3, batches=2),
        HessianSpectrum(steps=5, batches=2, split="val", name="val"),
    ]


@pytest.fixture
def trained(fit, tmp_path) -> tuple[Path, list[Any]]:
    """A checkpoint, and the results that its fit had."""
    done = analyses()
    trainer = fit(Validated(), *done, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    return tmp_path / "end.ckpt", done


def same(first: list[Any], second: list[Any]) -> None:
    for one, other in zip(first, second, strict=True):
        arrays, others = one.result.to_arrays(), other.result.to_arrays()
        for key, value in arrays.items():
            np.testing.assert_array_equal(others[key], value, err_msg=f"{one.name} {key}")


def trainer(folder: Path, callbacks: list[Any], **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(
        **quiet, **options, logger=False, callbacks=callbacks, default_root_dir=folder
    )


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validate(trained, tmp_path, inference_mode):
    """On the training batches too, which validate itself does not load."""
    path, done = trained
    again, folder = analyses(), tmp_path / "again"
    runs = trainer(folder, again, inference_mode=inference_mode, enable_checkpointing=False)
    (metrics,) = runs.validate(Validated(), ckpt_path=path, verbose=False)
    same(done, again)
    assert set(metrics) == {"val_loss"}
    arrays = read(folder / "surface.npz")
    assert (arrays["step"], arrays["epoch"]) == (6, 2)  # the checkpoint's


def test_validate_leaves_everything_as_it_was(tmp_path):
    module = Everything()
    before = plain(module.state_dict())
    runs = trainer(tmp_path, [LossSurface(resolution=(2, 2), mode="train")])
    runs.validate(module, verbose=False)
    assert plain(module.state_dict()) == before
    assert module.count == 0
    assert module.training


def test_validate_with_a_datamodule_that_sets_up_by_stage(tmp_path):
    class Data(pl.LightningDataModule):
        def setup(self, stage: str) -> None:
            setattr(self, stage, examples())

        def train_dataloader(self) -> Any:
            return DataLoader(self.fit, batch_size=8)

        def val_dataloader(self) -> Any:
            return DataLoader(self.validate, batch_size=8)

    class Bare(Validated):
        train_dataloader = pl.LightningModule.train_dataloader
        val_dataloader = pl.LightningModule.val_dataloader

    spectrum = HessianSpectrum(steps=2)
    trainer(tmp_path, [spectrum]).validate(Bare(), datamodule=Data(), verbose=False)
    assert read(tmp_path / "spectrum.npz")["terms"] == 22


def test_validate_without_training_data_is_told_before_any_work(tmp_path):
    class Bare(Validated):
        train_dataloader = pl.LightningModule.train_dataloader

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise AssertionError

    with pytest.raises(UsageError, match=r"split='train'.*datamodule, or use split='val'"):
        trainer(tmp_path, [HessianSpectrum()]).validate(Bare(), verbose=False)


def test_validate_in_training_mode_uses_it(tmp_path):
    modes = set()

    class Spied(Validated):
        def spy(self, batch: Any) -> Any:
            modes.add(self.network.training)
            return self.training_step(batch, 0)

    spectrum = HessianSpectrum(steps=1, loss="spy", mode="train")
    trainer(tmp_path, [spectrum]).validate(Spied(), verbose=False)
    assert modes == {True}


def test_a_line_needs_to_know_where_training_started(tmp_path):
    with pytest.raises(UsageError, match="start='new'"):
        trainer(tmp_path, [LossLine()]).validate(Validated(), verbose=False)
    with pytest.raises(UsageError, match="start='new'"):
        analyze(Plain(), LossLine(), default_root_dir=tmp_path, accelerator="cpu")


def test_analyze_a_checkpoint(trained, tmp_path):
    path, done = trained
    again, module = analyses(), Validated()
    for param in module.parameters():
        torch.nn.init.zeros_(param)
    options = {"accelerator": "cpu", "default_root_dir": tmp_path / "again"}
    analyze(module, *again, ckpt_path=path, enable_progress_bar=False, **options)
    same(done, again)
    arrays = read(tmp_path / "again" / "spectrum.npz")
    assert (arrays["step"], arrays["epoch"]) == (6, 2)


def test_analyze_a_module_as_it_is_on_any_data(tmp_path):
    """Without a validation_step; no training step is taken."""
    module = Plain()
    before = plain(module.state_dict())
    surface = LossSurface(resolution=(3, 3))
    options = {"accelerator": "cpu", "default_root_dir": tmp_path, "enable_progress_bar": False}
    trainer = analyze(module, surface, data=DataLoader(examples(5), batch_size=5), **options)
    x, y = examples(5).tensors
    exact = F.cross_entropy(module.network(x), y).item()
    assert surface.result.values[1, 1] == pytest.approx(exact, rel=1e-6)
    assert plain(module.state_dict()) == before
    assert trainer.global_step == 0


def test_from_the_command_line(tmp_path, monkeypatch):
    """``lightning-opt validate`` with the callbacks in the configuration."""
    monkeypatch.chdir(tmp_path)
    callbacks = [
        {
            "class_path": "lightning_opt.callbacks.HessianSpectrum",
            "init_args": {"steps": 2, "batches": 1},
        }
    ]
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    config = {"trainer": {**options, "callbacks": callbacks, "limit_val_batches": 1}}
    (tmp_path / "extra.yaml").write_text(yaml.safe_dump(config))
    lightning_cli.run(["validate", "--config", "digits", "--config", "extra.yaml"])
    assert (tmp_path / "spectrum.npz").exists()
