"""Ranger: its first steps, and which gradients it centralizes along which axis."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_opt.optimizers import Lookahead, Ranger


class Layers(nn.Module):
    """One of each kind that has an output axis of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.conv = nn.Conv2d(2, 3, 2)
        self.transposed = nn.ConvTranspose2d(2, 3, 2)
        self.embedding = nn.Embedding(5, 4)
        self.bag = nn.EmbeddingBag(5, 4)
        self.norm = nn.LayerNorm(4)
        self.scalar = nn.Parameter(torch.ones(()))
        self.tied = nn.Linear(4, 5)
        self.tied.weight = self.embedding.weight


EXPECTED_AXES = {
    "linear.weight": 0,
    "conv.weight": 0,
    "transposed.weight": 1,
    "embedding.weight": None,
    "bag.weight": None,
    "tied.weight": None,
}


def first_moves(optimizer: Ranger, layers: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Each parameter's gradient, and its first step from it, which is −η g: no ε, no v, no φ."""
    generator = torch.Generator().manual_seed(0)
    gradients, starts = {}, {}
    for name, p in layers.named_parameters():
        p.grad = torch.randn(p.shape, generator=generator)
        gradients[name], starts[name] = p.grad.clone(), p.detach().clone()
    optimizer.step()
    return {
        name: (gradients[name], (p.detach() - starts[name]) / -0.1)
        for name, p in layers.named_parameters()
    }


def centralized(g: Tensor, axis: int | None) -> Tensor:
    if axis is None or g.ndim < 2:
        return g
    return g - g.mean([i for i in range(g.ndim) if i != axis], keepdim=True)


def assert_axes(optimizer: Ranger, layers: nn.Module, axes: dict[str, int | None]) -> None:
    for name, (gradient, move) in first_moves(optimizer, layers).items():
        expected = centralized(gradient, axes.get(name))
        torch.testing.assert_close(move, expected, atol=1e-5, rtol=1e-4, msg=name)


def test_attach_finds_the_output_axis_of_each_layer() -> None:
    """Vectors and scalars are never centralized; a tied embedding stays an embedding."""
    layers = Layers()
    optimizer = Ranger(layers.parameters(), lr=0.1)
    assert optimizer.attach(layers) is optimizer
    assert_axes(optimizer, layers, EXPECTED_AXES)


def test_without_attach_the_output_axis_is_the_first() -> None:
    layers = Layers()
    optimizer = Ranger(layers.parameters(), lr=0.1)
    assert_axes(optimizer, layers, dict.fromkeys(EXPECTED_AXES, 0))


@pytest.mark.parametrize("attached", [False, True])
def test_off_is_off(attached: bool) -> None:
    """Also after attach, which must not leak into a group that has it off."""
    layers = Layers()
    optimizer = Ranger(layers.parameters(), lr=0.1, centralize=False)
    if attached:
        optimizer.attach(layers)
    assert_axes(optimizer, layers, {})


def test_a_group_may_have_it_off_or_name_its_axis() -> None:
    """What a group says outright is not for attach to overrule."""
    layers = Layers()
    groups: list[dict[str, Any]] = [
        {"params": [layers.linear.weight], "centralize": False},
        {"params": [layers.conv.weight, layers.conv.bias], "centralize": 1},
        {"params": [layers.transposed.weight]},
    ]
    optimizer = Ranger(groups, lr=0.1).attach(layers)
    trained = nn.ParameterDict()
    for key, name in [("0", "linear"), ("1", "conv"), ("2", "transposed")]:
        trained[key] = getattr(layers, name).weight
    assert_axes(optimizer, trained, {"0": None, "1": 1, "2": 1})


def test_axes_are_saved_and_copied() -> None:
    """A resumed run that forgets to attach goes on as the first one did."""
    layers = Layers()
    optimizer = Ranger(layers.parameters(), lr=0.1).attach(layers)
    other_layers, copied = deepcopy((layers, optimizer))
    assert_axes(copied, other_layers, EXPECTED_AXES)
    fresh = Layers()
    loaded = Ranger(fresh.parameters(), lr=0.1)
    loaded.load_state_dict(optimizer.state_dict())
    assert_axes(loaded, fresh, EXPECTED_AXES)


def test_attaching_another_model_is_refused() -> None:
    """As after a model was copied: nothing would be attached."""
    layers = Layers()
    optimizer = Ranger(layers.parameters())
    with pytest.raises(ValueError, match=r"attach\(Layers\).*none of its parameters"):
        optimizer.attach(Layers())


def test_lookahead_passes_the_model_on() -> None:
    """The CLI attaches what has an attach; a base that has none needs no model."""
    layers = Layers()
    inner = Lookahead(layers.parameters())
    assert inner.attach(layers) is inner


def test_l2_decay_is_not_centralized() -> None:
    """Centralized with the gradient, the decay would leave the mean of the weights as it is."""
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2)
    Ranger([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 0.95))


def test_first_steps_are_momentum_only() -> None:
    """While the variance is intractable the step is η m̂: with a constant gradient, η g."""
    theta = nn.Parameter(torch.zeros((), dtype=torch.float64))
    theta.grad = torch.tensor(3.0, dtype=torch.float64)
    optimizer = Ranger([theta], lr=0.1, k=100)
    visited = []
    for _ in range(6):
        optimizer.step()
        visited.append(round(theta.item(), 10))
    assert visited[:5] == [-0.3, -0.6, -0.9, -1.2, -1.5]
    # The sixth is rectified, and so of the size of η: far shorter, and still downhill.
    assert -1.6 < visited[5] < -1.5


@pytest.mark.parametrize("length", [4095, 4096, 4097, 4098, 9000])
@pytest.mark.parametrize("compile", [False, True])
def test_long_rows_are_centralized_too(length: int, compile: bool) -> None:
    """Which are summed in another way; a row of one number has nothing left."""
    theta = nn.Parameter(torch.zeros(3, length))
    optimizer = Ranger([theta], lr=1.0, compile=compile)
    theta.grad = torch.arange(3.0)[:, None].expand(3, length).clone()
    theta.grad[0, 0] = length
    optimizer.step()
    expected = torch.zeros(3, length)
    expected[0] = 1.0
    expected[0, 0] = 1.0 - length  # θ = −g, the first step being of momentum alone
    torch.testing.assert_close(theta.detach(), expected, rtol=1e-5, atol=1e-4)
