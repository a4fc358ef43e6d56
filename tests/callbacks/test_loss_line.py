"""The line through known weights of a known loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from classifier import Plain, examples, read
from lightning_opt.callbacks import LossLine
from lightning_opt.errors import UsageError


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [param.detach().clone() for param in module.parameters()]


def losses(start: list[torch.Tensor], end: list[torch.Tensor], places: np.ndarray) -> list[float]:
    """Over the 22 examples, three batches of which the last is smaller."""
    module = Plain()
    x, y = examples().tensors
    values = []
    for a in places:
        with torch.no_grad():
            for param, first, last in zip(module.parameters(), start, end, strict=True):
                param.copy_(a * last + (1 - a) * first)
            values.append(F.cross_entropy(module.network(x), y).item())
    return values


def test_from_the_initial_weights_to_the_trained_ones(fit, tmp_path):
    module, line = Plain(lr=1.0), LossLine(resolution=5, reach=(-0.5, 1.5))
    start = weights(module)
    fit(module, line, max_epochs=2)
    result = line.result
    np.testing.assert_allclose(result.coefficients, [-0.5, 0, 0.5, 1, 1.5])
    exact = losses(start, weights(module), result.coefficients)
    np.testing.assert_allclose(result.values, exact, rtol=1e-5)
    assert result.values[3] < 0.8 * result.values[1]
    assert result.terms == 22
    assert (tmp_path / "line.png").read_bytes().startswith(b"\x89PNG")


def test_from_a_new_network(fit):
    """Which the layers' own initialization makes, and the seed chooses."""
    module, line = Plain(lr=1.0), LossLine(start="new", resolution=2, reach=(0.0, 1.0), seed=3)
    fit(module, line)
    alone = Plain(lr=1.0)
    fit(alone)
    assert all(map(torch.equal, weights(module), weights(alone)))
    torch.manual_seed(3)
    new = Plain()
    torch.manual_seed(3)
    for layer in (new.network[0], new.network[2]):
        layer.reset_parameters()
    exact = losses(weights(new), weights(module), line.result.coefficients)
    np.testing.assert_allclose(line.result.values, exact, rtol=1e-5)


def test_from_a_module_that_a_function_makes_and_a_perturbation(fit):
    def constant() -> Plain:
        module = Plain()
        for param in module.parameters():
            nn.init.constant_(param, 0.5)
        return module

    module = Plain()
    still = LossLine(start=constant, resolution=2, reach=(0.0, 1.0))
    moved = LossLine(start=constant, resolution=2, reach=(0.0, 1.0), perturbation=0.1, name="m")
    fit(module, still, moved)
    exact = losses(weights(constant()), weights(module), still.result.coefficients)
    np.testing.assert_allclose(still.result.values, exact, rtol=1e-5)
    difference = abs(moved.result.values[0] - still.result.values[0])
    assert 0 < difference < 0.5
    assert moved.result.values[1] == still.result.values[1]


def test_a_resumed_fit_remembers_where_it_started(fit, tmp_path):
    """From a checkpoint that loads without unpickling."""
    whole, first, second = (LossLine(resolution=3, reach=(0.0, 1.0)) for _ in range(3))

    class Ordered(Plain):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(examples(), batch_size=8)

    fit(Ordered(), whole, max_epochs=2)
    trainer = fit(Ordered(), first, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    torch.load(tmp_path / "first.ckpt", weights_only=True)
    fit(Ordered(), second, max_epochs=2, ckpt_path=tmp_path / "first.ckpt")
    np.testing.assert_array_equal(second.result.values, whole.result.values)
    assert first.result.values[2] != whole.result.values[2]


def test_a_layer_that_cannot_be_reset_is_named_before_training(fit):
    class Odd(Plain):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    with pytest.raises(UsageError, match=r"'scale' has no reset_parameters"):
        fit(Odd(), LossLine(start="new"))


def test_the_file_holds_what_the_docstring_says(fit, tmp_path):
    fit(Plain(), LossLine(resolution=4))
    arrays = read(tmp_path / "line.npz")
    assert set(arrays) == {
        "coefficients", "values", "start", "batchnorm", "loss", "terms", "parameters", "epoch",
        "step", "split", "mode", "seed",
    }  # fmt: skip
    assert all(f"``{key}``" in LossLine.__doc__ for key in arrays)
    assert str(arrays["start"]) == "initial"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "old"}, "start is 'old'"),
        ({"perturbation": -1.0}, "perturbation is -1.0"),
        ({"reach": (1.0, 0.0)}, r"reach is \(1.0, 0.0\)"),
        ({"resolution": 1}, "resolution is 1"),
        ({"batchnorm": "moved"}, "batchnorm is 'moved'"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"metrics": "acc"}, "metrics is 'acc'"),
    ],
)
def test_bad_options_are_named_at_construction(options, message):
    with pytest.raises(UsageError, match=message):
        LossLine(**options)
