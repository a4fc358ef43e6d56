"""Every optimizer of ours follows its oracle, written from the paper in plain loops, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_opt.optimizers import Lookahead, Ranger, Yogi
from oracles.lookahead import MomentumSGD, lookahead
from oracles.ranger import ranger
from oracles.yogi import yogi

STEPS = 25
SHAPES = {"matrix": (4, 3), "vector": (5,), "kernel": (3, 2, 2, 2), "scalar": ()}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
decays = pytest.mark.parametrize(
    "decay, decoupled", [(0.0, False), (0.1, False), (0.1, True)], ids=["none", "l2", "decoupled"]
)
directions = pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])


def problem(shape: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    """A start and a gradient for each step, of sizes from 1e-4 to 1e2, with an exact zero."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, shape, generator=generator, dtype=torch.float64)
    gradients = [draw() * 10.0 ** (step % 7 - 4) + 0.3 for step in range(STEPS)]
    gradients[3].zero_()
    return draw(), gradients


def path(
    build: Callable[[list[nn.Parameter]], Optimizer], start: Tensor, gradients: list[Tensor]
) -> list[Tensor]:
    """The parameter after each step."""
    theta = nn.Parameter(start.clone())
    optimizer = build([theta])
    visited = []
    for gradient in gradients:
        theta.grad = gradient.clone()
        optimizer.step()
        visited.append(theta.detach().clone())
    return visited


def slow_path(
    build: Callable[[list[nn.Parameter]], Lookahead], start: Tensor, gradients: list[Tensor]
) -> list[Tensor]:
    """The parameter in evaluation mode after each step."""
    theta = nn.Parameter(start.clone())
    optimizer = build([theta])
    visited = []
    for gradient in gradients:
        theta.grad = gradient.clone()
        optimizer.step()
        optimizer.eval()
        visited.append(theta.detach().clone())
        optimizer.train()
    return visited


def flat(tensors: list[Tensor]) -> list[list[float]]:
    return [tensor.reshape(-1).tolist() for tensor in tensors]


def assert_equal(ours: list[Tensor], oracle: list[list[float]]) -> None:
    assert len(ours) == len(oracle) == STEPS
    for step, (tensor, expected) in enumerate(zip(ours, oracle, strict=True), start=1):
        expected_tensor = torch.tensor(expected, dtype=torch.float64).reshape(tensor.shape)
        error = (tensor - expected_tensor).abs().max().item()
        assert error <= 1e-10, f"step {step}: off by {error}"


@shapes
@decays
@directions
@pytest.mark.parametrize("bias_correction", [True, False], ids=["corrected", "paper"])
@pytest.mark.parametrize("initial_accumulator", [1e-6, 0.5])
def test_yogi(
    shape: tuple[int, ...],
    decay: float,
    decoupled: bool,
    maximize: bool,
    bias_correction: bool,
    initial_accumulator: float,
) -> None:
    start, gradients = problem(shape)
    build = partial(
        Yogi,
        lr=0.02,
        betas=(0.8, 0.95),
        eps=1e-3,
        weight_decay=decay,
        bias_correction=bias_correction,
        initial_accumulator=initial_accumulator,
        decoupled_weight_decay=decoupled,
        maximize=maximize,
    )
    expected = yogi(
        flat([start])[0],
        flat(gradients),
        0.02,
        0.8,
        0.95,
        1e-3,
        bias_correction=bias_correction,
        v0=initial_accumulator,
        decay=decay,
        decoupled=decoupled,
        maximize=maximize,
    )
    assert_equal(path(build, start, gradients), expected)


@shapes
@pytest.mark.parametrize("k, alpha", [(5, 0.5), (1, 0.3), (4, 1.0), (3, 0.0)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lookahead(shape: tuple[int, ...], k: int, alpha: float, momentum: float) -> None:
    start, gradients = problem(shape)
    base = partial(torch.optim.SGD, lr=0.1, momentum=momentum)
    build = partial(Lookahead, base=base, k=k, alpha=alpha)
    fast, slow = lookahead(flat([start])[0], flat(gradients), MomentumSGD(0.1, momentum), k, alpha)
    assert_equal(path(build, start, gradients), fast)
    assert_equal(slow_path(build, start, gradients), slow)


@shapes
@decays
@directions
@pytest.mark.parametrize("centralize", [True, False, 1])
@pytest.mark.parametrize(
    "betas", [(0.95, 0.999), (0.8, 0.7), (0.8, 0.6)], ids=["default", "late", "never-rectified"]
)
def test_ranger(
    shape: tuple[int, ...],
    decay: float,
    decoupled: bool,
    maximize: bool,
    centralize: bool | int,
    betas: tuple[float, float],
) -> None:
    """ρ passes 5 at step 6 with β₂ = 0.999, at step 10 with 0.7, and never with 0.6."""
    start, gradients = problem(shape)
    build = partial(
        Ranger,
        lr=0.02,
        alpha=0.4,
        k=6,
        betas=betas,
        eps=1e-3,
        weight_decay=decay,
        centralize=centralize,
        decoupled_weight_decay=decoupled,
        maximize=maximize,
    )
    output_axis = {True: 0, False: None}[centralize] if isinstance(centralize, bool) else 1
    fast, slow = ranger(
        flat([start])[0],
        flat(gradients),
        shape,
        0.02,
        0.4,
        6,
        *betas,
        1e-3,
        output_axis=output_axis,
        decay=decay,
        decoupled=decoupled,
        maximize=maximize,
    )
    assert_equal(path(build, start, gradients), fast)
    assert_equal(slow_path(build, start, gradients), slow)


@shapes
@decays
@directions
def test_ranger_without_its_additions_is_radam(
    shape: tuple[int, ...], decay: float, decoupled: bool, maximize: bool
) -> None:
    """PyTorch's RAdam is the trusted implementation of what Ranger has inside."""
    start, gradients = problem(shape)
    options = {
        "lr": 0.02,
        "betas": (0.9, 0.99),
        "eps": 1e-3,
        "weight_decay": decay,
        "decoupled_weight_decay": decoupled,
        "maximize": maximize,
    }
    ours = path(partial(Ranger, k=STEPS + 1, centralize=False, **options), start, gradients)
    torchs = path(partial(torch.optim.RAdam, **options), start, gradients)
    assert_equal(ours, flat(torchs))


@shapes
def test_lookahead_over_adam_is_adam_pulled_back(shape: tuple[int, ...]) -> None:
    """The base's moments are kept over a synchronization, as in the paper's experiments."""
    start, gradients = problem(shape)
    ours = path(
        partial(Lookahead, base=partial(torch.optim.Adam, lr=0.1), k=3, alpha=0.25),
        start,
        gradients,
    )
    theta = nn.Parameter(start.clone())
    adam = torch.optim.Adam([theta], lr=0.1)
    slow = start
    expected = []
    for step, gradient in enumerate(gradients, start=1):
        theta.grad = gradient.clone()
        adam.step()
        if step % 3 == 0:
            slow = slow + 0.25 * (theta.detach() - slow)
            theta.data.copy_(slow)
        expected.append(theta.detach().clone())
    assert_equal(ours, flat(expected))
