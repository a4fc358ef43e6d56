"""Adaptive planes against the full grid: within the tolerance, with a fifth of the evaluations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from lightning_opt.geometry import adaptive, directions, plane

AXIS = np.linspace(-1, 1, 51)
A, B = np.meshgrid(AXIS, AXIS, indexing="ij")


def turned(angle):
    return np.cos(angle) * A + np.sin(angle) * B, np.cos(angle) * B - np.sin(angle) * A


def bumps(cells):
    """One period in so many cells of the grid."""
    wave = 2 * np.pi / (cells * (AXIS[1] - AXIS[0]))
    return np.cos(wave * A) * np.cos(wave * B)


U, V = turned(0.5)
RADIUS = A**2 + B**2

SMOOTH = {
    "bowl": U**2 + V**2,
    "narrow bowl": U**2 + 1000 * V**2,
    "bowl with its minimum aside": (U - 0.4) ** 2 + 7 * (V + 0.3) ** 2 + 0.5,
    "Rosenbrock": (1 - 1.5 * A) ** 2 + 100 * (1.5 * B - (1.5 * A) ** 2) ** 2,
    "three minima": 8 * (A**2 - 0.3) ** 2 + 3 * (B**2 + 0.3 * A) ** 2,
    "explosion": np.exp(5 * (RADIUS + 0.5 * A * B)),
    "plateau": 1 - np.exp(-8 * RADIUS),
    "two plateaus": np.tanh(6 * (A + 0.2 * B)),
    "cone": np.hypot(A, B),
    "kink": np.abs(U - 0.13) + V**2,
    "bumpy bowl": RADIUS + 0.1 * bumps(15),
    "constant": np.full_like(A, 2.0),
    "infinite far out": np.where(RADIUS > 1.2, np.inf, np.exp(4 * RADIUS)),
    "half is NaN": np.where(A + B > 0.5, np.nan, RADIUS),
    "hole": np.where(np.hypot(A - 0.3, B + 0.2) < 0.25, np.nan, RADIUS + B**2),
}
ROUGH = {
    "diamond": np.abs(U) + np.abs(V),
    "bumps": bumps(10),
    "noise": np.random.default_rng(0).normal(size=A.shape) + 5 * RADIUS,
    "cliff": 1 / (1 + np.exp(-40 * (RADIUS - 0.4))),
}


def solved(truth, tolerance=0.01, clip=None):
    """Values, the clip, and how many points were evaluated."""
    known, values = np.zeros(truth.shape, bool), np.full(truth.shape, np.nan)
    wanted = adaptive.coarse_grid(truth.shape)
    while wanted.size:
        assert not known.flat[wanted].any()
        known.flat[wanted] = True
        values.flat[wanted] = truth.flat[wanted]
        found, clip_used, wanted = adaptive.propose(values, known, tolerance, clip)
    np.testing.assert_array_equal(found[known], truth[known])
    return found, clip_used, int(known.sum())


def drawn_error(found, truth, clip=None):
    """The largest error of a drawing, over its range; a region without numbers is above it."""
    finite = truth[np.isfinite(truth)]
    clip = np.median(finite) if clip is None else clip
    found, truth = (np.minimum(np.where(np.isfinite(v), v, np.inf), clip) for v in (found, truth))
    return np.abs(found - truth).max() / ((clip - finite.min()) or 1)


@pytest.mark.parametrize("name", SMOOTH)
def test_a_fifth_of_the_evaluations_gives_the_picture_within_a_percent(name):
    found, _, count = solved(SMOOTH[name])
    assert drawn_error(found, SMOOTH[name]) <= 0.01
    assert count <= 520


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUGH)
def test_a_rough_surface_takes_more_evaluations_and_keeps_the_tolerance(name):
    found, _, count = solved(ROUGH[name])
    assert drawn_error(found, ROUGH[name]) <= 0.01
    assert count > 520


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_loss_does_not_matter(scale):
    truth = SMOOTH["plateau"][::3, ::3]
    _, _, count = solved(truth)
    _, _, again = solved(scale * truth + 3 * scale)
    assert 121 < count < truth.size
    assert again == count


def test_a_tighter_tolerance_takes_more_evaluations_and_a_lower_clip_fewer():
    truth = SMOOTH["explosion"][::2, ::2]
    assert solved(truth, 0.1)[2] < solved(truth, 0.03)[2]
    found, clip, low = solved(truth, clip=5.0)
    assert clip == 5.0
    assert drawn_error(found, truth, 5.0) <= 0.01
    found, _, high = solved(truth, clip=np.inf)
    assert np.abs(found - truth).max() <= 0.01 * np.ptp(truth)
    assert high > low


def test_the_clip_leaves_half_of_the_plane_below():
    truth = SMOOTH["plateau"][::2, ::2]
    _, clip, _ = solved(truth)
    assert clip == pytest.approx(np.median(truth), rel=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (9, 11), (51, 7), (30, 101)])
def test_any_shape(shape):
    truth = np.linspace(-1, 1, shape[0])[:, None] ** 2 + 2 * np.linspace(-1, 1, shape[1]) ** 3
    found, _, count = solved(truth)
    assert drawn_error(found, truth) <= 0.01
    assert (count < truth.size) == (max(shape) > 11)


def test_a_plane_without_a_number_is_evaluated_everywhere():
    """Between the coarse points there may be some."""
    truth = np.full((25, 25), np.nan)
    truth[12, 13] = 1.0
    found, _, count = solved(truth)
    assert count == 625
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("activation", [nn.ReLU, pytest.param(nn.Tanh, marks=pytest.mark.slow)])
def test_planes_of_networks(activation):
    """Digits, filter-normalized directions; the loss explodes toward the corners."""
    torch.manual_seed(5)
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x[:300] / 16), torch.tensor(y[:300])
    layers = [nn.Linear(64, 24), activation(), nn.Linear(24, 24), activation(), nn.Linear(24, 10)]
    network = nn.Sequential(*layers).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()

    def loss(_):
        out = network(x)
        return F.cross_entropy(out, y), len(x), {"accuracy": (out.argmax(1) == y).double().mean()}

    params = list(network.parameters())
    axes = directions.random(params, seed=2)
    ticks = []
    full = plane(loss, params, [None], axes, AXIS, AXIS)
    found = plane(
        loss, params, [None], axes, AXIS, AXIS, tolerance=0.01, progress=lambda: ticks.append(None)
    )
    assert drawn_error(found.values, full.values) <= 0.01
    assert found.evaluated.sum() == len(ticks) <= 520
    assert (found.values == full.values)[found.evaluated].all()
    assert found.tolerance == 0.01
    assert found.clip == pytest.approx(np.median(full.values), rel=0.02)
    difference = np.abs(found.metrics["accuracy"] - full.metrics["accuracy"])
    assert (difference[found.evaluated] == 0).all()
    assert difference.mean() < 0.02
    assert full.evaluated.all()
    assert (full.tolerance, full.clip) == (0.0, np.inf)


ONE = [torch.ones(1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -0.1}, "tolerance is -0.1"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"tolerance": 1}, "tolerance is 1"),
        ({"clip": 2.0}, "clip is 2.0 and tolerance is 0"),
        ({"clip": float("nan"), "tolerance": 0.1}, "clip is NaN"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        plane(lambda _: torch.zeros(()), ONE, [None], [ONE, ONE], [0.0], [0.0], **options)
