"""The spectrum of a LightningModule's loss against the eigenvalues of its full Hessian."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from classifier import Plain, examples, read
from lightning_opt.callbacks import HessianSpectrum
from oracles.curvature import full_hessian


class Convolutional(pl.LightningModule):
    """Some hundred parameters, BatchNorm and dropout, trained on uneven batches."""

    def __init__(self, freeze: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.2), nn.Flatten(),
            nn.Linear(48, 4),
        )  # fmt: skip
        self.network[0].requires_grad_(not freeze)

    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(30, 1, 6, 6, generator=generator, dtype=torch.float64)
        return x, torch.randint(0, 4, (30,), generator=generator)

    def loss_terms(self, batch: Any) -> int:
        return len(batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*self.data()), batch_size=13, shuffle=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)


@pytest.mark.parametrize("freeze", [False, True])
def test_it_agrees_with_the_full_hessian_of_the_modules_loss(fit, freeze, tmp_path):
    """Three uneven batches, 13, 13 and 4: the Hessian of their union."""
    module, analysis = Convolutional(freeze), HessianSpectrum(steps=250)
    fit(module, analysis, precision="64-true", max_epochs=2)
    x, y = module.data()
    module.eval()
    matrix = full_hessian(module.network, lambda net: F.cross_entropy(net(x), y)).numpy()
    exact = np.linalg.eigvalsh(matrix)
    result = analysis.result
    assert result.dimension == len(exact) == (202 if freeze else 232)
    np.testing.assert_allclose(result.eigenvalues[:5], exact[::-1][:5], rtol=1e-9)
    np.testing.assert_allclose(result.eigenvalues[5:], exact[:5][::-1], rtol=1e-6)
    nodes = result.nodes[np.isfinite(result.nodes)]
    assert np.abs(nodes[:, None] - exact).min(axis=1).max() < 1e-7 * exact[-1]
    # The run knows nearly all of the spectrum, which leaves the samples no noise.
    np.testing.assert_allclose(result.trace, exact.sum(), rtol=1e-6)
    assert abs(float(read(tmp_path / "spectrum.npz")["trace"]) - result.trace) == 0


def test_training_mode_is_another_hessian(fit):
    """There BatchNorm uses each batch's own statistics and dropout is on."""
    eval_mode, train_mode = (
        HessianSpectrum(steps=3),
        HessianSpectrum(steps=3, mode="train", name="t"),
    )
    fit(Convolutional(), eval_mode, train_mode, precision="64-true")
    assert abs(eval_mode.result.eigenvalues[0] - train_mode.result.eigenvalues[0]) > 1e-3


def test_the_file_holds_what_the_docstring_says(fit, tmp_path: Path):
    analysis = HessianSpectrum(steps=6, probes=2, top=3, bottom=2)
    fit(Convolutional(), analysis, precision="64-true")
    arrays = read(tmp_path / "spectrum.npz")
    assert set(arrays) == {
        "nodes", "weights", "eigenvalues", "residuals", "trace", "trace_stderr", "dimension",
        "reorthogonalized", "loss", "terms", "parameters", "epoch", "step", "split", "mode", "seed",
    }  # fmt: skip
    assert all(f"``{key}``" in HessianSpectrum.__doc__ for key in arrays)
    assert arrays["nodes"].shape == arrays["weights"].shape == (2, 6)
    assert arrays["eigenvalues"].shape == arrays["residuals"].shape == (5,)
    assert np.isfinite(arrays["trace_stderr"])


class Counted(HessianSpectrum):
    """Keeps how much work was announced, and done."""

    announced = done = 0

    def _analyze(self, problem: Any) -> Any:
        @contextmanager
        def progress(total: int) -> Any:
            self.announced = total
            yield self.tick

        return super()._analyze(replace(problem, progress=progress))

    def tick(self) -> None:
        self.done += 1


def test_samples_give_the_trace_an_error_bar_and_change_nothing_else(fit):
    five, none = Counted(steps=40, name="five"), Counted(steps=40, samples=0, name="none")
    module = Convolutional()
    fit(module, five, none, precision="64-true")
    assert (five.announced, five.done) == (40 + 5, 40 + 5)
    assert (none.announced, none.done) == (40, 40)
    np.testing.assert_array_equal(five.result.nodes, none.result.nodes)
    assert np.isnan(none.result.trace_stderr)
    x, y = module.data()
    module.eval()
    exact = full_hessian(module.network, lambda net: F.cross_entropy(net(x), y)).trace().item()
    assert 0 < five.result.trace_stderr < 0.1 * exact
    assert abs(five.result.trace - exact) < 4 * five.result.trace_stderr


@pytest.mark.parametrize(("samples", "work"), [(5, 3), (0, 2)])
def test_a_trial_takes_two_steps_and_one_sample(fit, samples, work):
    analysis = Counted(samples=samples)
    fit(Plain(), analysis, fast_dev_run=True)
    assert analysis.announced == analysis.done == work


BAD: list[dict[str, Any]] = [{"steps": 0}, {"probes": 0}, {"samples": -1}]
BAD += [{"reorthogonalize": "some"}]


@pytest.mark.parametrize("options", BAD)
def test_bad_options_are_named_at_construction(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        HessianSpectrum(**options)


class Scheduled(Plain):
    """Halves its rate after every epoch; two parameter groups."""

    def train_dataloader(self) -> Any:
        return DataLoader(examples(), batch_size=8)

    def configure_optimizers(self) -> Any:
        first, last = self.network[0], self.network[2]
        groups = [{"params": first.parameters(), "lr": 0.5}, {"params": last.parameters()}]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def history(folder: Path) -> dict[str, np.ndarray]:
    return read(folder / "spectrum-history.npz")


def test_sharpness_over_time(fit, tmp_path):
    """A row for each analysis; the one at the end repeats the last epoch's."""
    analysis = HessianSpectrum(steps=6, top=2, bottom=1, batches=3, every_n_epochs=2)
    fit(Scheduled(), analysis, max_epochs=5)
    rows = history(tmp_path)
    np.testing.assert_array_equal(rows["epochs"], [1, 3, 5])
    np.testing.assert_array_equal(rows["steps"], [6, 12, 15])
    np.testing.assert_array_equal(rows["learning_rates"], [0.25, 0.0625, 0.03125])
    for index, name in enumerate(("spectrum-epoch=1", "spectrum-epoch=3", "spectrum")):
        arrays = read(tmp_path / f"{name}.npz")
        np.testing.assert_array_equal(rows["eigenvalues"][index], arrays["eigenvalues"][:2])
        np.testing.assert_array_equal(rows["residuals"][index], arrays["residuals"][:2])
        assert rows["trace"][index] == arrays["trace"]
        assert rows["losses"][index] == arrays["loss"]
    assert all(f"``{key}``" in HessianSpectrum.__doc__ for key in rows)
    assert (tmp_path / "spectrum-history.png").read_bytes().startswith(b"\x89PNG")


def test_an_end_that_was_an_epochs_end_is_one_row(fit, tmp_path):
    fit(Scheduled(), HessianSpectrum(steps=2, every_n_epochs=1), max_epochs=2)
    np.testing.assert_array_equal(history(tmp_path)["steps"], [3, 6])


def test_the_history_goes_on_after_a_resume_and_not_into_another_fit(fit, tmp_path):
    options: dict[str, Any] = {"steps": 3, "batches": 3, "every_n_epochs": 1}
    whole = fit(Scheduled(), HessianSpectrum(**options), max_epochs=3)
    expected = history(tmp_path)
    part = tmp_path / "part.ckpt"
    trainer = fit(Scheduled(), HessianSpectrum(**options), max_epochs=2)
    trainer.save_checkpoint(part)
    torch.load(part, weights_only=True)
    again = HessianSpectrum(**options)
    fit(Scheduled(), again, max_epochs=3, ckpt_path=part)
    for key, value in expected.items():
        np.testing.assert_array_equal(history(tmp_path)[key], value, err_msg=key)
    fit(Scheduled(), again, max_epochs=1)
    assert len(history(tmp_path)["steps"]) == 1
    assert whole.global_step == 9


def test_the_history_goes_on_where_the_same_trainer_does(fit, tmp_path):
    module = Scheduled()
    trainer = fit(module, HessianSpectrum(steps=2, every_n_epochs=1), max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module)
    np.testing.assert_array_equal(history(tmp_path)["steps"], [3, 6])


def test_a_history_without_eigenvalues(fit, tmp_path):
    options: dict[str, Any] = {"reorthogonalize": "none", "every_n_epochs": 1}
    fit(Scheduled(), HessianSpectrum(steps=3, **options), max_epochs=2)
    assert np.isnan(history(tmp_path)["eigenvalues"]).all()


def test_an_analysis_that_was_killed_goes_on(fit, tmp_path, monkeypatch):
    """Its state is in the file named, and gone at the end."""
    monkeypatch.setattr("lightning_opt.geometry._run_file.pause", lambda took: 0.0)
    path = tmp_path / "state" / "run.npz"

    class Killed(HessianSpectrum):
        def _analyze(self, problem: Any) -> Any:
            calls = iter(range(5 + 4))  # behind the samples
            original = problem.progress

            @contextmanager
            def progress(total: int) -> Any:
                with original(total):
                    yield lambda: next(calls)  # the fifth step raises StopIteration

            return super()._analyze(replace(problem, progress=progress))

    module = Scheduled()
    with pytest.raises(StopIteration):
        fit(module, Killed(steps=8, resume=str(path)))
    assert path.exists()
    assert not (tmp_path / "spectrum.npz").exists()
    again, whole = HessianSpectrum(steps=8, resume=str(path)), HessianSpectrum(steps=8, name="w")
    fit(Scheduled(), again, whole)
    assert not path.exists()
    np.testing.assert_array_equal(again.result.nodes, whole.result.nodes)
    assert again.result.trace == whole.result.trace
