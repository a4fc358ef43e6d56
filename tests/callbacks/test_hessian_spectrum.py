"""The spectrum of a LightningModule's loss against the eigenvalues of its full Hessian."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

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
    # A Rademacher probe of n entries errs by the off-diagonal part alone.
    error = np.sqrt(2 * (np.square(matrix).sum() - np.square(matrix.diagonal()).sum()))
    assert abs(result.trace - exact.sum()) < 4 * error
    assert abs(float(np.load(tmp_path / "spectrum.npz")["trace"]) - result.trace) == 0


def test_training_mode_is_another_hessian(fit):
    """There BatchNorm uses each batch's own statistics and dropout is on."""
    eval_mode, train_mode = HessianSpectrum(steps=3), HessianSpectrum(steps=3, mode="train")
    fit(Convolutional(), eval_mode, train_mode, precision="64-true")
    assert abs(eval_mode.result.eigenvalues[0] - train_mode.result.eigenvalues[0]) > 1e-3


def test_the_file_holds_what_the_docstring_says(fit, tmp_path: Path):
    analysis = HessianSpectrum(steps=6, probes=2, top=3, bottom=2)
    fit(Convolutional(), analysis, precision="64-true")
    arrays = dict(np.load(tmp_path / "spectrum.npz", allow_pickle=False))
    assert set(arrays) == {
        "nodes", "weights", "eigenvalues", "residuals", "trace", "trace_stderr", "dimension",
        "reorthogonalized", "loss", "terms", "parameters", "epoch", "step", "split", "mode", "seed",
    }  # fmt: skip
    assert all(f"``{key}``" in HessianSpectrum.__doc__ for key in arrays)
    assert arrays["nodes"].shape == arrays["weights"].shape == (2, 6)
    assert arrays["eigenvalues"].shape == arrays["residuals"].shape == (5,)
    assert np.isfinite(arrays["trace_stderr"])


@pytest.mark.parametrize("options", [{"steps": 0}, {"probes": 0}, {"reorthogonalize": "some"}])
def test_bad_options_are_named_at_construction(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        HessianSpectrum(**options)
