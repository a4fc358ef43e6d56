"""Shampoo: its oracle, its peers' mistakes, and what becomes of it when a root cannot be taken."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_opt.optimizers import Shampoo
from lightning_opt.optimizers import shampoo as shampoo_module
from lightning_opt.optimizers._schedule import is_due
from oracles.shampoo import shampoo

STEPS = 34
SHAPES = {
    "matrix": (4, 3),
    "vector": (5,),
    "kernel": (3, 2, 2, 2),
    "scalar": (),
    "tensor": (3, 4, 2),
}
# The same tensors as they are after merging up to a block size of 4, by the rule of 2002.09018.
MERGED = {
    "matrix": (4, 3),
    "vector": (5,),
    "kernel": (3, 2, 4),
    "scalar": (1,),
    "tensor": (3, 4, 2),
}
PAPER: dict[str, Any] = {
    "momentum": 0.0,
    "root_every": 1,
    "block_size": None,
    "merge_dims": False,
    "grafting": None,
}
every_shape = pytest.mark.parametrize("name", SHAPES)
every_decay = pytest.mark.parametrize(
    "decay, decoupled", [(0.0, True), (0.1, False), (0.1, True)], ids=["none", "l2", "decoupled"]
)
directions = pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
graftings = pytest.mark.parametrize("grafting", [None, "sgd", "adagrad", "rmsprop"])


def problem(shape: tuple[int, ...], steps: int = STEPS) -> tuple[Tensor, list[Tensor]]:
    """A start and a gradient for each step, of sizes from 1e-2 to 1e2, with an exact zero."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, shape, generator=generator, dtype=torch.float64)
    gradients = [draw() * 10.0 ** (step % 5 - 2) + 0.3 for step in range(steps)]
    gradients[3].zero_()
    return draw(), gradients


def path(
    build: Callable[[list[nn.Parameter]], Shampoo], start: Tensor, gradients: list[Tensor]
) -> list[Tensor]:
    """The parameter after each step."""
    theta = nn.Parameter(start.clone())
    optimizer = build([theta])
    visited = []
    for gradient in gradients:
        theta.grad = gradient.to(start.dtype)
        optimizer.step()
        visited.append(theta.detach().clone())
    return visited


def flat(tensors: list[Tensor]) -> list[list[float]]:
    return [tensor.reshape(-1).tolist() for tensor in tensors]


def assert_equal(ours: list[Tensor], oracle: list[list[float]], tolerance: float = 1e-10) -> None:
    assert len(ours) == len(oracle) >= 20
    for step, (tensor, expected) in enumerate(zip(ours, oracle, strict=True), start=1):
        expected_tensor = torch.tensor(expected, dtype=torch.float64).reshape(tensor.shape)
        error = (tensor.double() - expected_tensor).abs().max().item()
        assert error <= tolerance, f"step {step}: off by {error}"


def one_step(start: Tensor, gradient: Tensor, **options: Any) -> Tensor:
    return path(partial(Shampoo, **options), start, [gradient])[0]


def state_of(shape: tuple[int, ...], **options: Any) -> dict[str, Any]:
    """The state of a parameter of this shape after its first step."""
    theta = nn.Parameter(torch.ones(shape))
    theta.grad = torch.ones(shape)
    optimizer = Shampoo([theta], **options)
    optimizer.step()
    state: dict[str, Any] = optimizer.state[theta]
    return state


def elements(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else sum(map(elements, value))


@every_shape
@every_decay
@directions
def test_the_papers_form(name: str, decay: float, decoupled: bool, maximize: bool) -> None:
    """Algorithms 1 and 2, every axis an axis of its own."""
    start, gradients = problem(SHAPES[name])
    build = partial(
        Shampoo,
        lr=0.02,
        eps=1e-2,
        weight_decay=decay,
        decoupled_weight_decay=decoupled,
        maximize=maximize,
        **PAPER,
    )
    expected = shampoo(
        flat([start])[0],
        flat(gradients),
        SHAPES[name] or (1,),
        0.02,
        1e-2,
        decay=decay,
        decoupled=decoupled,
        maximize=maximize,
    )
    assert_equal(path(build, start, gradients), expected)


ROOT_STEPS = {1, 2, *range(3, STEPS + 1, 3)}
STATISTICS_STEPS = {1, 2, *range(4, STEPS + 1, 4)}


@every_shape
@graftings
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("statistics_decay", [1.0, 0.9])
def test_the_practical_form(
    name: str, grafting: Any, momentum: float, statistics_decay: float, short_run: None
) -> None:
    """Axes merged; roots and statistics at intervals; length and momentum; 5 leaves 3 + 2."""
    start, gradients = problem(SHAPES[name])
    build = partial(
        Shampoo,
        lr=0.02,
        eps=1e-3,
        momentum=momentum,
        statistics_decay=statistics_decay,
        statistics_every=4,
        root_every=3,
        block_size=4,
        grafting=grafting,
    )
    expected = shampoo(
        flat([start])[0],
        flat(gradients),
        MERGED[name],
        0.02,
        1e-3,
        relative=grafting is not None,
        mu=momentum,
        beta=statistics_decay,
        statistics_steps=STATISTICS_STEPS,
        root_steps=ROOT_STEPS,
        block_size=4,
        grafting=grafting,
    )
    assert_equal(path(build, start, gradients), expected)


@every_decay
@directions
@graftings
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 5), (7,)])
def test_blocks_with_ragged_edges(
    shape: tuple[int, ...], grafting: Any, decay: float, decoupled: bool, maximize: bool
) -> None:
    """No row of zeros that fills a block may be seen in the others; decay and sign as ever."""
    start, gradients = problem(shape, 22)
    build = partial(
        Shampoo,
        lr=0.02,
        eps=1e-3,
        weight_decay=decay,
        decoupled_weight_decay=decoupled,
        root_every=1,
        block_size=3,
        merge_dims=False,
        grafting=grafting,
        maximize=maximize,
    )
    expected = shampoo(
        flat([start])[0],
        flat(gradients),
        shape,
        0.02,
        1e-3,
        relative=grafting is not None,
        mu=0.9,
        block_size=3,
        grafting=grafting,
        decay=decay,
        decoupled=decoupled,
        maximize=maximize,
    )
    assert_equal(path(build, start, gradients), expected)


@pytest.mark.parametrize("part", [1, 12, 20, 30])
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 5), (7,), (6, 6)])
def test_blocks_in_parts(
    shape: tuple[int, ...], part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are worked on at a time."""
    start, gradients = problem(shape, 10)
    build = partial(Shampoo, lr=0.02, root_every=1, block_size=3, merge_dims=False)
    whole = path(build, start, gradients)
    monkeypatch.setattr(shampoo_module, "_PART", part)
    for ours, theirs in zip(path(build, start, gradients), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@every_shape
def test_float32_stays_close(name: str) -> None:
    """A thousandth of the way: a float32 eigenvalue is good to 1e-7 of the largest."""
    start, gradients = problem(SHAPES[name])
    build = partial(Shampoo, lr=0.02, root_every=1, block_size=4)
    expected = shampoo(
        flat([start.float()])[0],
        flat([g.float() for g in gradients]),
        MERGED[name],
        0.02,
        1e-4,
        relative=True,
        mu=0.9,
        block_size=4,
        grafting="rmsprop",
    )
    ours = path(build, start.float(), gradients)
    way = max((tensor.double() - start).abs().max().item() for tensor in ours)
    assert_equal(ours, expected, 1e-3 * way)


@pytest.mark.parametrize("shape, share", [((4, 3), 1 / 4), ((5,), 1 / 2), ((2, 3, 4), 1 / 6)])
def test_exponent(shape: tuple[int, ...], share: float) -> None:
    """−1/2k each, not −1/k: scaling the gradient by c scales L by c², so P by c^(1 − 2k/2k) = 1.

    And with an ε that dwarfs the statistics, P = ε^(−k/2k) G.
    """
    start, (gradient, *_) = problem(shape)
    options = {**PAPER, "lr": 1.0, "eps": 1e-12}
    once = one_step(start, gradient * 1e4, **options) - start
    twice = one_step(start, gradient * 2e4, **options) - start
    torch.testing.assert_close(once, twice, rtol=1e-3, atol=1e-3)
    step = one_step(start, gradient, **{**PAPER, "lr": 1.0, "eps": 1e12}) - start
    torch.testing.assert_close(step, -1e-6 * gradient, rtol=1e-8, atol=0)
    statistics = state_of(shape, **PAPER)["statistics"]
    assert share == 1 / (2 * len(statistics))


def test_every_axis_counts_the_same_raw_gradient() -> None:
    """A peer's later axes see a gradient that the earlier ones have preconditioned."""
    _, gradients = problem((4, 3))
    gradients = gradients[:3]
    theta = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    optimizer = Shampoo([theta], **PAPER)
    for gradient in gradients:
        theta.grad = gradient
        optimizer.step()
    statistics = [L.squeeze(0).tril() for L in optimizer.state[theta]["statistics"]]
    torch.testing.assert_close(statistics[0], sum((g @ g.T).tril() for g in gradients))
    torch.testing.assert_close(statistics[1], sum((g.T @ g).tril() for g in gradients))


def test_decoupled_decay_is_applied_once() -> None:
    """A peer multiplies the parameter twice."""
    start = torch.full((3, 2), 4.0)
    moved = one_step(start, torch.zeros(3, 2), lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(moved, start * (1 - 0.1 * 0.5))


@graftings
def test_moves_from_the_first_step(grafting: Any) -> None:
    """Peers wait for the first ``interval`` steps, or take them without a preconditioner."""
    start, gradients = problem((4, 3))
    amortized = one_step(start, gradients[0], root_every=20, grafting=grafting)
    assert torch.equal(amortized, one_step(start, gradients[0], root_every=1, grafting=grafting))
    assert not torch.equal(amortized, start)
    norm = torch.linalg.vector_norm
    step = start - amortized
    cosine = (step * gradients[0]).sum() / (norm(step) * norm(gradients[0]))
    assert 0 < cosine < 0.99  # downhill, but not along the gradient


def test_a_matrix_stays_a_matrix() -> None:
    """A peer merges 5 × 4 into a vector of 20, which makes it full-matrix AdaGrad."""
    assert [L.shape for L in state_of((5, 4))["statistics"]] == [(1, 5, 5), (1, 4, 4)]


@pytest.mark.parametrize(
    "shape, block_size, number, sizes",
    [
        ((512, 512, 3, 3), 256, 4, (256, 256, 9)),
        ((64, 3, 3, 3), 256, 1, (64, 27)),
        ((64, 3, 3, 3), 26, 3, (22, 3, 9)),
        ((8, 1, 4, 1), 256, 1, (8, 4)),
        ((1, 1, 7), 256, 1, (7,)),
        ((1, 1), 256, 1, (1,)),
        ((), 256, 1, (1,)),
        ((600,), 256, 3, (200,)),
        ((100, 512), 256, 2, (100, 256)),
        ((6, 2, 5), None, 1, (6, 10)),
    ],
)
def test_axes_and_blocks(
    shape: tuple[int, ...], block_size: int | None, number: int, sizes: tuple[int, ...]
) -> None:
    statistics = state_of(shape, block_size=block_size)["statistics"]
    assert [L.shape for L in statistics] == [(number, n, n) for n in sizes]


@pytest.mark.parametrize("shape, number", [((2, 3, 1, 2), 1), ((1, 1, 7), 1), ((), 1)])
def test_axes_as_they_are(shape: tuple[int, ...], number: int) -> None:
    statistics = state_of(shape, merge_dims=False)["statistics"]
    assert [L.shape for L in statistics] == [(1, n, n) for n in shape or (1,)]


def test_blocks_are_tensors_of_their_own() -> None:
    """Without grafting, which is of the whole tensor, a block moves as if it were alone."""
    start, gradients = problem((6, 4, 5), 20)
    options = {"lr": 0.1, "eps": 1e-2, "grafting": None, "merge_dims": False}
    whole = path(partial(Shampoo, block_size=3, **options), start, gradients)
    corner = (slice(3, 6), slice(0, 2), slice(3, 5))
    part = path(partial(Shampoo, **options), start[corner], [g[corner] for g in gradients])
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[corner], b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "grafting, build",
    [
        ("sgd", partial(torch.optim.SGD, lr=0.1)),
        ("adagrad", partial(torch.optim.Adagrad, lr=0.1, eps=1e-8)),
        ("rmsprop", partial(torch.optim.Adam, lr=0.1, betas=(0.0, 0.9))),
    ],
)
def test_grafted_steps_are_as_long_as_the_other_methods(grafting: Any, build: Any) -> None:
    """PyTorch's own; Adam without a first moment is RMSprop with its bias corrected."""
    _, gradients = problem((4, 6), 20)
    other = nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    ours = nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    theirs = build([other])
    decay = 0.9 if grafting == "rmsprop" else 1.0
    options = {"momentum": 0.0, "block_size": 3, "statistics_decay": decay}
    optimizer = Shampoo([ours], lr=0.1, grafting=grafting, **options)
    for gradient in gradients:
        before = ours.detach().clone(), other.detach().clone()
        ours.grad, other.grad = gradient, gradient
        optimizer.step()
        theirs.step()
        torch.testing.assert_close((ours - before[0]).norm(), (other - before[1]).norm())


def test_direction_does_not_depend_on_the_gradients_scale() -> None:
    """Nor the length, but for the 1e-8 of RMSprop: a loss in other units trains the same."""
    start, gradients = problem((4, 6), 20)
    ours = path(Shampoo, start, gradients)
    scaled = path(Shampoo, start, [1e-4 * g for g in gradients])
    torch.testing.assert_close(ours, scaled, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_zeros_at_first() -> None:
    """It gives no direction; the next one must neither be stuck nor blown up by its root."""
    start, gradients = problem((4, 3), 20)
    moved = path(partial(Shampoo, lr=0.1, root_every=20), start, [0 * gradients[0], *gradients])
    assert torch.equal(moved[0], start)
    for before, after in pairwise(moved):
        assert not torch.equal(after, before) and (after - before).abs().max() < 2


def test_momentum_counts_preconditioned_steps() -> None:
    """With a constant preconditioner, u is that of SGD with momentum on the same steps."""
    theta = nn.Parameter(torch.zeros(3))
    optimizer = Shampoo([theta], lr=1e6, momentum=0.5, eps=1e12, grafting=None)
    theta.grad = torch.ones(3)  # P = G / √ε
    for expected in (1.0, 2.5, 4.25):
        optimizer.step()
        torch.testing.assert_close(theta.detach(), torch.full((3,), -expected), rtol=1e-4, atol=0)


def test_memory_of_the_state() -> None:
    """As the docstring has it, in units of the parameter's size."""

    def shares(shape: tuple[int, ...], **options: Any) -> dict[str, float]:
        state = state_of(shape, **options)
        return {name: elements(state[name]) / math.prod(shape) for name in state if name != "step"}

    both = shares((32, 32), block_size=16)
    assert both == {"statistics": 2.0, "roots": 2.0, "v": 1.0, "u": 1.0}
    without = shares((32, 32), block_size=16, momentum=0.0, grafting="sgd")
    assert without == {"statistics": 2.0, "roots": 2.0}
    kernel = shares((512, 512, 3, 3), grafting=None, root_every=10**6)
    assert kernel["statistics"] + kernel["roots"] == pytest.approx(4 / 9, rel=1e-3)


def failing(*dtypes: torch.dtype) -> Callable[..., Any]:
    """An ``eigh`` that does not converge in these precisions."""
    eigh = torch.linalg.eigh

    def replacement(matrix: Tensor) -> Any:
        if matrix.dtype in dtypes:
            raise torch.linalg.LinAlgError("did not converge")
        return eigh(matrix)

    return replacement


def infinite(*dtypes: torch.dtype) -> Callable[..., Any]:
    """An ``eigh`` that returns what is not finite, as on some devices, in these precisions."""
    eigh = torch.linalg.eigh

    def replacement(matrix: Tensor) -> Any:
        eigenvalues, Q = eigh(matrix)
        return eigenvalues, Q * math.nan if matrix.dtype in dtypes else Q

    return replacement


broken = pytest.mark.parametrize("broken", [failing, infinite])


@broken
def test_a_root_that_fails_is_taken_in_float64(
    broken: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, gradients = problem((4, 3), 20)
    build = partial(Shampoo, lr=0.02)
    expected = path(build, start.float(), gradients)
    monkeypatch.setattr(torch.linalg, "eigh", broken(torch.float32))
    retried = path(build, start.float(), gradients)
    torch.testing.assert_close(retried, expected, rtol=1e-3, atol=1e-4)


@broken
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_root_that_fails_again_stays_the_last_one(
    broken: Callable[..., Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is said once, by the parameter's name; the statistics go on, and so do later roots."""
    start, gradients = problem((4, 3))
    interrupted, smooth = nn.Parameter(start.to(dtype)), nn.Parameter(start.to(dtype))
    optimizer = Shampoo([("layer.weight", interrupted)])
    reference = Shampoo([smooth])

    def step(gradient: Tensor) -> None:
        interrupted.grad = smooth.grad = gradient.to(dtype)
        optimizer.step()
        reference.step()

    step(gradients[0])
    roots = [root.clone() for root in optimizer.state[interrupted]["roots"]]
    with monkeypatch.context() as context, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        context.setattr(torch.linalg, "eigh", broken(torch.float32, torch.float64))
        for gradient in gradients[1:3]:
            interrupted.grad = gradient.to(dtype)
            before = interrupted.detach().clone()
            optimizer.step()
            assert interrupted.isfinite().all() and not torch.equal(interrupted, before)
    for root, last in zip(optimizer.state[interrupted]["roots"], roots, strict=True):
        assert torch.equal(root, last)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2  # one for each axis, although it failed twice
    for message in messages:
        assert "layer.weight of shape (4, 3)" in message and "keeps the last one" in message
    for gradient in gradients[1:3]:
        smooth.grad = gradient.to(dtype)
        reference.step()
    step(gradients[4])
    assert not torch.equal(optimizer.state[interrupted]["roots"][0], roots[0])
    for ours, theirs in zip(
        optimizer.state[interrupted]["roots"], reference.state[smooth]["roots"], strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_first_root_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one is then the identity: the step is the grafted method's along the gradient."""
    start, gradients = problem((4, 3))
    monkeypatch.setattr(torch.linalg, "eigh", failing(torch.float64))
    with pytest.warns(RuntimeWarning, match="number 0 of its group"):
        moved = one_step(start, gradients[0], lr=1.0, grafting="sgd")
    torch.testing.assert_close(moved, start - gradients[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_gradient_that_is_not_finite_leaves_no_trace_in_the_statistics(value: float) -> None:
    """Nor does one whose squares are not. θ and u show it, as under every optimizer of PyTorch."""
    start, gradients = problem((4, 6), 20)
    zero, bad = torch.zeros_like(start), torch.zeros_like(start)
    bad[1, 2] = value
    options: dict[str, Any] = {"momentum": 0.0, "block_size": 3}
    states = []
    for odd in (zero, bad):
        theta = nn.Parameter(start.float())
        optimizer = Shampoo([theta], **options)
        for gradient in [*gradients[:10], odd, *gradients[10:]]:
            theta.grad = gradient.float()
            optimizer.step()
            if gradient is bad:
                assert theta.isfinite().all() == math.isfinite(value)
        states.append(optimizer.state[theta])
    clean, met = states
    for name in ("statistics", "roots"):
        assert all(torch.equal(a, b) for a, b in zip(clean[name], met[name], strict=True))
    assert torch.equal(clean["v"], met["v"])


class ReadsToTheHost(TorchDispatchMode):
    """The tensors that were read into Python, for which a device would have been waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.read.append(args[0])
        return func(*args, **(kwargs or {}))


@graftings
def test_no_step_waits_for_the_device(
    grafting: Any, short_run: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Besides those that take roots: only the counter is read, which is on the CPU."""
    monkeypatch.setattr(shampoo_module, "_may_look", lambda _: False)
    start, gradients = problem((4, 3))
    theta = nn.Parameter(start)
    lr = torch.tensor(0.1)
    optimizer = Shampoo([theta], lr, weight_decay=0.1, block_size=3, grafting=grafting)
    theta.grad = gradients[0]
    for _ in range(16):
        optimizer.step()
    with ReadsToTheHost() as reads:
        optimizer.step()  # the 17th, without roots
    assert len(reads.read) == 1 and reads.read[0] is optimizer.state[theta]["step"]


def test_roots_are_due_more_often_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few steps behind it, a root is soon too old: on the digits, 5 % of the loss."""
    theta = nn.Parameter(torch.ones(3))
    theta.grad = torch.ones(3)
    optimizer = Shampoo([theta], root_every=20)
    eigh, due = torch.linalg.eigh, []

    def noticed(matrix: Tensor) -> Any:
        due.append(int(optimizer.state[theta]["step"]))
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", noticed)
    for _ in range(400):
        optimizer.step()
    assert due == [step for step in range(1, 401) if is_due(step, 20)]
    assert len(due) == 71


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_resume_is_bitwise(dtype: torch.dtype, tmp_path: Path) -> None:
    """Lists of tensors in the state, in their own precision, and a fresh parameter."""
    start, gradients = problem((4, 6), 20)
    first, second = nn.Parameter(start.to(dtype)), nn.Parameter(start.to(dtype))
    optimizer, resumed = Shampoo([first], block_size=3), Shampoo([second], block_size=3)
    for gradient in gradients[:10]:
        first.grad = gradient.to(dtype)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        second.copy_(first)
    expected = torch.promote_types(dtype, torch.float32)
    assert {L.dtype for L in resumed.state[second]["statistics"]} == {expected}
    for gradient in gradients[10:]:
        first.grad = second.grad = gradient.to(dtype)
        optimizer.step()
        resumed.step()
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("lr", -0.1, "lr=-0.1"),
        ("momentum", 1.0, "momentum=1.0"),
        ("eps", -1.0, "eps=-1.0"),
        ("weight_decay", -1.0, "weight_decay=-1.0"),
        ("statistics_decay", 1.1, "statistics_decay=1.1"),
        ("statistics_every", 0, "statistics_every=0"),
        ("root_every", 0, "root_every=0"),
        ("root_every", 2.5, "root_every=2.5"),
        ("root_every", None, "root_every=None"),
        ("block_size", 0, "block_size=0"),
        ("block_size", "all", "block_size='all'"),
        ("grafting", "adam", "grafting='adam'.*'rmsprop', 'adagrad', 'sgd', None"),
    ],
)
def test_ranges_name_the_argument_and_the_value(option: str, value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Shampoo([nn.Parameter(torch.ones(2, 2))], **{option: value})


def test_an_empty_parameter_is_left_alone() -> None:
    assert state_of((0, 3)) == {}
