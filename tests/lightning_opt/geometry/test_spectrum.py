"""Stochastic Lanczos quadrature against spectra that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn
from torch.nn import functional as F

from lightning_opt.figures import density
from lightning_opt.geometry import hessian, spectrum
from oracles import lanczos as oracle
from oracles.curvature import full_hessian, rotated

# A bulk around zero and outliers, as Hessians of networks have it.
BULK = torch.cat([torch.linspace(-1, 1, 295), torch.tensor([4.0, 8.0, 15.0, 30.0, 60.0])]).double()


def rademacher(n: int) -> torch.Tensor:
    """The start vector of the first probe with seed 0."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (n,), generator=generator, dtype=torch.int8).double() * 2 - 1
    return signs / n**0.5


def test_as_many_steps_as_dimensions_give_the_full_spectrum_of_a_network():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)
    ).double()
    x, y = torch.randn(64, 1, 6, 6, dtype=torch.float64), torch.randint(0, 4, (64,))
    network(x)
    network.eval()

    def loss(net) -> torch.Tensor:
        return F.cross_entropy(net(x), y)

    exact = np.linalg.eigvalsh(full_hessian(network, loss).numpy())
    n = len(exact)
    result = spectrum(hessian(lambda _: loss(network), network.parameters(), [None]), steps=n)
    taken = np.isfinite(result.nodes[0]).sum()
    # Every node is an eigenvalue; those that are missing are copies (the softmax has a null space).
    distance = np.abs(result.nodes[0, :taken, None] - exact).min(axis=1)
    assert distance.max() < 1e-8 * exact[-1]
    np.testing.assert_allclose(result.eigenvalues[:5], exact[::-1][:5], rtol=1e-9)
    np.testing.assert_allclose(result.eigenvalues[5:], exact[:5][::-1], rtol=1e-7)
    np.testing.assert_allclose(result.residuals, 0, atol=1e-7)


def test_the_full_spectrum_of_a_rotated_matrix_node_by_node():
    matrix = rotated(torch.linspace(-3, 7, 40, dtype=torch.float64))
    result = spectrum(matrix, steps=40, top=40, bottom=0)
    np.testing.assert_allclose(result.nodes[0], np.linspace(-3, 7, 40), atol=1e-10)
    np.testing.assert_allclose(result.eigenvalues, np.linspace(7, -3, 40), atol=1e-10)
    # The quadrature of t is v'Hv, so n times it is the trace's estimate.
    assert result.trace == pytest.approx(40 * (result.nodes * result.weights).sum())


def test_nodes_ascend_and_weights_are_a_distribution_for_every_probe():
    result = spectrum(rotated(BULK), steps=30, probes=3)
    assert result.nodes.shape == result.weights.shape == (3, 30)
    assert (np.diff(result.nodes, axis=1) > 0).all()
    np.testing.assert_allclose(result.weights.sum(axis=1), 1)
    assert (result.weights >= 0).all()


def test_density_is_right_with_and_without_reorthogonalization():
    """Wasserstein-1 to the measure of the start vector itself, which has no noise of probes.

    Over the range of the spectrum, as facts.md has it: 3.6e-5 and 8.9e-5 at 100 steps.
    """
    outliers = torch.tensor([2.0, 3, 4, 6, 8, 12, 16, 24, 40, 60])
    eigenvalues = torch.cat([torch.linspace(-0.4, 0.4, 1990), outliers]).double()
    operator = oracle.Reflected(eigenvalues)
    start = rademacher(2000)
    weights = operator.coordinates(start) ** 2

    def error(reorthogonalize) -> float:
        result = spectrum(operator, reorthogonalize=reorthogonalize)
        nodes, masses = result.nodes[0], result.weights[0]
        return wasserstein_distance(nodes, eigenvalues, masses, weights) / 60.4

    full, none = error("full"), error("none")
    assert 1e-5 < full < 5e-5
    assert full < none < 1.2e-4
    # A quadrature of m nodes is exact for polynomials of degree 2m - 1.
    few = spectrum(operator, steps=4)
    for degree in range(8):
        moment = (few.weights * few.nodes**degree).sum()
        assert moment == pytest.approx(float((weights * eigenvalues**degree).sum()), rel=1e-11)


def test_the_mean_over_probes_is_the_density_of_the_operator():
    result = spectrum(rotated(BULK), steps=100, probes=8)
    error = wasserstein_distance(
        result.nodes.ravel(), BULK.numpy(), u_weights=result.weights.ravel()
    )
    assert error < 2e-3 * float(BULK.max() - BULK.min())
    # At any width, afterwards.
    grid = np.linspace(-4, 64, 2000)
    smooth = density(result.nodes, result.weights, grid, width=0.6)
    exact = density(BULK.numpy(), np.full(300, 1 / 300), grid, width=0.6)
    assert np.abs(smooth - exact).max() < 0.02 * exact.max()


def test_ghosts_are_not_listed_as_eigenvalues():
    """Without re-orthogonalization the outliers repeat among the nodes."""
    full = spectrum(rotated(BULK), steps=100)
    none = spectrum(rotated(BULK), steps=100, reorthogonalize="none")
    top = float(BULK.max())
    assert np.isclose(full.nodes, top, rtol=1e-6).sum() == 1
    assert np.isclose(none.nodes, top, rtol=1e-6).sum() > 1
    assert none.eigenvalues.shape == none.residuals.shape == (0,)
    assert full.reorthogonalized
    assert not none.reorthogonalized


def test_extreme_eigenvalues_are_ordered_and_residuals_bound_their_error():
    result = spectrum(rotated(BULK), steps=25, top=7, bottom=3)
    assert result.eigenvalues.shape == (10,)
    assert (np.diff(result.eigenvalues) < 0).all()
    nearest = np.abs(result.eigenvalues[:, None] - BULK.numpy()).min(axis=1)
    assert (nearest <= result.residuals + 1e-10).all()
    assert result.residuals[0] < 1e-8 < result.residuals[6]  # converged outlier, not yet bulk


def test_no_node_is_listed_from_both_ends():
    result = spectrum(rotated(torch.arange(1.0, 5.0)), steps=4, top=3, bottom=3)
    np.testing.assert_allclose(result.eigenvalues, [4, 3, 2, 1])


def test_more_probes_give_better_extremes():
    """By interlacing the best probe can be picked for each eigenvalue."""
    one = spectrum(rotated(BULK), steps=12)
    many = spectrum(rotated(BULK), steps=12, probes=6)
    exact = np.concatenate([np.sort(BULK.numpy())[::-1][:5], np.sort(BULK.numpy())[:5][::-1]])
    assert (many.eigenvalues[:5] >= one.eigenvalues[:5]).all()
    assert (many.eigenvalues[5:] <= one.eigenvalues[5:]).all()
    assert (many.eigenvalues[:5] <= exact[:5] + 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_scaling_the_loss_scales_the_answer(scale, dtype):
    """An absolute stopping rule would end a run on a small loss at once."""
    matrix = rotated(BULK).to(dtype)
    one, other = spectrum(matrix, steps=30), spectrum(matrix * scale, steps=30)
    assert np.isfinite(other.nodes).all()
    rtol = 1e-3 if dtype == torch.float32 else 1e-6
    np.testing.assert_allclose(other.eigenvalues[:5], scale * one.eigenvalues[:5], rtol=rtol)
    assert other.trace == pytest.approx(scale * one.trace, rel=rtol)


def test_samples_give_the_trace_an_error_bar_that_the_run_makes_small():
    """The run that takes the outliers out is another one: the estimate stays without bias."""
    matrix = rotated(BULK)
    exact, deflated, plain = float(BULK.sum()), [], []
    for seed in range(30):
        deflated.append(spectrum(matrix, steps=20, samples=6, seed=seed))
        plain.append(spectrum(matrix, steps=1, samples=6, seed=seed, reorthogonalize="none"))
    for results, width in ((deflated, 9), (plain, 60)):
        errors = np.array([result.trace - exact for result in results])
        claimed = np.array([result.trace_stderr for result in results])
        assert np.sqrt(np.mean(errors**2)) == pytest.approx(np.mean(claimed), rel=0.3)
        assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(len(errors))
        assert claimed.mean() < width
    assert np.isnan(spectrum(matrix, steps=5, samples=1).trace_stderr)


def test_a_full_run_leaves_nothing_to_chance():
    matrix = rotated(torch.linspace(-3, 7, 40, dtype=torch.float64))
    result = spectrum(matrix, steps=40, samples=3)
    assert result.trace == pytest.approx(80, rel=1e-10)
    assert result.trace_stderr < 1e-10


def test_trace_is_within_its_error_bars():
    result = spectrum(rotated(BULK), steps=1, probes=200)
    assert 0 < result.trace_stderr < 10
    assert abs(result.trace - float(BULK.sum())) < 4 * result.trace_stderr
    few = spectrum(rotated(BULK), steps=1, probes=3)
    each = 300 * (few.nodes * few.weights).sum(axis=1)
    assert few.trace == pytest.approx(each.mean())
    assert few.trace_stderr == pytest.approx(each.std(ddof=1) / 3**0.5)
    assert np.isnan(spectrum(rotated(BULK), steps=1).trace_stderr)


def test_an_exhausted_krylov_space_is_padded():
    """Rank two and a null space: three distinct eigenvalues, whatever the dimension."""
    eigenvalues = torch.zeros(50)
    eigenvalues[:2] = torch.tensor([3.0, 1.0])
    result = spectrum(rotated(eigenvalues), steps=20)
    np.testing.assert_allclose(result.nodes[0, :3], [0, 1, 3], atol=1e-12)
    assert np.isnan(result.nodes[0, 3:]).all()
    assert (result.weights[0, 3:] == 0).all()
    np.testing.assert_allclose(result.eigenvalues, [3, 1, 0], atol=1e-12)


def test_a_zero_operator_has_a_zero_spectrum():
    result = spectrum(torch.zeros(5, 5), steps=4)
    assert result.eigenvalues.tolist() == [0.0]
    assert result.weights[0].tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
def test_no_more_steps_than_dimensions_are_taken(reorthogonalize):
    operator = oracle.Reflected(BULK[-40:])
    spectrum(operator, steps=60, reorthogonalize=reorthogonalize)
    assert len(operator.applied) <= 40
    # Nor is memory set aside for them.
    assert spectrum(operator, steps=60, memory=40 * 40 * 8).reorthogonalized


def test_more_steps_than_dimensions_are_padded():
    assert np.isnan(spectrum(rotated(torch.arange(3.0)), steps=10).nodes[0, 3:]).all()


def test_auto_keeps_the_basis_within_its_budget():
    within = {"steps": 20, "probes": 2, "memory": 2 * 300 * 8 * 20}
    assert spectrum(rotated(BULK), **within).reorthogonalized
    assert not spectrum(rotated(BULK), **{**within, "steps": 21}).reorthogonalized
    assert not spectrum(rotated(BULK), **{**within, "probes": 3}).reorthogonalized


def test_the_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = spectrum(rotated(BULK), steps=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert np.array_equal(spectrum(rotated(BULK), steps=5).nodes, first.nodes)
    assert not np.array_equal(spectrum(rotated(BULK), steps=5, seed=1).nodes, first.nodes)


def test_progress_counts_every_step():
    calls: list[None] = []
    spectrum(rotated(BULK), steps=7, probes=2, progress=lambda: calls.append(None))
    assert len(calls) == 14


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
def test_all_probes_are_in_one_product(reorthogonalize):
    operator = oracle.Reflected(BULK)
    three = spectrum(operator, steps=6, probes=3, reorthogonalize=reorthogonalize)
    assert operator.applied == [(300, 3)] * 6
    operator.applied.clear()
    one = spectrum(operator, steps=6, reorthogonalize=reorthogonalize)
    assert operator.applied == [(300,)] * 6
    np.testing.assert_allclose(three.nodes[:1], one.nodes, rtol=1e-9)
    np.testing.assert_allclose(three.weights[:1], one.weights, rtol=1e-9)


def test_one_exhausted_probe_among_several():
    """The first start vector is an eigenvector, the others are not."""
    start = rademacher(300)
    away = torch.eye(300).double() - torch.outer(start, start)
    matrix = 50 * torch.outer(start, start) + away @ rotated(BULK) @ away
    calls: list[None] = []
    result = spectrum(matrix, steps=20, probes=3, progress=lambda: calls.append(None))
    assert np.isfinite(result.nodes).sum(axis=1).tolist() == [1, 20, 20]
    assert len(calls) == 41
    assert result.nodes[0, 0] == pytest.approx(50)
    np.testing.assert_allclose(result.weights.sum(axis=1), 1)
    exact = np.linalg.eigvalsh(matrix.numpy())[::-1]
    np.testing.assert_allclose(result.eigenvalues[:4], exact[:4], rtol=1e-6)


def test_arrays_hold_everything():
    arrays = spectrum(rotated(BULK), steps=3).to_arrays()
    assert set(arrays) == {
        "nodes", "weights", "eigenvalues", "residuals", "trace", "trace_stderr", "dimension",
        "reorthogonalized",
    }  # fmt: skip
    assert all(isinstance(array, np.ndarray) for array in arrays.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"probes": 0}, "probes is 0"),
        ({"top": -1}, "top is -1"),
        ({"bottom": -1}, "bottom is -1"),
        ({"reorthogonalize": "some"}, "reorthogonalize is 'some'"),
        ({"memory": -1}, "memory is -1"),
        ({"memory": 100, "reorthogonalize": "full"}, "memory is 100, which is for"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        spectrum(torch.eye(3), **options)


@pytest.mark.parametrize("operator", [torch.ones(2, 3), torch.ones(2), torch.eye(2).long()])
def test_bad_operators_are_named(operator):
    with pytest.raises(ValueError, match="a spectrum needs"):
        spectrum(operator)


def test_a_nan_is_an_error_that_names_the_step():
    with pytest.raises(FloatingPointError, match="Lanczos step 1"):
        spectrum(torch.full((3, 3), torch.nan))
