"""Directions: their norms, their orthogonality, what they leave alone, where they lead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_opt.geometry import directions, line


@pytest.fixture
def params() -> list[torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(6, 5)).double()
    return list(network.parameters())


def filters(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(len(tensor), -1)


def test_every_filter_has_the_norm_of_the_weights_filter(params):
    for direction in directions.random(params):
        for d, p in zip(direction, params, strict=True):
            if p.dim() > 1:
                torch.testing.assert_close(filters(d).norm(dim=1), filters(p).norm(dim=1))


def test_directions_are_orthogonal_filter_by_filter(params):
    """Orthogonalizing whole vectors before normalizing leaves a cosine of some percent."""
    for a, b, p in zip(*directions.random(params), params, strict=True):
        if p.dim() > 1:
            assert (filters(a) * filters(b)).sum(dim=1).abs().max() < 1e-14


def test_parameters_with_one_axis_are_not_moved(params):
    for direction in directions.random(params):
        for d, p in zip(direction, params, strict=True):
            assert (d.count_nonzero() == 0) == (p.dim() == 1)


def test_layer_normalization_scales_whole_tensors(params):
    first, second = directions.random(params, normalize="layer")
    for a, b, p in zip(first, second, params, strict=True):
        if p.dim() > 1:
            torch.testing.assert_close(a.norm(), p.detach().norm())
            assert abs((a * b).sum()) < 1e-13
            assert not torch.allclose(filters(a).norm(dim=1), filters(p).norm(dim=1))


def test_without_normalization_all_tensors_move_and_stay_orthogonal(params):
    first, second = directions.random(params, normalize=None)
    assert all(d.count_nonzero() == d.numel() for d in first)
    assert abs(sum((a * b).sum() for a, b in zip(first, second, strict=True))) < 1e-12
    # A Gaussian vector of n entries has a norm near the root of n.
    large = directions.random([torch.zeros(100, 100)], normalize=None)
    assert large[0][0].norm().item() == pytest.approx(100, rel=0.05)


def test_the_entries_are_gaussian():
    """Isotropic: no coordinate of a filter is preferred, and neither is a sign."""
    (first,), (second,) = directions.random([torch.ones(20000, 4)])
    for direction in (first, second):
        unit = direction / 2
        torch.testing.assert_close(unit.T @ unit / 20000, torch.eye(4) / 4, atol=0.01, rtol=0)
        assert unit.mean(dim=0).abs().max() < 0.02


def test_a_filter_smaller_than_the_number_of_directions_is_moved_by_the_first():
    (first,), (second,) = directions.random([torch.tensor([[3.0], [-4.0]])])
    assert first.abs().flatten().tolist() == [3.0, 4.0]
    assert second.count_nonzero() == 0


def test_seed_decides_and_the_global_state_is_left_alone(params):
    before = torch.get_rng_state()
    first, again = directions.random(params, seed=3), directions.random(params, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first[0], again[0], strict=True))
    assert not torch.equal(first[0][0], directions.random(params, seed=4)[0][0])


def test_directions_have_the_dtype_of_the_weights_and_no_gradient():
    ((direction,),) = directions.random([nn.Parameter(torch.ones(2, 2).half())], count=1)
    assert direction.dtype == torch.half
    assert not direction.requires_grad


@pytest.mark.parametrize("options", [{"count": 0}, {"normalize": "filters"}])
def test_bad_options_are_named(params, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        directions.random(params, **options)


# A newly initialized model plus a perturbation


def test_a_perturbation_has_the_stated_scale_in_every_tensor(params):
    large = [torch.full((200, 50), 3.0), torch.linspace(-1, 1, 10000), torch.zeros(7)]
    moved = directions.perturbed(large, scale=0.2, seed=1)
    for new, old in zip(moved[:2], large[:2], strict=True):
        noise = (new - old) / old.square().mean().sqrt()
        assert noise.std().item() == pytest.approx(0.2, rel=0.03)
        assert abs(noise.mean().item()) < 0.01
    assert torch.equal(moved[2], large[2])
    assert all(map(torch.equal, directions.perturbed(params, scale=0.0), params))


def test_a_perturbation_is_repeated_by_its_seed_alone(params):
    before = torch.get_rng_state()
    first, again, other = (directions.perturbed(params, scale=1.0, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    assert [t.dtype for t in first] == [p.dtype for p in params]


def test_the_line_of_the_thesis(params):
    """Equation 37: a = 0 is the perturbed new model, a = 1 the trained one."""
    start = directions.perturbed([torch.ones_like(p) for p in params], scale=0.5)
    result = line(lambda _: params[0].sum(), params, [None], start, params, [0.0, 1.0])
    torch.testing.assert_close(
        torch.tensor(result.values), torch.stack([start[0].sum(), params[0].detach().sum()])
    )


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_bad_scales_are_named(params, scale):
    with pytest.raises(ValueError, match="scale is"):
        directions.perturbed(params, scale=scale)


# From flat vectors


def test_vectors_become_tensors_in_order(params):
    size = sum(p.numel() for p in params)
    vectors = torch.randn(3, size, dtype=torch.float64)
    found = directions.from_vectors(vectors, params)
    for vector, direction in zip(vectors, found, strict=True):
        assert torch.equal(torch.cat([t.reshape(-1) for t in direction]), vector)
        assert [t.shape for t in direction] == [p.shape for p in params]
    (alone,) = directions.from_vectors(vectors[0], params)
    assert all(map(torch.equal, alone, found[0]))
    alone[0].zero_()
    assert vectors[0, 0] != 0  # a copy


def test_vectors_can_be_normalized(params):
    vectors = torch.randn(2, sum(p.numel() for p in params), dtype=torch.float64)
    first, second = directions.from_vectors(vectors, params, normalize="filter")
    (raw, _) = directions.from_vectors(vectors, params)
    for a, b, r, p in zip(first, second, raw, params, strict=True):
        if p.dim() > 1:
            torch.testing.assert_close(filters(a).norm(dim=1), filters(p).norm(dim=1))
            assert (filters(a) * filters(b)).sum(dim=1).abs().max() < 1e-13
            cosine = torch.cosine_similarity(filters(a), filters(r))
            torch.testing.assert_close(cosine, torch.ones_like(cosine))
        else:
            assert a.count_nonzero() == 0


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 1, 4), ()])
def test_bad_vectors_are_named(shape):
    with pytest.raises(ValueError, match="vectors has shape"):
        directions.from_vectors(torch.zeros(shape), [torch.zeros(2, 2)])


# Between models


def test_two_ends_span_the_plane_through_three_models(params):
    ends = [directions.perturbed(params, scale=1.0, seed=s) for s in (1, 2)]
    for direction, end in zip(directions.between(params, *ends), ends, strict=True):
        for d, p, e in zip(direction, params, end, strict=True):
            torch.testing.assert_close(p + d, e)
            assert not d.requires_grad


def test_directions_between_models_are_orthogonalized_if_asked(params):
    ends = [directions.perturbed(params, scale=1.0, seed=s) for s in (1, 2, 3)]
    raw = [torch.cat([t.flatten() for t in d]) for d in directions.between(params, *ends)]
    found = directions.between(params, *ends, orthogonalize=True)
    flat = torch.stack([torch.cat([t.flatten() for t in d]) for d in found])
    gram = flat @ flat.T
    torch.testing.assert_close(gram, gram.diag().diag(), rtol=0, atol=1e-12 * gram.max().item())
    assert torch.equal(flat[0], raw[0])
    # Nothing but the others was taken away: the third is still in their span.
    rest = torch.linalg.lstsq(torch.stack(raw).T, flat[2]).solution
    torch.testing.assert_close(torch.stack(raw).T @ rest, flat[2])
    assert rest[2].item() == pytest.approx(1)


def test_ends_that_span_nothing_are_named(params):
    end = directions.perturbed(params, scale=1.0)
    with pytest.raises(ValueError, match="no end"):
        directions.between(params)
    with pytest.raises(ValueError, match=r"ends\[1\] lies in the span"):
        directions.between(params, end, end, orthogonalize=True)
    with pytest.raises(ValueError, match=r"ends\[0\] lies in the span"):
        directions.between(params, params, orthogonalize=True)
    with pytest.raises(ValueError, match=r"ends\[0\] has"):
        directions.between(params, end[:2])


# Principal axes


def trajectory(count=7):
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 2), (4,))]
        for _ in range(count)
    ]


def test_principal_axes_are_the_singular_vectors_of_the_steps_to_the_end():
    path = trajectory()
    flat = torch.stack([torch.cat([t.flatten() for t in tensors]) for tensors in path])
    _, values, rows = torch.linalg.svd(flat - flat[-1])
    found = directions.principal(iter(path), count=3)  # read once
    axes = torch.stack([torch.cat([t.flatten() for t in d]) for d in found.directions])
    torch.testing.assert_close(axes @ axes.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close((axes @ rows[:3].T).abs(), torch.eye(3, dtype=torch.float64))
    np.testing.assert_allclose(found.explained, values[:3] ** 2 / (values**2).sum())
    np.testing.assert_allclose(found.coordinates, (flat - flat[-1]) @ axes.T, atol=1e-12)
    assert (found.coordinates[0] > 0).all()
    assert [t.shape for t in found.directions[0]] == [(3, 2), (4,)]
    assert set(found.to_arrays()) == {"explained", "coordinates"}


def test_a_trajectory_in_a_plane_is_explained_by_two_axes():
    a, b, end = trajectory(3)
    path = [
        [e + x * u + y * v for u, v, e in zip(a, b, end, strict=True)]
        for x, y in [(3, 1), (2, -1), (1, 1), (0, 0)]
    ]
    found = directions.principal(path)
    assert found.explained.sum() == pytest.approx(1)
    for coordinates, point in zip(found.coordinates.tolist(), path, strict=True):
        for p, e, d1, d2 in zip(point, end, *found.directions, strict=True):
            torch.testing.assert_close(e + coordinates[0] * d1 + coordinates[1] * d2, p)


def test_trajectories_that_have_no_axes_are_named():
    path = trajectory()
    with pytest.raises(ValueError, match="2 checkpoints: 2 axes need more"):
        directions.principal(path[:2])
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        directions.principal([path[0], path[1], path[0], path[1]])
    with pytest.raises(ValueError, match="fewer than 1 dimensions"):
        directions.principal([path[0], path[0]], count=1)
    with pytest.raises(ValueError, match=r"trajectory\[1\]\[0\] has shape"):
        directions.principal([path[0], [torch.zeros(2), path[0][1]], path[2]])
    path[0][0][0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        directions.principal(path)
    with pytest.raises(ValueError, match="count is 0"):
        directions.principal(path, count=0)
