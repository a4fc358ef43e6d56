"""Eigenvectors against those that the operator was made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_opt.geometry.eigenvectors import eigenvectors
from oracles import lanczos as oracle
from oracles.curvature import rotated

EIGENVALUES = torch.cat([torch.linspace(-9, 1, 297), torch.tensor([15.0, 30.0, 60.0])]).double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_largest_with_their_vectors(dtype):
    operator = oracle.Reflected(EIGENVALUES, dtype)
    values, residuals, vectors = eigenvectors(operator, count=3)
    np.testing.assert_allclose(values, [60, 30, 15], rtol=1e-5)
    assert vectors.shape == (3, 300)
    assert vectors.dtype == dtype
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3, dtype=dtype), atol=1e-5, rtol=0)
    axes = operator.coordinates(torch.eye(300, dtype=dtype))[[299, 298, 297]]
    overlaps = (vectors @ axes.T).abs()
    torch.testing.assert_close(overlaps, torch.eye(3, dtype=dtype), atol=60 * 1e-4 / 14, rtol=0)
    exact = (operator @ vectors.T - vectors.T * torch.tensor(values, dtype=dtype)).norm(dim=0)
    np.testing.assert_allclose(residuals, exact, rtol=0.01, atol=2e-5)
    assert (residuals <= 1e-4 * 60).all()


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_the_run_ends_when_they_are_good_enough(scale):
    operator = oracle.Reflected(EIGENVALUES * scale)
    taken = []
    for tolerance in (1e-2, 1e-4, 1e-9):
        operator.applied.clear()
        residuals = eigenvectors(operator, tolerance=tolerance).residuals
        assert (residuals <= tolerance * 60 * scale).all()
        taken.append(len(operator.applied))
    assert taken == sorted(taken)
    assert 2 < taken[0] < taken[2] < 40
    # No step was taken in vain.
    assert eigenvectors(operator, tolerance=0, steps=taken[2] - 1).residuals.max() > 6e-8 * scale


def test_too_few_steps_are_told_by_the_residuals():
    calls: list[None] = []
    operator = oracle.Reflected(EIGENVALUES)
    result = eigenvectors(operator, steps=4, progress=lambda: calls.append(None))
    assert len(calls) == 4
    assert result.residuals[1] > 1e-2


def test_an_unfinished_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_opt.geometry._run_file.pause", lambda took: 0.0)
    operator, path = oracle.Reflected(EIGENVALUES), tmp_path / "run.npz"
    whole = eigenvectors(operator)

    def interrupt() -> None:
        if len(operator.applied) == 6:
            raise KeyboardInterrupt

    operator.applied.clear()
    with pytest.raises(KeyboardInterrupt):
        eigenvectors(operator, resume=path, progress=interrupt)
    resumed = eigenvectors(operator, resume=path)
    assert torch.equal(resumed.vectors, whole.vectors)
    assert not list(tmp_path.iterdir())


def test_more_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="count is 3, but the operator has 2 distinct eigenvalues"):
        eigenvectors(rotated(torch.tensor([1.0, 1.0, 2.0, 2.0])), count=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"count": 5, "steps": 4}, "count is 5"),
        ({"tolerance": -1.0}, "tolerance is -1"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        eigenvectors(torch.eye(9), **options)
