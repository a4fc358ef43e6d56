"""SVRG: its update, and that evaluating twice leaves no trace but in the step."""

from __future__ import annotations

import io
import math
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_opt.optimizers import SVRG, LinearDecay, Lookahead
from oracles.svrg import svrg

STEPS = 25
SAMPLES = 5
SHAPES = {"matrix": (4, 3), "vector": (5,), "kernel": (3, 2, 2, 2), "scalar": ()}


class Sum(nn.Module):
    """Losses f_i(θ) = Σ a_i θ²/2 + b_i sin θ, i < 5, whose gradient the oracle writes down."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        self.theta = nn.Parameter(draw(shape).to(dtype))
        self.a = draw((SAMPLES, *shape)).exp().to(dtype)
        self.b = 3 * draw((SAMPLES, *shape)).to(dtype)

    def forward(self, i: int) -> Tensor:
        return (self.a[i] * self.theta**2 / 2 + self.b[i] * self.theta.sin()).sum()

    def gradient(self, i: int, theta: list[float]) -> list[float]:
        a, b = self.a[i].reshape(-1).tolist(), self.b[i].reshape(-1).tolist()
        return [a[j] * x + b[j] * math.cos(x) for j, x in enumerate(theta)]


def closure(model: Callable[..., Tensor], optimizer: Optimizer, *sample: Any) -> Any:
    """The usual one: zeroes, evaluates the model on ``sample``, and returns the loss."""

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = model(*sample)
        loss.backward()
        return loss.detach()

    return evaluate


def counted(model: Any, optimizer: Optimizer, sample: int, terms: float) -> Any:
    evaluate = closure(model, optimizer, sample)
    return lambda: (evaluate(), terms)


def flat(tensor: Tensor) -> list[float]:
    return tensor.detach().reshape(-1).tolist()


# Before which steps a snapshot is taken, of which samples with which weights.
SNAPSHOTS = {
    0: [(i, 1.0) for i in range(SAMPLES)],
    6: [(0, 3.0), (2, 1.0), (3, 0.5), (4, 7.0)],
    17: [(1, 2.0), (0, 0.0)],
}
ORDER = [(3 * step + step // 5) % SAMPLES for step in range(STEPS)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize(
    "decay, decoupled", [(0.0, False), (0.1, False), (0.1, True)], ids=["none", "l2", "decoupled"]
)
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize(
    "coefficient",
    [1.0, 0.4, LinearDecay(steps=20), lambda step: 1 / (1 + step)],
    ids=["one", "constant", "decaying", "function"],
)
def test_follows_the_oracle(
    shape: tuple[int, ...],
    momentum: float,
    decay: float,
    decoupled: bool,
    maximize: bool,
    coefficient: Any,
) -> None:
    model = Sum(shape)
    optimizer = SVRG(
        model.parameters(),
        lr=0.02,
        momentum=momentum,
        weight_decay=decay,
        coefficient=coefficient,
        decoupled_weight_decay=decoupled,
        maximize=maximize,
    )
    expected = svrg(
        flat(model.theta),
        model.gradient,
        ORDER,
        SNAPSHOTS,
        0.02,
        momentum,
        coefficient if callable(coefficient) else lambda step: coefficient,
        decay=decay,
        decoupled=decoupled,
        maximize=maximize,
    )
    for step, (sample, theta) in enumerate(zip(ORDER, expected, strict=True)):
        if step in SNAPSHOTS:
            optimizer.snapshot(counted(model, optimizer, *pair) for pair in SNAPSHOTS[step])
        optimizer.step(closure(model, optimizer, sample))
        error = max(abs(x - y) for x, y in zip(flat(model.theta), theta, strict=True))
        assert error <= 1e-10, f"step {step}: off by {error}"


class Net(nn.Module):
    """BatchNorm, dropout and a buffer that is replaced, on 4 features and 3 classes."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)
        )
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return F.cross_entropy(self.layers(x + 0.1 * random.random()), y)


def batches(count: int = 6, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, size, 4, generator=generator)
    return [(each, (each.sum(dim=1) > 0).long()) for each in x]


def closures(model: nn.Module, optimizer: Optimizer) -> list[Any]:
    return [closure(model, optimizer, *batch) for batch in batches()]


def copies(tensors: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def assert_equal(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-12) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def generators() -> tuple[Tensor, Any]:
    return torch.get_rng_state(), random.getstate()


def assert_same_generators(one: tuple[Tensor, Any], other: tuple[Tensor, Any]) -> None:
    assert torch.equal(one[0], other[0]) and one[1] == other[1]


def trained(**options: Any) -> tuple[Net, SVRG]:
    """A net a few steps away from its snapshot."""
    model = Net()
    optimizer = SVRG(model.parameters(), lr=0.1, **{"model": model, **options})
    steps = closures(model, optimizer)
    optimizer.snapshot(steps)
    for step in steps[:3]:
        optimizer.step(step)
    return model, optimizer


# ------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("momentum, decay", [(0.0, 0.0), (0.9, 0.1)])
@pytest.mark.parametrize("coefficient", [0.0, 1e-300])
def test_without_the_correction_it_is_sgd(
    maximize: bool, momentum: float, decay: float, coefficient: float
) -> None:
    """With c = 0 at SGD's price; the other coefficient is 0 in float32 and pays for both."""
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": decay, "maximize": maximize}
    ours, theirs = Net(), Net()
    random.seed(0)
    state = torch.get_rng_state()
    optimizer = SVRG(ours.parameters(), model=ours, coefficient=coefficient, **options)
    optimizer.snapshot(closures(ours, optimizer))
    calls = []
    for step in closures(ours, optimizer):
        optimizer.step(lambda step=step: calls.append(1) or step())
    assert len(calls) == (6 if coefficient == 0 else 12)

    random.seed(0)
    torch.set_rng_state(state)
    sgd = SGD(theirs.parameters(), **options)
    for step in closures(theirs, sgd):
        sgd.step(step)
    assert_equal(ours.state_dict().values(), theirs.state_dict().values())


def test_at_the_snapshot_every_sample_gives_the_gradient_of_all() -> None:
    """Also through dropout, if it is the same mask at θ and at θ̃, and BatchNorm."""
    for sample in range(3):
        model = Net()
        optimizer = SVRG(model.parameters(), lr=0.1, model=model)
        steps = closures(model, optimizer)
        optimizer.snapshot(steps)
        start = copies(model.parameters())
        mu = [optimizer.state[p]["mu"] for p in model.parameters()]
        optimizer.step(steps[sample])
        expected = [p - 0.1 * g for p, g in zip(start, mu, strict=True)]
        assert_close(model.parameters(), expected, 1e-7)


def test_one_example_of_a_quadratic_is_enough() -> None:
    """∇f_i differ by a constant, which cancels: with η = 1 one step is at the minimum."""
    x = torch.tensor([3.0, -1.0, 10.0, 4.0], dtype=torch.float64)
    w = nn.Parameter(torch.tensor(7.0, dtype=torch.float64))
    optimizer = SVRG([w], lr=1.0)
    steps = [closure(lambda i=i: (w - x[i]) ** 2 / 2, optimizer) for i in range(4)]
    optimizer.snapshot(steps)
    optimizer.step(steps[2])
    assert w.item() == 4.0
    optimizer.step(steps[1])  # and stays there, far from its snapshot
    assert w.item() == 4.0


def test_mu_is_the_mean_over_all_terms() -> None:
    """Of batches of 2, 5 and 1 examples that is the gradient over the 8; unweighted it is not.

    A batch of none, whose mean is no number, has no part in it.
    """
    model = nn.Linear(4, 3, dtype=torch.float64)
    x = torch.randn(8, 4, dtype=torch.float64)
    y = torch.randint(3, (8,))
    optimizer = SVRG(model.parameters())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    def weighted(x: Tensor, y: Tensor) -> Any:
        evaluate = closure(loss, optimizer, x, y)
        return lambda: (evaluate(), torch.tensor(len(y)))

    def gradient(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(x, y), list(model.parameters()))

    def mu() -> list[Tensor]:
        return copies(optimizer.state[p]["mu"] for p in model.parameters())

    parts = list(zip(x.split([2, 5, 1]), y.split([2, 5, 1]), strict=True))
    nothing = counted(lambda i: math.nan * loss(x, y), optimizer, 0, 0)
    optimizer.snapshot([nothing, *(weighted(*part) for part in parts)])
    assert_close(mu(), gradient(x, y))
    optimizer.snapshot(closure(loss, optimizer, *part) for part in parts)
    each = [gradient(*part) for part in parts]
    assert_close(mu(), [sum(gradients) / 3 for gradients in zip(*each, strict=True)])
    with pytest.raises(AssertionError):
        assert_close(mu(), gradient(x, y))


def test_variance_falls_towards_the_snapshot_and_the_mean_stays() -> None:
    """Over the samples d has the mean ∇f(θ), and a variance of the order of |θ − θ̃|²."""
    distances = [1.0, 0.1, 0.01, 0.0]
    ratios = []
    for distance in distances:
        model = Sum((20,))
        optimizer = SVRG(model.parameters(), lr=1.0)
        every = [closure(model, optimizer, i) for i in range(SAMPLES)]
        optimizer.snapshot(every)
        model.theta.data += distance * torch.randn(20, generator=torch.Generator().manual_seed(3))
        there = model.theta.detach().clone()
        plain, corrected = [], []
        for step in every:
            optimizer.step(step)
            assert model.theta.grad is not None
            plain.append(model.theta.grad.clone())
            corrected.append(there - model.theta.detach())
            model.theta.data.copy_(there)
        d, g = torch.stack(corrected), torch.stack(plain)
        torch.testing.assert_close(d.mean(0), g.mean(0), rtol=1e-12, atol=1e-12)
        ratios.append((d.var(0).sum() / g.var(0).sum()).item())
    assert ratios[0] < 1
    for nearer, farther in zip(ratios[1:3], ratios[:2], strict=True):
        assert 1 / 300 < nearer / farther < 1 / 30
    assert ratios[-1] < 1e-28


def test_alpha_svrg_decays_over_the_steps_and_holds_between_snapshots() -> None:
    assert [LinearDecay(4)(step) for step in (0, 2, 4, 9)] == [0.75, 0.375, 0.0, 0.0]
    held = LinearDecay(steps=6, start=0.5, every=3)
    assert [held(step) for step in range(7)] == [0.5] * 3 + [0.25] * 3 + [0.0]


# ------------------------------------------------------------------- twice, without a trace


def test_the_closure_sees_the_snapshot_first_and_then_the_weights() -> None:
    """What is left is of the second: .grad, the loss, one update of the buffers, the generators."""
    model, optimizer = trained()
    reference = deepcopy(model)
    at_snapshot = copies(optimizer.state[p]["snapshot"] for p in model.parameters())
    here = copies(model.parameters())
    addresses = [p.data_ptr() for p in model.parameters()]
    seen = []
    x, y = batches()[4]

    def step() -> Tensor:
        assert torch.is_grad_enabled()
        assert all(p.grad is None for p in model.parameters())  # also if nobody zeroes them
        seen.append(copies(model.parameters()))
        loss = model(x, y)
        loss.backward()
        return loss.detach()

    before = generators()
    loss = optimizer.step(step)
    after = generators()
    assert len(seen) == 2
    assert_equal(seen[0], at_snapshot)
    assert_equal(seen[1], here)
    assert [p.data_ptr() for p in model.parameters()] == addresses

    torch.set_rng_state(before[0])
    random.setstate(before[1])
    expected = reference(x, y)
    gradients = torch.autograd.grad(expected, list(reference.parameters()))
    assert loss == expected
    assert_equal([p.grad for p in model.parameters()], gradients)
    assert_equal(model.buffers(), reference.buffers())
    assert_same_generators(after, generators())
    assert_equal([optimizer.state[p]["snapshot"] for p in model.parameters()], at_snapshot)


def test_batch_norm_is_updated_once_a_step_and_by_no_snapshot() -> None:
    """Without a model to guard, the optimizer cannot know of buffers: as documented."""
    for options, counts in [({}, (0, 1)), ({"model": None}, (6, 8))]:
        model = Net()
        optimizer = SVRG(model.parameters(), **{"model": model, **options})
        optimizer.snapshot(closures(model, optimizer))
        norm: Any = model.layers[1]
        assert norm.num_batches_tracked == counts[0] == model.calls
        optimizer.step(closures(model, optimizer)[0])
        assert norm.num_batches_tracked == counts[1] == model.calls


def test_a_snapshot_leaves_everything_as_it_was() -> None:
    model, optimizer = trained()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    gradients = [p.grad for p in model.parameters()]
    state, before = copies(model.state_dict().values()), generators()
    optimizer.snapshot(closures(model, optimizer))
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert_equal(gradients, map(torch.ones_like, gradients))
    assert_equal(model.state_dict().values(), state)
    assert_same_generators(before, generators())


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("what", ["step", "snapshot"])
def test_an_exception_leaves_everything_as_it_was(what: str, call: int) -> None:
    """At whichever evaluation: parameters, θ̃, μ, and but for the one at θ buffers, generators."""
    model, optimizer = trained()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    gradients = [p.grad for p in model.parameters()]
    weights = copies(model.parameters())
    state, before = copies(model.state_dict().values()), generators()
    of_optimizer = deepcopy(optimizer.state_dict())
    calls = []

    def fails() -> Tensor:
        loss = model(*batches()[0])
        loss.backward()
        calls.append(1)
        if len(calls) == call:
            raise KeyError("boom")
        return loss

    with pytest.raises(KeyError, match="boom"):
        optimizer.step(fails) if what == "step" else optimizer.snapshot([fails] * 3)
    assert_equal(model.parameters(), weights)
    assert optimizer.state_dict()["param_groups"] == of_optimizer["param_groups"]
    for key, entries in of_optimizer["state"].items():
        assert_equal(optimizer.state_dict()["state"][key].values(), entries.values())
    if what == "snapshot":
        assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    if what == "snapshot" or call == 1:
        assert_equal(model.state_dict().values(), state)
        assert_same_generators(before, generators())
    optimizer.step(closures(model, optimizer)[0])


@pytest.mark.parametrize("coefficient", [1.0, 0.0])
def test_a_closure_may_hand_out_the_same_memory_again(coefficient: float) -> None:
    """As with gradients in one flat buffer, or in a captured graph: no state is made of it."""
    model, reference = Sum((4,)), Sum((4,))
    build = partial(SVRG, lr=0.1, momentum=0.5, coefficient=coefficient)
    optimizer, usual = build(model.parameters()), build(reference.parameters())
    buffer = torch.zeros(4, dtype=torch.float64)

    def reusing(i: int) -> float:
        loss = model(i)
        buffer.copy_(torch.autograd.grad(loss, [model.theta])[0])
        model.theta.grad = buffer
        return loss.item()

    optimizer.snapshot(partial(reusing, i) for i in range(SAMPLES))
    usual.snapshot(closure(reference, usual, i) for i in range(SAMPLES))
    for i in range(4):
        optimizer.step(partial(reusing, i))
        usual.step(closure(reference, usual, i))
        assert model.theta.grad is buffer
        assert_equal([buffer, model.theta], [reference.theta.grad, reference.theta])


def test_autocast_does_not_remember_the_snapshot() -> None:
    """Its cache of weights in half precision knows them by the parameter, not by their content."""
    results = []
    for inside in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = SVRG(model.parameters(), lr=0.5)
        x, y = batches()[0]

        def loss() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return F.cross_entropy(model(x), y)  # noqa: B023

        evaluate = closure(loss, optimizer)
        optimizer.snapshot([evaluate])
        # The inner context of two leaves the cache to the outer.
        with torch.autocast("cpu", torch.bfloat16) if inside else nullcontext():
            for _ in range(3):
                optimizer.step(evaluate)
        results.append(copies(model.parameters()))
    assert_equal(*results)


def test_who_watches_the_closures_can_look_away_at_the_snapshot() -> None:
    model, optimizer = trained()
    events: list[str] = []

    @contextmanager
    def aside() -> Iterator[None]:
        events.append("enter")
        yield
        events.append("leave")

    optimizer.unobserved = aside
    evaluate = closures(model, optimizer)[0]
    optimizer.step(lambda: events.append("call") or evaluate())
    assert events == ["enter", "call", "leave", "call"]


# ------------------------------------------------------------------------------- memory


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside have had at one time, beside those from before."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        old = storages((args, kwargs))  # which views and what is done in place go on using
        for key, storage in storages(result).items():
            if key not in old:
                self.alive[key] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {k: (ref, n) for k, (ref, n) in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(n for _, n in self.alive.values()))
        return result


def storages(values: Any) -> dict[int, Any]:
    tensors = [v for v in torch.utils._pytree.tree_leaves(values) if isinstance(v, Tensor)]
    return {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.1, "maximize": True},
        {"lr": torch.tensor(0.1), "momentum": 0.9, "weight_decay": 0.1},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_memory(options: dict[str, Any]) -> None:
    """Persistent: θ̃ and μ (and u). In a step one gradient beside .grad, and a tensor or two."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(20)))
    parameters = sum(p.numel() * 4 for p in model.parameters())
    little = 2 * 64 * 64 * 4 + 0.02 * parameters
    x = torch.ones(1, 64)
    optimizer = SVRG(model.parameters(), model=model, **{"lr": 1e-3, **options})
    evaluate = closure(lambda: model(x).square().sum(), optimizer)
    momentum = parameters if "momentum" in options else 0

    with LiveBytes() as first:
        optimizer.snapshot([evaluate] * 3)
    assert first.peak <= 2 * parameters + little  # μ and a gradient, then μ and θ̃
    optimizer.step(evaluate)
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values())
    assert state == 2 * parameters + momentum

    # It begins with .grad from before, which does not count here, and is freed by the closure.
    with LiveBytes() as again:
        optimizer.step(evaluate)
    assert again.peak <= 2 * parameters + little
    optimizer.zero_grad()
    with LiveBytes() as sgd:
        SGD(model.parameters(), lr=1e-3).step(evaluate)
    assert again.peak - sgd.peak <= parameters + little

    optimizer.zero_grad()
    with LiveBytes() as snapshot:
        optimizer.snapshot([evaluate] * 3)
    assert snapshot.peak <= 2 * parameters + little


# ---------------------------------------------------------------- some gradients are missing


def test_parameters_without_a_gradient() -> None:
    """None at θ: left alone. None at θ̃: zero there. None in all of the snapshot: plain SGD."""
    switch, used, late = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (1.0, 2.0, 3))
    optimizer = SVRG([switch, used, late], lr=0.1)

    def loss(with_late: bool = False) -> Tensor:
        value = switch**2
        if switch > 0.9:  # only near the first snapshot
            value = value + 5 * used
        return value + late**2 if with_late else value

    evaluate = closure(loss, optimizer)
    optimizer.snapshot([evaluate])
    assert set(optimizer.state[switch]) == set(optimizer.state[used]) == {"mu", "snapshot"}
    assert not optimizer.state.get(late)
    switch.data.fill_(0.5)
    optimizer.step(evaluate)  # used has its gradient at θ̃ only
    assert used.item() == 2.0 and used.grad is None
    assert switch.item() == pytest.approx(0.5 - 0.1 * (1 - (2 - 2)))

    optimizer.step(closure(loss, optimizer, True))
    assert late.item() == pytest.approx(3 - 0.1 * 6)

    # At the second snapshot `used` has no gradient: its μ and θ̃ of before are out of date.
    switch.data.fill_(0.5)
    optimizer.snapshot([evaluate])
    assert not optimizer.state[used]
    # A third, where it has half a gradient on average, and then a sample that lacks one at θ̃.
    switch.data.fill_(0.5)
    optimizer.snapshot([evaluate, closure(lambda: 5 * used, optimizer)])
    switch.data.fill_(1.0)
    optimizer.step(evaluate)
    assert used.item() == pytest.approx(2.0 - 0.1 * (5 - (0 - 2.5)))


def test_parameters_that_join_are_trained_by_sgd_until_the_next_snapshot() -> None:
    """And count the steps of the others, which the coefficient is a function of."""
    first, second = Sum((3,)), Sum((3,))
    asked: list[int] = []
    optimizer = SVRG(first.parameters(), lr=0.01, coefficient=lambda t: asked.append(t) or 1.0)

    def loss(i: int) -> Tensor:
        return first(i) + second(i)

    optimizer.snapshot(closure(loss, optimizer, i) for i in range(SAMPLES))
    optimizer.step(closure(loss, optimizer, 0))
    optimizer.add_param_group({"params": second.parameters(), "lr": 0.02})
    before, there = second.theta.detach().clone(), flat(second.theta)
    optimizer.step(closure(loss, optimizer, 1))
    gradient = torch.tensor(second.gradient(1, there), dtype=torch.float64)
    torch.testing.assert_close(second.theta.detach(), before - 0.02 * gradient)
    optimizer.snapshot(closure(loss, optimizer, i) for i in range(SAMPLES))
    assert "mu" in optimizer.state[second.theta]
    optimizer.step(closure(loss, optimizer, 1))
    assert asked == [0, 1, 2]
    assert [group["steps"] for group in optimizer.param_groups] == [3, 3]
    with pytest.raises(ValueError, match="momentum=2"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "momentum": 2})
    assert len(optimizer.param_groups) == 2


def test_groups_have_their_own_options() -> None:
    alone = []
    for options in ({"lr": 0.1}, {"lr": 0.01, "momentum": 0.5, "maximize": True}):
        model = Sum((3,))
        optimizer = SVRG(model.parameters(), **options)
        optimizer.snapshot([closure(model, optimizer, 0)])
        for i in range(4):
            optimizer.step(closure(model, optimizer, i))
        alone.append(model.theta)
    one, two = Sum((3,)), Sum((3,))
    groups: list[dict[str, Any]] = [
        {"params": [one.theta], "lr": 0.1},
        {"params": [two.theta], "lr": 0.01, "momentum": 0.5, "maximize": True},
    ]
    optimizer = SVRG(groups)

    def loss(i: int) -> Tensor:
        return one(i) + two(i)

    optimizer.snapshot([closure(loss, optimizer, 0)])
    for i in range(4):
        optimizer.step(closure(loss, optimizer, i))
    assert_equal([one.theta, two.theta], alone)


# --------------------------------------------------------------------------- state and copies


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_resume_is_bitwise_in_every_precision(dtype: torch.dtype) -> None:
    """θ̃ has the parameter's precision, whose place it takes; μ and u have at least float32."""
    options = {"lr": 0.02, "momentum": 0.5, "coefficient": LinearDecay(steps=9)}
    model, other = Sum((6,), dtype), Sum((6,), dtype)
    optimizer = SVRG(model.parameters(), **options)
    optimizer.snapshot(closure(model, optimizer, i) for i in range(SAMPLES))
    for i in (0, 1, 2):
        optimizer.step(closure(model, optimizer, i))
    weights, state = through_a_file([model.state_dict(), optimizer.state_dict()])
    other.load_state_dict(weights)
    resumed = SVRG(other.parameters(), **{**options, "lr": 5.0})
    resumed.load_state_dict(state)
    assert resumed.has_snapshot
    for each in (optimizer.state[model.theta], resumed.state[other.theta]):
        assert each["snapshot"].dtype == dtype
        assert each["mu"].dtype == each["u"].dtype == torch.promote_types(dtype, torch.float32)
    for i in (3, 4, 0):
        optimizer.step(closure(model, optimizer, i))
        resumed.step(closure(other, resumed, i))
        assert_equal(model.parameters(), other.parameters())
    assert model.theta.dtype == dtype


def test_half_precision_does_not_round_the_correction() -> None:
    """μ and the sum of c's terms are float32's: 2⁻⁹ would vanish beside 1 in bfloat16."""
    w = nn.Parameter(torch.tensor(1.0, dtype=torch.bfloat16))
    optimizer = SVRG([w], lr=1.0)
    slopes = [1.0] * 511 + [0.0]
    steps = [closure(lambda s=s: w * s, optimizer) for s in slopes]
    optimizer.snapshot(steps)
    assert optimizer.state[w]["mu"] == 511 / 512
    optimizer.step(steps[0])
    assert w.item() == 2.0**-9


@pytest.mark.parametrize("copy", [deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_their_own_way(copy: Callable[[Any], Any]) -> None:
    """With the model that was copied along, and not with the one that was copied from."""
    model, optimizer = trained(coefficient=LinearDecay(10))
    optimizer.unobserved = lambda: pytest.fail("it is the original's, and not to be copied")
    other, copied = copy((model, optimizer))
    assert copied.model is other and copied.coefficient == LinearDecay(10)
    del optimizer.unobserved
    start, before = copies(other.state_dict().values()), generators()
    optimizer.step(closures(model, optimizer)[5])
    assert_equal(other.state_dict().values(), start)
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    copied.step(closures(other, copied)[5])
    assert_equal(model.state_dict().values(), other.state_dict().values())


def test_the_coefficient_is_no_plain_data_and_stays_out_of_the_groups() -> None:
    _, optimizer = trained(coefficient=lambda step: 0.5)
    assert all("coefficient" not in group for group in optimizer.param_groups)
    through_a_file(optimizer.state_dict())


def test_tensor_learning_rate() -> None:
    """With an axis, for a scalar parameter; the same path as with a number."""
    for shape in ((), (3,)):
        model, other = Sum(shape), Sum(shape)
        with_number = SVRG(model.parameters(), lr=0.02)
        with_tensor = SVRG(other.parameters(), lr=torch.tensor([0.02], dtype=torch.float64))
        for pair in ((model, with_number), (other, with_tensor)):
            pair[1].snapshot([closure(*pair, 0)])
            for i in range(4):
                pair[1].step(closure(*pair, i))
        assert other.theta.shape == shape
        assert_close(model.parameters(), other.parameters())


def test_inside_lookahead() -> None:
    """Which takes its slow weights from θ, and evaluates, saves and loads as over any base."""
    model, reference = Sum((3,)), Sum((3,))
    build = partial(SVRG, lr=0.05, momentum=0.5)
    optimizer = Lookahead(model.parameters(), build, k=2, alpha=0.25)
    plain = build(reference.parameters())
    slow = reference.theta.detach().clone()
    optimizer.base.snapshot(closure(model, optimizer, i) for i in range(SAMPLES))
    plain.snapshot(closure(reference, plain, i) for i in range(SAMPLES))
    for step in range(1, 7):
        optimizer.step(closure(model, optimizer, step % SAMPLES))
        plain.step(closure(reference, plain, step % SAMPLES))
        if step % 2 == 0:
            slow = slow.lerp(reference.theta.detach(), 0.25)
            reference.theta.data.copy_(slow)
        if step == 3:
            state = through_a_file(optimizer.state_dict())
            optimizer = Lookahead(model.parameters(), build, k=2, alpha=0.25)
            optimizer.load_state_dict(state)
        assert_close(model.parameters(), reference.parameters())


# --------------------------------------------------------------------------------- refusals


def test_steps_that_cannot_be_taken_say_what_to_do() -> None:
    model = Sum((3,))
    optimizer = SVRG(model.parameters())
    with pytest.raises(RuntimeError, match=r"step\(closure\).*16-mixed.*bf16-mixed"):
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"snapshot\(closures\).*SVRGSnapshot"):
        optimizer.step(closure(model, optimizer, 0))
    optimizer.snapshot([closure(model, optimizer, 0)])
    before = model.theta.detach().clone()
    model(0).backward()
    # As Lightning's step() without a closure in manual optimization.
    with pytest.raises(RuntimeError, match=r"computed no gradients.*loss\.backward\(\)"):
        optimizer.step(lambda: None)  # type: ignore[arg-type, return-value]
    assert torch.equal(model.theta, before)
    # As training_step returning None, to skip a batch.
    assert optimizer.step(lambda: None) is None  # type: ignore[arg-type, return-value]
    assert torch.equal(model.theta, before)


def test_snapshots_that_cannot_be_taken_say_what_to_do() -> None:
    """And leave the one there is."""
    model = Sum((3,))
    optimizer = SVRG(model.parameters())
    plain = closure(model, optimizer, 0)
    optimizer.snapshot([plain])
    mu = optimizer.state[model.theta]["mu"]
    cases: list[tuple[Any, type[Exception], str]] = [
        ([], ValueError, "is empty.*one closure for each batch"),
        (iter(()), ValueError, "used up"),
        ([counted(model, optimizer, 0, 0)], ValueError, "no term"),
        ([counted(model, optimizer, 0, -1)], ValueError, "terms=-1 is out of range"),
        ([counted(model, optimizer, 0, math.nan)], ValueError, "terms=nan"),
        ([lambda: (1.0, "many")], TypeError, "terms='many'"),
        ([lambda: (1.0, 2, 3)], ValueError, r"tuple of 3.*\(loss, terms\)"),
        ([plain, counted(model, optimizer, 0, 2)], ValueError, "some closures return"),
        ([lambda: 1.0], RuntimeError, r"loss\.backward\(\)"),
    ]
    for closures, kind, message in cases:
        with pytest.raises(kind, match=message):
            optimizer.snapshot(closures)
        assert optimizer.state[model.theta]["mu"] is mu


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": -0.1}, "lr=-0.1"),
        ({"lr": "1e-3"}, "lr='1e-3'"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"coefficient": -0.5}, "coefficient=-0.5"),
        ({"coefficient": math.nan}, "coefficient=nan"),
        ({"coefficient": "linear"}, "coefficient='linear'"),
        ({"model": nn.Linear(2, 2)}, r"attach\(Linear\): none of its parameters"),
    ],
)
def test_ranges_name_the_argument_and_the_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SVRG([nn.Parameter(torch.ones(2))], **options)


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"steps": 5, "start": -1}, {"steps": 5, "every": 0}]
)
def test_ranges_of_the_decay(options: dict[str, Any]) -> None:
    name, value = list(options.items())[-1]
    with pytest.raises(ValueError, match=f"{name}={value}"):
        LinearDecay(**options)


def test_a_coefficient_out_of_range_changes_nothing() -> None:
    model = Sum((3,))
    optimizer = SVRG(model.parameters(), coefficient=lambda step: 1.0 - step)
    every = closure(model, optimizer, 0)
    optimizer.snapshot([every])
    optimizer.step(every)
    optimizer.step(every)
    before = model.theta.detach().clone()
    with pytest.raises(ValueError, match=r"coefficient\(2\)=-1.0"):
        optimizer.step(every)
    assert torch.equal(model.theta, before)


def test_sparse_and_complex_are_refused_by_name() -> None:
    """Before anything moves, by a snapshot, and by a step if it is there that they appear."""
    dense = nn.Parameter(torch.ones(2))
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = SVRG([("dense", dense), ("table.weight", table.weight)], lr=0.1)

    def loss() -> Tensor:
        return dense.sum() + table(torch.tensor([1, 2])).sum()

    message = r"SVRG.*sparse.*table\.weight.*\(5, 2\)"
    with pytest.raises(ValueError, match=message):
        optimizer.snapshot([closure(loss, optimizer)])
    optimizer.snapshot([closure(dense.sum, optimizer)])
    with pytest.raises(ValueError, match=message):
        optimizer.step(closure(loss, optimizer))
    assert torch.equal(dense, torch.ones(2))
    with pytest.raises(ValueError, match=r"SVRG.*complex.*number 0"):
        SVRG([nn.Parameter(torch.ones(2, dtype=torch.complex64))])


# Newer releases of jsonargparse have deprecated this name; older ones have no other.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_coefficient_comes_from_yaml(tmp_path: Path) -> None:
    """As a number or as {class_path, init_args}, with LightningCLI's parser, and back to YAML."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_subclass_arguments(Optimizer, "optimizer", skip={"params"}, instantiate=False)
    alpha = {
        "class_path": "lightning_opt.optimizers.LinearDecay",
        "init_args": {"steps": 100, "start": 0.5},
    }
    for given, expected in [(0.25, 0.25), (alpha, LinearDecay(100, 0.5))]:
        config = {
            "class_path": "lightning_opt.optimizers.SVRG",
            "init_args": {"coefficient": given},
        }
        parsed = parser.parse_object({"optimizer": config})
        for namespace in (parsed, parser.parse_string(parser.dump(parsed))):
            arguments = parser.instantiate_classes(namespace).optimizer.init_args
            optimizer = SVRG([nn.Parameter(torch.zeros(2))], **vars(arguments))
            assert optimizer.coefficient == expected
