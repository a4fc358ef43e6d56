"""Layers with second derivatives of our own against PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_opt.geometry import hessian
from lightning_opt.geometry._second_derivatives import FastSecondDerivatives

CONVOLUTIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (2, {}),
    "one axis": (1, {"stride": 2, "padding": 1}),
    "three axes": (3, {"padding": (1, 0, 1)}),
    "stride and padding": (2, {"stride": (2, 1), "padding": (0, 2)}),
    "dilation": (2, {"dilation": 2, "padding": 2}),
    "groups": (2, {"groups": 2}),
    "depthwise": (2, {"groups": 4, "padding": 1}),
    "without bias": (2, {"bias": False}),
    "same": (2, {"padding": "same"}),  # left to torch
    "circular": (2, {"padding": 1, "padding_mode": "circular"}),
}


def layer(axes: int, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return getattr(nn, f"Conv{axes}d")(4, 6 if options.get("groups") != 4 else 8, 3, **options)


def second_derivatives(network: nn.Module, x: Tensor, fast: bool, **options: Any) -> list[Any]:
    """Of a loss that is not linear in anything, in the directions of fixed vectors."""
    params = [*network.parameters(), x]
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]
    if options:
        vectors = [torch.stack([v, 2 * v.roll(1)]) for v in vectors]
    if fast:
        with FastSecondDerivatives():
            loss = network(x).pow(3).mean() + x.pow(3).mean()
    else:
        loss = network(x).pow(3).mean() + x.pow(3).mean()
    first = torch.autograd.grad(loss, params, create_graph=True)
    return [*first, *torch.autograd.grad(first, params, vectors, **options)]


def batch_norm(axes: int, **options: Any) -> nn.Module:
    """Far from the identity."""
    torch.manual_seed(0)
    norm: Any = getattr(nn, f"BatchNorm{axes}d")(4, **options)
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2)
    return norm.eval()


NORMS: dict[str, tuple[int, dict[str, Any]]] = {
    "images": (2, {}),
    "one axis": (1, {}),
    "three axes": (3, {"eps": 0.3}),
    "without weights": (2, {"affine": False}),  # left to torch, as are the next two
    "by the batch": (2, {"track_running_stats": False}),
}

LAYERS = {
    **{f"convolution, {name}": (axes, layer(axes, o)) for name, (axes, o) in CONVOLUTIONS.items()},
    **{f"batch norm, {name}": (axes, batch_norm(axes, **o)) for name, (axes, o) in NORMS.items()},
    "batch norm, in training": (2, batch_norm(2).train()),
}


@pytest.mark.parametrize("options", [{}, {"is_grads_batched": True}], ids=["one", "batched"])
@pytest.mark.parametrize("case", LAYERS)
def test_both_derivatives_are_pytorchs(case: str, options: dict[str, Any]):
    axes, module = LAYERS[case]
    network = nn.Sequential(module, nn.Tanh()).double()
    x = torch.randn(3, 4, *[7] * axes, dtype=torch.float64, requires_grad=True)
    exact = second_derivatives(network, x, fast=False, **options)
    found = second_derivatives(network, x, fast=True, **options)
    for ours, torchs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("frozen", ["weight", "bias", "input"])
@pytest.mark.parametrize("make", [partial(layer, 2, {}), partial(batch_norm, 2)])
def test_frozen_parts_have_no_derivative(make: Callable[[], nn.Module], frozen: str):
    """Every combination of what needs a gradient goes another way through the second pass."""
    network = make().double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=frozen != "input")
    if frozen != "input":
        getattr(network, frozen).requires_grad_(False)
    params = [p for p in (*network.parameters(), x) if p.requires_grad]
    v = torch.ones(sum(p.numel() for p in params), dtype=torch.float64)

    def product(**options: Any) -> Tensor:
        return hessian(lambda _: network(x).pow(3).mean(), params, [None], **options) @ v

    torch.testing.assert_close(product(), product(method="forward"), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("absent", range(3))
def test_second_derivatives_in_the_direction_of_some_variables(absent: int):
    """A cotangent that is missing is not one of zeros."""
    network = batch_norm(2).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    params = [*network.parameters(), x]

    def derivatives() -> list[Tensor | None]:
        loss = network(x).pow(3).mean()
        first = list(torch.autograd.grad(loss, params, create_graph=True))
        del first[absent]
        ones = [torch.ones_like(tensor) for tensor in first]
        return list(torch.autograd.grad(first, params, ones, allow_unused=True))

    exact = derivatives()
    with FastSecondDerivatives():
        found = derivatives()
    for ours, torchs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-14)


def test_an_image_without_a_batch_axis_is_left_to_torch():
    network = layer(2, {}).double()
    x = torch.randn(4, 5, 5, dtype=torch.float64, requires_grad=True)
    for ours, torchs in zip(
        second_derivatives(network, x, fast=True),
        second_derivatives(network, x, fast=False),
        strict=True,
    ):
        torch.testing.assert_close(ours, torchs)


def test_the_second_pass_runs_no_convolution_with_a_whole_image_as_its_kernel():
    network = nn.Sequential(layer(2, {}), nn.Tanh(), nn.Conv2d(6, 3, 3))
    x = torch.randn(2, 4, 16, 16)
    with FastSecondDerivatives():
        loss = network(x).pow(3).mean()
    params = list(network.parameters())
    first = torch.autograd.grad(loss, params, create_graph=True)
    with torch.profiler.profile(record_shapes=True) as profile:
        torch.autograd.grad(first, params, [torch.ones_like(p) for p in params])
    kernels = [
        event.input_shapes[1][2:]
        for event in profile.events()
        if event.name == "aten::convolution" and len(event.input_shapes) > 1
    ]
    assert kernels
    assert all(max(kernel) <= 3 for kernel in kernels)


def test_the_second_pass_of_batch_norm_runs_its_own_kernels():
    norm, x = batch_norm(2), torch.randn(2, 4, 16, 16, requires_grad=True)
    with FastSecondDerivatives():
        loss = norm(x).pow(3).mean()
    params = [*norm.parameters(), x]
    first = torch.autograd.grad(loss, params, create_graph=True)
    with torch.profiler.profile(record_shapes=True) as profile:
        torch.autograd.grad(first, params, [torch.ones_like(p) for p in params])
    whole = [
        event.name
        for event in profile.events()
        if event.name in ("aten::native_batch_norm", "aten::native_batch_norm_backward")
    ]
    # The second pass: the layer for x and for its cotangent, and one backward pass. Then the
    # first one, backwards.
    assert (
        sorted(whole) == ["aten::native_batch_norm"] * 2 + ["aten::native_batch_norm_backward"] * 2
    )
