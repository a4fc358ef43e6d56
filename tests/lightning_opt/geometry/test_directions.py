"""Random directions: their norms, their orthogonality, what they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_opt.geometry import directions


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
