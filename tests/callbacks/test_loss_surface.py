"""The surface of a LightningModule's loss against a loss that is known everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from classifier import read
from lightning_opt.callbacks import LossSurface
from lightning_opt.errors import UsageError
from lightning_opt.geometry import directions


class LeastSquares(pl.LightningModule):
    """A quadratic in its weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3)

    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        return (
            torch.randn(10, 5, generator=generator, dtype=torch.float64),
            torch.randn(10, 3, generator=generator, dtype=torch.float64),
        )

    def loss_terms(self, batch: Any) -> int:
        return len(batch[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.layer(batch[0]) - batch[1]).square().mean()

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*self.data()), batch_size=7)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("normalize", ["filter", "layer"])
def test_values_are_those_of_the_quadratic_in_the_right_places(fit, normalize):
    """A grid that is not square tells rows from columns."""
    module = LeastSquares()
    analysis = LossSurface(resolution=(3, 5), span=2.0, directions=normalize, seed=3)
    fit(module, analysis, precision="64-true")
    weight, bias = module.layer.weight.detach(), module.layer.bias.detach()
    (first, _), (second, _) = directions.random([weight, bias], normalize=normalize, seed=3)
    x, y = module.data()
    result = analysis.result
    assert result.values.shape == (3, 5)
    np.testing.assert_allclose(result.alphas, [-2, 0, 2])
    np.testing.assert_allclose(result.betas, [-2, -1, 0, 1, 2])
    for i, a in enumerate(result.alphas):
        for j, b in enumerate(result.betas):
            exact = (x @ (weight + a * first + b * second).T + bias - y).square().mean()
            assert result.values[i, j] == pytest.approx(exact.item(), rel=1e-12)
    assert result.terms == 10


def test_the_file_holds_what_the_docstring_says(fit, tmp_path):
    fit(LeastSquares(), LossSurface(resolution=(3, 4)), precision="64-true")
    arrays = read(tmp_path / "surface.npz")
    assert set(arrays) == {
        "alphas", "betas", "values", "evaluated", "tolerance", "clip", "batchnorm", "directions",
        "loss", "terms", "parameters", "epoch", "step",
        "split", "mode", "seed",
    }  # fmt: skip
    assert all(f"``{key}``" in LossSurface.__doc__ for key in arrays)
    assert str(arrays["directions"]) == "filter"
    assert (tmp_path / "surface.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "surface.html").exists()


def test_an_interactive_page_is_written_where_it_is_asked_for(fit, tmp_path):
    fit(LeastSquares(), LossSurface(resolution=(3, 4), interactive=True), precision="64-true")
    page = (tmp_path / "surface.html").read_text(encoding="utf-8")
    assert "plotly" in page.lower()
    assert '<script src="http' not in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": (1, 5)}, r"resolution is \(1, 5\)"),
        ({"resolution": (5,)}, "resolution is"),
        ({"span": 0.0}, "span is 0.0"),
        ({"span": float("nan")}, "span is nan"),
        ({"directions": "filters"}, "directions is 'filters'"),
    ],
)
def test_bad_options_are_named_at_construction(options, message):
    with pytest.raises(UsageError, match=message):
        LossSurface(**options)
