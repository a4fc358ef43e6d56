"""Lines and planes against losses that are known everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_opt.geometry import line, plane
from oracles.curvature import rotated


@pytest.fixture
def quadratic():
    """A rotated quadratic in two tensors, its minimum away from zero, and two directions."""
    matrix = rotated(torch.tensor([1.0, 2.0, 5.0, 9.0, 20.0, 40.0]))
    generator = torch.Generator().manual_seed(1)

    def draw() -> list[torch.Tensor]:
        return [
            torch.randn(2, 2, generator=generator, dtype=torch.float64),
            torch.randn(2, generator=generator, dtype=torch.float64),
        ]

    params, first, second = draw(), draw(), draw()

    def of(theta: list[torch.Tensor]) -> torch.Tensor:
        flat = torch.cat([t.reshape(-1) for t in theta])
        return flat @ matrix @ flat / 2 + flat.sum()

    return of, params, first, second


def at(params, first, second, a, b):
    return [p + a * d + b * e for p, d, e in zip(params, first, second, strict=True)]


def test_a_plane_that_is_not_square_has_the_exact_values_in_the_right_places(quadratic):
    of, params, first, second = quadratic
    alphas, betas = np.linspace(-2, 1, 4), np.linspace(-0.5, 3, 7)
    result = plane(lambda _: of(params), params, [None], [first, second], alphas, betas)
    expected = [[of(at(params, first, second, a, b)).item() for b in betas] for a in alphas]
    assert result.values.shape == (4, 7)
    np.testing.assert_allclose(result.values, expected, rtol=1e-12)
    np.testing.assert_array_equal(result.alphas, alphas)
    np.testing.assert_array_equal(result.betas, betas)


def test_a_line_runs_from_start_to_end_exactly(quadratic):
    of, params, start, end = quadratic
    coefficients = [-0.5, 0.0, 0.3, 1.0, 1.5]
    result = line(lambda _: of(params), params, [None], start, end, coefficients)
    blend = [
        of([(1 - c) * s + c * e for s, e in zip(start, end, strict=True)]).item()
        for c in coefficients
    ]
    np.testing.assert_allclose(result.values, blend, rtol=1e-12)
    assert result.values[1] == of(start).item()
    assert result.values[3] == of(end).item()


def test_a_line_may_end_at_the_parameters_themselves(quadratic):
    """They change in place while the line is walked, so the end has to be a copy."""
    of, params, start, _ = quadratic
    here = of(params).item()
    assert line(lambda _: of(params), params, [None], start, params, [0.5, 1]).values[1] == here


def test_uneven_batches_are_weighted_by_their_terms():
    x = torch.zeros(1)
    result = plane(
        lambda b: ((x - b).square().mean(), len(b)),
        [x],
        [torch.tensor([1.0]), torch.tensor([2.0, 3.0, 4.0])],
        [[torch.ones(1)], [torch.zeros(1)]],
        [0.0, 1.0],
        [0.0],
    )
    np.testing.assert_allclose(result.values[:, 0], [30 / 4, 14 / 4])
    assert result.terms == 4


def test_a_batch_without_terms_counts_for_nothing():
    """The mean over no masked token is NaN; it must not spread."""
    x, one = torch.zeros(1), [torch.ones(1)]
    result = line(lambda n: (x.sum() / n * n, n), [x], [2, 0], one, one, [0.0])
    assert result.values.tolist() == [1.0]


def test_nan_and_infinity_are_stored_as_they_are():
    x = torch.zeros(1)
    one, none = [torch.ones(1)], [torch.zeros(1)]
    result = plane(lambda _: (1 / x).log().sum(), [x], [None], [one, none], [-1, 0, 1], [0.0])
    assert np.isnan(result.values[0, 0])
    assert result.values[1:, 0].tolist() == [np.inf, 0.0]


def boom(_):
    raise RuntimeError("boom")


@pytest.mark.parametrize("loss", [lambda _: torch.zeros(()), boom])
def test_weights_are_restored_bitwise_also_after_an_exception(loss):
    """Adding and subtracting a direction would leave roundoff."""
    layer = nn.Linear(50, 50)
    before = [p.detach().clone() for p in layer.parameters()]
    directions = [[torch.randn_like(p) for p in before] for _ in range(2)]
    for analysis in (
        lambda: plane(loss, layer.parameters(), [None], directions, [0.1, 0.7], [0.3]),
        lambda: line(loss, layer.parameters(), [None], *directions, [0.1, 0.7]),
    ):
        try:
            analysis()
        except RuntimeError:
            assert loss is boom
        assert all(map(torch.equal, layer.parameters(), before))
        assert all(p.requires_grad and p.grad is None for p in layer.parameters())


def test_points_do_not_drift():
    """Every point starts from the pristine weights: a grid's last point equals that point alone."""
    layer = nn.Linear(20, 1)
    directions = [[torch.randn_like(p) for p in layer.parameters()] for _ in range(2)]
    x = torch.randn(8, 20)
    axis = np.linspace(-1, 1, 15)
    whole = plane(lambda b: layer(b).mean(), layer.parameters(), [x], directions, axis, axis)
    alone = plane(
        lambda b: layer(b).mean(), layer.parameters(), [x], directions, axis[-1:], axis[-1:]
    )
    assert whole.values[-1, -1] == alone.values[0, 0]


def test_no_graph_is_recorded_and_progress_counts_points():
    x = torch.zeros(1, requires_grad=True)
    calls: list[bool] = []

    def loss(_):
        calls.append(torch.is_grad_enabled())
        return x.sum()

    ticks: list[None] = []
    tick = lambda: ticks.append(None)  # noqa: E731
    one = [torch.ones(1)]
    plane(loss, [x], [None], [one, one], [0, 1], [0, 1, 2], progress=tick)
    line(loss, [x], [None], one, one, [0, 1], progress=tick)
    assert calls == [False] * 8
    assert len(ticks) == 8


ONE = [torch.ones(1)]


@pytest.mark.parametrize(
    ("directions", "alphas", "message"),
    [
        ([ONE], [0.0], "directions has 1 entries"),
        ([ONE, [torch.ones(2)]], [0.0], r"directions\[1\]\[0\] has shape \(2,\)"),
        ([ONE, [*ONE, *ONE]], [0.0], r"directions\[1\] has 2 tensors"),
        ([ONE, ONE], [], "alphas has shape"),
        ([ONE, ONE], [np.nan], "alphas has shape"),
        ([ONE, ONE], [[0.0]], "alphas has shape"),
    ],
)
def test_bad_planes_are_named(directions, alphas, message):
    with pytest.raises(ValueError, match=message):
        plane(lambda _: torch.zeros(()), ONE, [None], directions, alphas, [0.0])


def test_bad_lines_are_named():
    with pytest.raises(ValueError, match=r"start\[0\] has shape \(2,\)"):
        line(lambda _: torch.zeros(()), ONE, [None], [torch.ones(2)], ONE, [0.0])
    with pytest.raises(ValueError, match="coefficients"):
        line(lambda _: torch.zeros(()), ONE, [None], ONE, ONE, [])
