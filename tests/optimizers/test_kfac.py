"""KFAC: its update against the oracle, its scale, its schedule, and what it says and refuses."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_opt.optimizers._kfac_layers import Layer
from lightning_opt.optimizers._kfac_recorder import Recorder
from lightning_opt.optimizers.kfac import KFAC
from oracles import kfac as oracle

STEPS = 22


class Net(nn.Module):
    """Convolutions, a linear layer shared over positions, one that is not, and a scale for SGD."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 2)
        self.scale = nn.Parameter(torch.ones(2))
        self.grouped = nn.Conv2d(2, 4, 2, groups=2, bias=False)
        self.shared = nn.Linear(4, 3)
        self.last = nn.Linear(3, 2, bias=False)
        generator = torch.Generator().manual_seed(1)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x)) * self.scale[:, None, None]
        x = torch.tanh(self.grouped(x))
        x = torch.tanh(self.shared(x.flatten(2).mT))
        logits: Tensor = self.last(x.sum(1))
        return logits


def data(step: int, examples: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(examples, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(2, (examples,), generator=generator)


class ByHand:
    """The same network one example and one position at a time, with the oracle's W."""

    def __init__(self, net: Net) -> None:
        def joined(layer: nn.Conv2d | nn.Linear) -> oracle.Matrix:
            assert layer.bias is not None
            W: oracle.Matrix = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1).tolist()
            return W

        groups = net.grouped.weight.flatten(1)
        self.layers = [
            [oracle.Map(joined(net.first))],
            [oracle.Map(groups[:2].tolist()), oracle.Map(groups[2:].tolist())],
            [oracle.Map(joined(net.shared))],
            [oracle.Map(net.last.weight.tolist())],
        ]
        self.others = [oracle.Map([net.scale.tolist()])]

    def assert_equal(self, net: Net, step: int) -> None:
        other = ByHand(net)
        for ours, theirs in zip(
            [*other.layers, other.others], [*self.layers, self.others], strict=True
        ):
            for a, b in zip(ours, theirs, strict=True):
                error = max(abs(x) for row in oracle.each(float.__sub__, a.W, b.W) for x in row)
                assert error <= 1e-10, f"step {step}: off by {error}"

    def step(
        self, optimizer: oracle.KFACOracle, batch: tuple[Tensor, Tensor], sharing: str
    ) -> None:
        weights = [
            [torch.tensor(m.W, dtype=torch.float64, requires_grad=True) for m in layer]
            for layer in [*self.layers, self.others]
        ]
        flat = [W for maps in weights for W in maps]
        count = len(batch[1])
        # For each map of each layer: the rows of each example.
        seen: list[list[list[list[oracle.Row]]]] = [[[] for _ in maps] for maps in weights[:-1]]
        gradients = [torch.zeros_like(W) for W in flat]
        for x, y in zip(*batch, strict=True):
            loss, uses = self.loss(weights, x, y)
            outputs = [s for maps in uses for rows in maps for _, s in rows]
            g_of = iter(torch.autograd.grad(loss, outputs, retain_graph=True))
            for layer, maps in enumerate(uses):
                for m, rows in enumerate(maps):
                    seen[layer][m].append([(a.tolist(), next(g_of).tolist()) for a, _ in rows])
            for total, part in zip(gradients, torch.autograd.grad(loss, flat), strict=True):
                total += part / count
        nablas = iter(gradient.tolist() for gradient in gradients)
        factors = {"expand": oracle.expand, "reduce": oracle.reduce}[sharing]
        optimizer.step(
            self.layers,
            [[next(nablas) for _ in maps] for maps in self.layers],
            [[factors(examples) for examples in maps] for maps in seen],
            self.others,
            [next(nablas)],
        )

    @staticmethod
    def loss(weights: list[list[Tensor]], x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        """Of one example, with ā and s of each row of each map of each layer."""
        (first,), grouped, (shared,), (last,), (scale,) = weights
        uses: list[list[list[tuple[Tensor, Tensor]]]] = []

        def apply(maps: list[Tensor], rows_of_each: list[list[Tensor]]) -> list[Tensor]:
            """s of each row, the maps' behind each other."""
            use = [
                [(row, W @ row) for row in rows] for W, rows in zip(maps, rows_of_each, strict=True)
            ]
            uses.append(use)
            return [torch.cat([s for _, s in row]) for row in zip(*use, strict=True)]

        def patches(image: Tensor, last: list[Tensor]) -> list[Tensor]:
            places = range(image.shape[1] - 1)
            cut = [image[:, i : i + 2, j : j + 2].reshape(-1) for i in places for j in places]
            return [torch.cat([patch, *last]) for patch in cut]

        one = torch.ones(1, dtype=torch.float64)
        rows = apply([first], [patches(x, [one])])
        hidden = torch.tanh(torch.stack(rows, 1).reshape(2, 3, 3)) * scale[0][:, None, None]
        rows = apply(grouped, [patches(hidden[:1], []), patches(hidden[1:], [])])
        rows = apply([shared], [[torch.cat([torch.tanh(s), one]) for s in rows]])
        (logits,) = apply([last], [[sum(torch.tanh(s) for s in rows)]])
        return F.cross_entropy(logits, y), uses


DEFAULT: dict[str, Any] = {
    "lr": 0.02,
    "momentum": 0.5,
    "damping": 0.05,
    "factor_decay": 0.8,
    "kl_clip": 1e-3,
    "factor_every": 3,
    "inverse_every": 5,
    "weight_sharing": "expand",
    "block_size": None,
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "maximize": False,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.0},
        {"kl_clip": None},
        {"kl_clip": 1e3},  # never active
        {"kl_clip": 1e-6},  # always
        {"weight_sharing": "reduce"},
        {"weight_sharing": "reduce", "block_size": 2, "kl_clip": None},
        {"block_size": 3},
        {"block_size": 1},
        {"factor_every": 1, "inverse_every": 1},
        {"factor_every": 7, "inverse_every": 4},
        {"factor_every": 1, "inverse_every": 1, "factor_decay": 0.0},
        {"weight_decay": 0.3},
        {"weight_decay": 0.3, "decoupled_weight_decay": True},
        {"weight_decay": 0.3, "maximize": True, "lr": 1e-3},
        {"damping": 1e-3, "lr": 1e-3},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "default",
)
def test_follows_the_oracle(options: dict[str, Any], short_run: None) -> None:
    chosen = {**DEFAULT, **options}
    net = Net()
    optimizer = KFAC(net.parameters(), net, conv_examples=None, **chosen)
    by_hand = ByHand(net)
    slow = oracle.KFACOracle(
        eta=chosen["lr"],
        mu=chosen["momentum"],
        lam=chosen["damping"],
        decay=chosen["factor_decay"],
        kappa=chosen["kl_clip"],
        factor_every=chosen["factor_every"],
        inverse_every=chosen["inverse_every"],
        block=chosen["block_size"],
        weight_decay=chosen["weight_decay"],
        decoupled=chosen["decoupled_weight_decay"],
        maximize=chosen["maximize"],
    )
    for step in range(1, STEPS + 1):
        x, y = data(step)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        by_hand.step(slow, (x, y), chosen["weight_sharing"])
        by_hand.assert_equal(net, step)


def test_embedding() -> None:
    """Whose weight is transposed, and whose A is a diagonal."""
    model = nn.Embedding(4, 3).double()
    optimizer = KFAC(model.parameters(), model, lr=0.1, momentum=0.0, damping=0.04, kl_clip=None)
    start = model.weight.detach().clone()
    words = torch.tensor([[0, 1, 1], [3, 1, 3]])
    (model(words) * torch.arange(18.0).reshape(2, 3, 3)).mean().backward()
    optimizer.step()
    A = torch.diag(torch.tensor([1, 3, 0, 2], dtype=torch.float64) / 6)
    G = optimizer.state[model.weight]["G"][0][0]
    pi = (A.trace() / 4 / (G.trace() / 3)).sqrt()
    left = torch.linalg.inv(A + pi * 0.2 * torch.eye(4))
    right = torch.linalg.inv(G + 0.2 / pi * torch.eye(3))
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight, start - 0.1 * left @ model.weight.grad @ right)


def test_clip_with_rates_of_their_own() -> None:
    """With them, ⟨ΔW, ∇W⟩ may be negative: κ bounds its size."""
    moves = []
    for kl_clip in (None, 1e-3):
        model = nn.Linear(1, 1).double()
        groups: list[dict[str, Any]] = [
            {"params": [model.weight], "lr": 0.0},
            {"params": [model.bias], "lr": 10.0},
        ]
        optimizer = KFAC(groups, model, momentum=0.0, kl_clip=kl_clip)
        model(torch.full((1, 1), 10.0, dtype=torch.float64)).sum().backward()
        model.weight.grad = torch.ones_like(model.weight)
        model.bias.grad = torch.full_like(model.bias, 0.05)
        start = model.bias.detach().clone()
        optimizer.step()
        moves.append((model.bias - start).item())
    free, clipped = moves  # −η Δb and −ν η Δb
    assert free * 0.05 > 0
    assert clipped / free == pytest.approx((1e-3 / (10.0 * free * 0.05)) ** 0.5)


# The Fisher matrix


def kron(optimizer: KFAC, weight: Tensor) -> Tensor:
    """The Fisher of a layer, rows and columns in the order of its weight (bias) matrix."""
    state = optimizer.state[weight]
    return torch.kron(state["G"][0][0], state["A"][0][0])


def test_one_example_of_a_linear_layer_is_exact() -> None:
    """Its empirical Fisher is the square of one gradient, whose rows and columns are δ and ā."""
    model = nn.Linear(4, 3).double()
    optimizer = KFAC(model.parameters(), model)
    F.cross_entropy(model(torch.rand(1, 4, dtype=torch.float64)), torch.tensor([2])).backward()
    assert model.bias.grad is not None and model.weight.grad is not None
    gradient = torch.cat([model.weight.grad, model.bias.grad[:, None]], 1).flatten()
    optimizer.step()
    torch.testing.assert_close(kron(optimizer, model.weight), torch.outer(gradient, gradient))


class DeepLinear(nn.Module):
    """Without nonlinearities, so that the Jacobians by s are the same for all inputs."""

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2, stride=2)
        self.dense = nn.Linear(3, 4)
        self.last = nn.Linear(4, 2, bias=False)
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(self.conv(x).flatten(2).mT)
        outputs: Tensor = self.last(x.mean(1) if self.pooled else x)
        return outputs


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_deep_linear_networks_are_exact(sharing: str) -> None:
    """With a square loss, the Hessian by one layer's weight is what K-FAC has for it.

    By expand where each position has an error of its own, by reduce where the loss sees their
    mean (2311.00636; 2507.05127). The Hessian of ‖f − y‖² is 2 Σ JᵀJ over the Jacobians of both
    outputs. A pass for each, taken for half of the loss, has gradients 2 J, and the mean of their
    squares over both passes is that.
    """
    torch.manual_seed(0)
    model = DeepLinear(pooled=sharing == "reduce").double()
    optimizer = KFAC(model.parameters(), model, weight_sharing=sharing)
    x = torch.rand(5, 2, 4, 4, dtype=torch.float64)
    for output in range(2):
        of_each = model(x)[..., output]
        optimizer.describe_loss(terms=of_each.numel())
        of_each.mean().backward()
    before = {p: p.detach().clone() for p in model.parameters()}
    optimizer.step()

    for layer in optimizer._layers:

        def loss(matrix: Tensor, layer: Layer = layer) -> Tensor:
            weights: dict[Tensor, Tensor] = {**before}
            layer.write(matrix, weights)
            named = {name: weights[p] for name, p in model.named_parameters()}
            outputs: Tensor = torch.func.functional_call(model, named, x)
            return outputs.square().sum(-1).mean()

        hessian = torch.autograd.functional.hessian(loss, layer.matrix(before))
        fisher = kron(optimizer, layer.weight)
        torch.testing.assert_close(fisher, hessian.reshape(fisher.shape))


def test_sampled_labels_give_the_fisher_of_the_model() -> None:
    """E[g gᵀ] = mean diag(p) − p pᵀ for logits that are the layer's output, whatever the labels."""
    torch.manual_seed(0)
    model = nn.Linear(2, 3, bias=False).double()
    optimizer = KFAC(model.parameters(), model, fisher="sampled")
    x = torch.randn(200, 100, 2, dtype=torch.float64)
    logits = model(x)
    optimizer.sample(logits)
    assert model.weight.grad is None
    F.cross_entropy(logits.flatten(0, 1), torch.zeros(20_000, dtype=torch.long)).backward()
    optimizer.step()
    p = logits.detach().softmax(-1).flatten(0, 1)
    expected = torch.diag(p.mean(0)) - p.T @ p / len(p)
    G = optimizer.state[model.weight]["G"][0][0]
    torch.testing.assert_close(G, expected, rtol=0.0, atol=0.01)
    A = optimizer.state[model.weight]["A"][0][0]
    torch.testing.assert_close(A, x.flatten(0, 1).T @ x.flatten(0, 1) / 20_000)


def test_sampling_only_where_factors_are_due(short_run: None) -> None:
    """And then it must not be forgotten; what it leaves out, the generator of numbers, stays."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))
    optimizer = KFAC(model.parameters(), model, fisher="sampled", factor_every=4)
    x, y = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
    drew = []
    for _ in range(8):
        optimizer.zero_grad()
        logits = model(x)
        before = torch.get_rng_state()
        optimizer.sample(logits)
        drew.append(not torch.equal(torch.get_rng_state(), before))
        assert not optimizer._recorder.waiting
        optimizer.zero_grad()  # in Lightning's order: between forward and backward
        F.cross_entropy(logits, y).backward()
        optimizer.step()
    assert drew == [True, True, False, True, False, False, False, True]
    assert optimizer.state[model[0].weight]["updates"] == 4


def test_sample_that_is_missing_or_superfluous() -> None:
    model = nn.Linear(2, 3)
    optimizer = KFAC(model.parameters(), model, fisher="sampled")
    start = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match=r"sampled.*optimizer\.sample\(logits\) between"):
        optimizer.step()
    assert torch.equal(model.weight, start) and not optimizer.state
    with pytest.raises(RuntimeError, match="fisher='empirical'"):
        KFAC(model.parameters(), model).sample(torch.ones(1, 3))


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_factors_are_those_of_curvlinops(sharing: str) -> None:
    """Of the library of 2507.05127, by products of its whole matrix with vectors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)

    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 2, stride=2, padding=1)
            self.dense = nn.Linear(2, 4)
            self.last = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.dense(torch.tanh(self.conv(x)).flatten(2).mT))
            logits: Tensor = self.last(x)
            return logits.mT if sharing == "expand" else logits.mean(1)

    model = Convolutional().double()
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    y = torch.randint(3, (5, 9) if sharing == "expand" else (5,))
    theirs = curvlinops.KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x, y)],
        fisher_type=curvlinops.FisherType.EMPIRICAL,
        kfac_approx=curvlinops.KFACType.EXPAND
        if sharing == "expand"
        else curvlinops.KFACType.REDUCE,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    vectors = {p: torch.randn_like(p) for p in model.parameters()}
    expected = dict(zip(model.parameters(), theirs @ list(vectors.values()), strict=True))

    optimizer = KFAC(model.parameters(), model, weight_sharing=sharing)
    optimizer.describe_loss(terms=y.numel())
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    for layer in optimizer._layers:
        state = optimizer.state[layer.weight]
        ours = state["G"][0] @ layer.matrix(vectors) @ state["A"][0]
        torch.testing.assert_close(ours, layer.matrix(expected))


# One scale, whatever the batch and the loss are made of


def factors(optimizer: KFAC) -> list[Tensor]:
    states = [optimizer.state[layer.weight] for layer in optimizer._layers]
    return [block for state in states for name in ("A", "G") for block in state[name]]


def assert_same_factors(ours: KFAC, theirs: KFAC) -> None:
    torch.testing.assert_close(factors(ours), factors(theirs), rtol=1e-10, atol=1e-14)


def reference(x: Tensor, y: Tensor) -> KFAC:
    """After one step, on the mean over one batch."""
    net = Net()
    optimizer = KFAC(net.parameters(), net, conv_examples=None)
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    return optimizer


def test_batch_size_does_not_matter() -> None:
    """A peer's tr(G) falls as 1/B², and so does all that damping and clip mean."""
    x, y = data(0)
    assert_same_factors(
        reference(torch.cat([x] * 4), torch.cat([y] * 4)),
        reference(x, y),
    )


@pytest.mark.parametrize("before", [True, False], ids=["before-forward", "after-forward"])
@pytest.mark.parametrize("of", [float, torch.tensor], ids=["number", "tensor"])
def test_factor_of_the_loss_is_undone(before: bool, of: Callable[[float], Any]) -> None:
    """A gradient scaler's scale, which is a tensor where asking for its value takes time."""
    x, y = data(0)
    net = Net()
    optimizer = KFAC(net.parameters(), net, conv_examples=None)
    if before:
        optimizer.describe_loss(factor=of(1024.0))
    loss = F.cross_entropy(net(x), y)
    if not before:
        optimizer.describe_loss(factor=of(1024.0))
    (1024 * loss).backward()
    optimizer.step()
    assert_same_factors(optimizer, reference(x, y))


def test_terms_that_are_not_the_examples() -> None:
    """Of five positions, those of two are masked: what the others have shown counts as theirs."""
    torch.manual_seed(0)
    x, y = torch.randn(4, 5, 2, dtype=torch.float64), torch.randint(3, (4, 5))
    chosen = torch.rand(4, 5) < 0.5
    pair = []
    for masked in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(2, 3).double()
        optimizer = KFAC(model.parameters(), model)
        if masked:
            labels = y.masked_fill(~chosen, -100)
            optimizer.describe_loss(terms=(labels != -100).sum())
            F.cross_entropy(model(x).mT, labels).backward()
        else:
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        pair.append(optimizer.state[model.weight]["G"])
    torch.testing.assert_close(*pair)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 3, 2)], ids=str)
def test_accumulated_gradients_are_one_batch(sizes: tuple[int, ...]) -> None:
    """Also of unequal parts, the loss of each divided by their number."""
    x, y = data(0, sum(sizes))
    net = Net()
    optimizer = KFAC(net.parameters(), net, conv_examples=None)
    for part, labels in zip(x.split(sizes), y.split(sizes), strict=True):
        (F.cross_entropy(net(part), labels) / len(sizes)).backward()
    optimizer.step()
    assert_same_factors(optimizer, reference(x, y))


def test_accumulated_losses_that_are_not_divided() -> None:
    x, y = data(0, 4)
    net = Net()
    optimizer = KFAC(net.parameters(), net, conv_examples=None)
    for part, labels in zip(x.split(2), y.split(2), strict=True):
        optimizer.describe_loss(factor=2)
        F.cross_entropy(net(part), labels).backward()
    optimizer.step()
    assert_same_factors(optimizer, reference(x, y))


def test_some_examples_of_a_convolution() -> None:
    """Evenly spaced; G keeps its scale, and linear layers see the whole batch."""
    x, y = data(0, 3)
    net = Net()
    optimizer = KFAC(net.parameters(), net, conv_examples=3)
    each = torch.arange(3).repeat_interleave(4)  # of which every fourth is taken
    F.cross_entropy(net(x[each]), y[each]).backward()
    optimizer.step()
    assert_same_factors(optimizer, reference(x, y))
    assert optimizer._recorder.passes == []
    net = Net()
    optimizer = KFAC(net.parameters(), net, conv_examples=1)
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    expected = factors(reference(x, y))
    one = factors(optimizer)
    for k, name in enumerate(layer.name for layer in optimizer._layers):
        same = torch.allclose(one[2 * k], expected[2 * k])
        assert same == (name in ("shared.weight", "last.weight"))


def test_layers_of_different_intervals() -> None:
    """The number of examples is that of the first layer that is recorded in the step."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    groups: list[dict[str, Any]] = [
        {"params": model[0].parameters(), "factor_every": 8},
        {"params": model[1].parameters(), "factor_every": 1},
    ]
    optimizer = KFAC(groups, model, factor_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        output = model(torch.randn(5, 2, dtype=torch.float64))
        output.retain_grad()
        output.square().mean().backward()
        optimizer.step()
    assert output.grad is not None
    G = optimizer.state[model[1].weight]["G"][0][0]
    torch.testing.assert_close(G, 5 * output.grad.T @ output.grad)


def test_description_of_a_loss_is_for_one_backward(short_run: None) -> None:
    """Also in a step that does not need it, and must not keep it for one that does."""
    x, y = data(0)
    net, other = Net(), Net()
    pair = [KFAC(n.parameters(), n, factor_every=4) for n in (net, other)]
    for step in range(4):
        for n, optimizer in zip((net, other), pair, strict=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(n(x), y)
            if step == 2 and n is net:
                optimizer.describe_loss(terms=1000)
            loss.backward()
            optimizer.step()
    assert_same_factors(*pair)


def test_lightning_zeroes_gradients_between_forward_and_backward() -> None:
    x, y = data(0)
    net = Net()
    optimizer = KFAC(net.parameters(), net, conv_examples=None)
    loss = F.cross_entropy(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    assert_same_factors(optimizer, reference(x, y))


# What must not get into the factors


def test_gradients_that_are_thrown_away_do_not_count() -> None:
    x, y = data(0)
    net = Net()
    optimizer = KFAC(net.parameters(), net, conv_examples=None)
    for _ in range(2):
        F.cross_entropy(net(3 * x), y).backward()
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    assert_same_factors(optimizer, reference(x, y))


def test_steps_that_a_gradient_scaler_skips() -> None:
    """As if they had not been; its infinite gradients are gone with the next zero_grad."""
    x, y = data(0)
    net = Net().float()
    optimizer = KFAC(net.parameters(), net, conv_examples=None)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-10)
    skipped = 0
    while "step" not in optimizer.state.get(net.last.weight, {}):
        optimizer.zero_grad()
        loss = 64 * F.cross_entropy(net(x.float()), y)
        optimizer.describe_loss(factor=64 * scaler.get_scale())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        skipped += 1
    assert skipped > 1
    expected = [block.float() for block in factors(reference(x, y))]
    torch.testing.assert_close(factors(optimizer), expected, rtol=1e-4, atol=1e-6)


def test_what_is_not_finite_is_not_averaged() -> None:
    """The weights may be lost; the factors are those of the batches before, and after."""
    net = Net()
    optimizer = KFAC(net.parameters(), net, factor_every=1, inverse_every=1)
    for scale in (float("inf"), 1.0, float("nan"), 1.0):
        x, y = data(0)
        optimizer.zero_grad()
        F.cross_entropy(net(x * scale), y).backward()
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    reference_factors = factors(reference(*data(0)))
    torch.testing.assert_close(factors(optimizer), reference_factors)
    for layer in optimizer._layers:
        state = optimizer.state[layer.weight]
        assert state["updates"] == 2
        assert all(block.isfinite().all() for block in state["A_inverse"])


def test_nothing_but_bad_batches_is_sgd() -> None:
    """Before there are factors, the inverses are identities, not 1/λ."""
    model = nn.Linear(2, 1, bias=False)
    optimizer = KFAC(model.parameters(), model, lr=0.5, momentum=0.0, kl_clip=None)
    start = model.weight.detach().clone()
    model(torch.full((1, 2), float("nan"))).sum().backward()
    model.weight.grad = torch.ones(1, 2)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), start - 0.5)


def test_batch_that_shows_a_layer_nothing() -> None:
    """Such as padding only, which has no mean: the factors are those of before."""
    model = nn.Embedding(4, 2, padding_idx=0)
    optimizer = KFAC(model.parameters(), model)
    before: dict[str, Any] = {}
    for words in (torch.tensor([1, 2, 2]), torch.tensor([0, 0])):
        optimizer.zero_grad()
        model(words).square().sum().backward()
        optimizer.step()
        state = optimizer.state[model.weight]
        before = before or {name: state[name][0].clone() for name in ("A", "G")}
    assert state["step"] == 2 and state["updates"] == 1
    for name, block in before.items():
        assert torch.equal(state[name][0], block)


def test_map_without_inputs() -> None:
    """A channel that is always 0 has no π; its neighbour is not disturbed."""
    model = nn.Conv1d(2, 2, 2, groups=2, bias=False).double()
    optimizer = KFAC(model.parameters(), model, damping=0.04)
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    x[:, 0] = 0
    (model(x) * torch.randn(3, 2, 3)).sum().backward()
    optimizer.step()
    inverse = optimizer.state[model.weight]["A_inverse"][0]
    torch.testing.assert_close(inverse[0], torch.eye(2, dtype=torch.float64) / 0.2)
    assert inverse.isfinite().all() and model.weight.isfinite().all()


def test_zero_gradients_have_an_inverse() -> None:
    """π is 1 where a trace is 0."""
    model = nn.Linear(2, 2)
    optimizer = KFAC(model.parameters(), model)
    (0 * model(torch.zeros(1, 2))).sum().backward()
    start = model.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.weight, start)
    state = optimizer.state[model.weight]
    assert all(t.isfinite().all() for t in [*state["A_inverse"], *state["G_inverse"]])


def test_float64_where_float32_fails() -> None:
    """Where a factor's size hides its damping: 10⁶ + 0.01 is 10⁶ in float32."""
    model = nn.Linear(3, 1, bias=False)
    optimizer = KFAC(model.parameters(), model, damping=1e-4)
    (1e3 * model(torch.full((1, 3), 1e3))).sum().backward()  # so that G is 10⁶, too, and π is 1
    optimizer.step()
    state = optimizer.state[model.weight]
    A = torch.full((3, 3), 1e6, dtype=torch.float64)
    assert torch.equal(state["A"][0][0].double(), A)
    shift = float(1e-2 * (1e6 / state["G"][0]).sqrt())
    expected = torch.linalg.inv(A + shift * torch.eye(3))
    assert torch.linalg.cholesky_ex((A + shift * torch.eye(3)).float()).info > 0
    torch.testing.assert_close(state["A_inverse"][0][0].double(), expected, rtol=1e-5, atol=0.0)


def test_last_good_inverse_is_kept() -> None:
    """Where float64 fails as well: here for a factor that is negative."""
    model = nn.Linear(2, 2, bias=False)
    optimizer = KFAC(model.parameters(), model, factor_every=100, inverse_every=1)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.eye(2)).square().sum().backward()
        if step == 2:
            state = optimizer.state[model.weight]
            before = state["A_inverse"][0].clone()
            state["A"][0].copy_(-torch.eye(2))
        optimizer.step()
    assert torch.equal(state["A_inverse"][0], before)


# When


def test_schedule_of_factors_and_inverses(short_run: None) -> None:
    """At the powers of two, here, then at the multiples; the first step has both."""
    model = nn.Linear(2, 2)
    optimizer = KFAC(model.parameters(), model, factor_every=6, inverse_every=10)
    updated, inverted = [], []
    for step in range(1, 25):
        before = optimizer.state.get(model.weight, {})
        updates, inverse = before.get("updates", torch.zeros(())).clone(), before.get("A_inverse")
        optimizer.zero_grad()
        model(torch.randn(3, 2)).square().mean().backward()
        optimizer.step()
        state = optimizer.state[model.weight]
        if state["updates"] > updates:
            updated.append(step)
        if state["A_inverse"] is not inverse:
            inverted.append(step)
    assert updated == [1, 2, 4, 6, 12, 18, 24]
    assert inverted == [1, 2, 4, 8, 10, 20]


def test_nothing_is_recorded_between_updates(short_run: None) -> None:
    """The hooks cost nothing then."""
    model = nn.Linear(2, 2)
    optimizer = KFAC(model.parameters(), model, factor_every=3)
    recorded = []
    for _ in range(6):
        output = model(torch.randn(3, 2))
        recorded.append(bool(output._backward_hooks))
        output.sum().backward()
        optimizer.step()
    assert recorded == [True, True, True, False, False, True]


# With which model


def test_model_is_needed() -> None:
    model = nn.Linear(2, 2)
    optimizer = KFAC(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    message = (
        r"KFAC needs the model's layers: pass model=, or call attach\(model\) before the first "
        r"step\."
    )
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    with pytest.raises(RuntimeError, match=message):
        optimizer.coverage()
    assert optimizer.attach(model) is optimizer
    optimizer.step()


def test_wrong_models_are_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"attach\(Linear\).*none of its parameters"):
        KFAC(model.parameters(), nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model=0\.1 is not.*KFAC\(params, model, lr=0\.1\)"):
        KFAC(model.parameters(), 0.1)  # type: ignore[arg-type]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_attaching_again_and_detaching() -> None:
    """Old hooks go, also those of a model that is left; factors stay."""
    net = Net()
    optimizer = KFAC(net.parameters(), net)
    train(net, optimizer, 3)
    count, updates = hooks(net), optimizer.state[net.last.weight]["updates"].clone()
    optimizer.attach(net)
    assert hooks(net) == count == 4
    train(net, optimizer, 1)
    assert optimizer.state[net.last.weight]["updates"] == updates + 1
    whole = nn.ModuleList([net])
    optimizer.attach(whole)
    assert hooks(whole) == count
    assert optimizer.coverage().rows[0].name == "0.scale"
    optimizer.detach()
    assert hooks(net) == 0
    with pytest.raises(RuntimeError, match="needs the model"):
        optimizer.step()


def train(net: Net, optimizer: KFAC, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        x, y = data(step)
        F.cross_entropy(net(x.to(net.scale.dtype)), y).backward()
        optimizer.step()


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("copy", [deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("order", [1, -1], ids=["model-first", "optimizer-first"])
@pytest.mark.parametrize("steps", [0, 3, 4])
def test_copies_go_their_own_way(copy: Callable[[Any], Any], order: int, steps: int) -> None:
    """With the hooks on the copy of the model, before steps that need them and that do not."""
    net = Net()
    optimizer = KFAC(net.parameters(), net, factor_every=4, inverse_every=4)
    train(net, optimizer, steps)
    start = deepcopy(net)
    other, other_optimizer = copy((net, optimizer)[::order])[::order]
    train(net, optimizer, 5, steps)
    assert_same(other, start)
    train(other, other_optimizer, 5, steps)
    assert_same(net, other)
    other_optimizer.detach()
    assert hooks(other) == 0 and hooks(net) == 4


def test_copied_model_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moving average of the weights has hooks, which record nothing and hold nothing."""
    net = Net()
    optimizer = KFAC(net.parameters(), net)
    other = deepcopy(net)
    F.cross_entropy(other(data(0)[0]), data(0)[1]).backward()
    assert not optimizer._recorder.moments
    copied = next(iter(other.last._forward_hooks.values())).__self__
    assert isinstance(copied, Recorder) and copied is not optimizer._recorder
    assert not copied.moments and not copied.sites
    replaced = KFAC(other.parameters(), other)
    train(other, replaced, 1)
    train(net, optimizer, 1)
    assert_same(net, other)


@pytest.mark.parametrize("attach_first", [True, False])
@pytest.mark.parametrize("steps", [1, 5, 8])
def test_resume_is_bitwise(attach_first: bool, steps: int, tmp_path: Path) -> None:
    """From a file, into a new model and optimizer, whose options are the file's."""
    net = Net()
    options: dict[str, Any] = {"factor_every": 3, "inverse_every": 5, "block_size": 2}
    optimizer = KFAC(net.parameters(), net, **options)
    train(net, optimizer, steps)
    torch.save([net.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    train(net, optimizer, 8, steps)

    other = Net()
    model_state, optimizer_state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(model_state)
    resumed = KFAC(other.parameters(), other if attach_first else None, lr=7.0)
    resumed.load_state_dict(optimizer_state)
    if not attach_first:
        resumed.attach(other)
    train(other, resumed, 8, steps)
    assert_same(net, other)
    for layer, theirs in zip(optimizer._layers, resumed._layers, strict=True):
        ours, state = optimizer.state[layer.weight], resumed.state[theirs.weight]
        assert ours.keys() == state.keys()
        assert ours["step"] == state["step"] == steps + 8
        assert_equal_nested(ours, state)


def assert_equal_nested(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b) and a.dtype == b.dtype
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        assert_equal_nested(list(a.values()), list(b.values()))
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_equal_nested(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    """Factors of half-precision parameters are float32, and stay so through a file."""
    kept = torch.promote_types(dtype, torch.float32)
    x = torch.randn(4, 2, 5).to(dtype)
    file = tmp_path / "state.pt"
    for _ in range(2):
        model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Linear(4, 2)).to(dtype)
        optimizer = KFAC(model.parameters(), model, lr=1e-3)
        if file.exists():
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        for layer in optimizer._layers:
            state = optimizer.state[layer.weight]
            assert state["u"].dtype == kept
            for name in ("A", "G", "A_inverse", "G_inverse"):
                assert {block.dtype for block in state[name]} == {kept}
        assert all(p.dtype == dtype for p in model.parameters())
        torch.save(optimizer.state_dict(), file)


def test_mixed_precision_has_factors_in_float32() -> None:
    """Inputs and gradients in bfloat16, which cannot add up more than 256 examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = KFAC(model.parameters(), model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(torch.ones(3000, 3)), torch.zeros(3000, dtype=torch.long))
    loss.backward()
    optimizer.step()
    A = optimizer.state[model[0].weight]["A"][0]
    torch.testing.assert_close(A, torch.ones(1, 4, 4))
    assert optimizer.state[model[2].weight]["G"][0].dtype == torch.float32


def test_group_added_in_the_middle_of_a_run(short_run: None) -> None:
    """Its layers are recorded from the next step on; a bias that joins renews its factors."""
    net = Net()
    first: list[Any] = [net.first.weight, net.last.weight]
    optimizer = KFAC(first, net, factor_every=10, inverse_every=10)
    train(net, optimizer, 5)
    assert optimizer.state[net.first.weight]["A"][0].shape == (1, 4, 4)
    optimizer.add_param_group({"params": [net.first.bias], "lr": 0.01, "weight_decay": 0.1})
    optimizer.add_param_group({"params": list(net.shared.parameters()), "damping": 0.3})
    start = weights(net)
    train(net, optimizer, 1, 5)
    state = optimizer.state[net.first.weight]
    assert state["A"][0].shape == (1, 5, 5) and state["updates"] == 1 and state["step"] == 6
    assert state["A_inverse"][0].shape == (1, 5, 5)
    assert optimizer.state[net.last.weight]["updates"] == 3  # at 1, 2 and 4
    assert optimizer.state[net.shared.weight]["updates"] == 1
    assert not torch.equal(net.shared.weight, start["shared.weight"])
    assert torch.equal(net.scale, start["scale"])


def test_weight_and_bias_in_groups_of_their_own() -> None:
    """As decay often is set: preconditioned together, moved by the options of each."""
    together, apart = Net(), Net()
    one = KFAC(together.parameters(), together, lr=0.1, momentum=0.0)
    biases = [p for name, p in apart.named_parameters() if name.endswith("bias")]
    others = [p for name, p in apart.named_parameters() if not name.endswith("bias")]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": biases, "lr": 0.0}]
    two = KFAC(groups, apart, lr=0.1, momentum=0.0, kl_clip=None)
    one.kl_clip = None
    start = weights(apart)
    train(together, one, 1)
    train(apart, two, 1)
    for name, p in apart.named_parameters():
        expected = start[name] if name.endswith("bias") else together.get_parameter(name)
        assert torch.equal(p, expected), name


def test_missing_gradients(short_run: None) -> None:
    """A layer counts from its first gradient; a bias without one is not moved."""
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer = KFAC(model.parameters(), model, factor_every=8, inverse_every=8)
    for step in range(8):
        optimizer.zero_grad()
        used = model[: 1 if step < 5 else 2]
        torch.stack([layer(torch.ones(1, 2)) for layer in used]).square().sum().backward()
        model[0].bias.grad = None
        if step == 5:
            model[1].weight.grad = None  # which was recorded
        optimizer.step()
    assert [optimizer.state[layer.weight]["step"] for layer in model] == [8, 2]
    assert [optimizer.state[layer.weight]["updates"] for layer in model] == [4, 2]
    assert model[0].bias not in optimizer.state


def test_range_errors() -> None:
    matrix = nn.Parameter(torch.ones(2, 2))
    for option, value, message in [
        ("lr", -0.1, "lr=-0.1"),
        ("momentum", 1.0, "momentum=1.0"),
        ("damping", -1.0, "damping=-1.0"),
        ("factor_decay", 1.0, "factor_decay=1.0"),
        ("kl_clip", -1.0, "kl_clip=-1.0"),
        ("factor_every", 0, "factor_every=0"),
        ("inverse_every", 2.5, "inverse_every=2.5 is not a whole number"),
        ("block_size", 0, "block_size=0"),
        ("conv_examples", "all", "conv_examples='all'"),
        ("fisher", "true", "fisher='true' is none of 'empirical', 'sampled'"),
        ("weight_sharing", "sum", "weight_sharing='sum' is none of 'expand', 'reduce'"),
        ("weight_decay", float("nan"), "weight_decay=nan"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            KFAC([matrix], **{option: value})
    with pytest.raises(ValueError, match=r"kl_clip=0\.1 is not an option of a parameter group"):
        KFAC([{"params": [matrix], "kl_clip": 0.1}])
    optimizer = KFAC([matrix])
    with pytest.raises(ValueError, match="damping=-1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "damping": -1})
    assert len(optimizer.param_groups) == 1


# Memory


@pytest.mark.parametrize(
    "model, limit",
    [(nn.Linear(768, 50_265, device="meta"), 0.5), (nn.Linear(25_088, 4096, device="meta"), 0.3)],
    ids=["vocabulary", "VGG11"],
)
def test_memory_of_wide_layers(model: nn.Linear, limit: float) -> None:
    """In GB of factors and inverses, where whole ones would take 20 and 5."""
    (layer,) = KFAC(model.parameters(), model)._layers
    shapes = [shape for shapes in layer.block_shapes() for shape in shapes]
    assert 2 * 4 * sum(prod(shape) for shape in shapes) < limit * 1e9
    assert max(max(shape) for shape in shapes) <= 1024


# In company


def as_rank(rank: int, folder: Path) -> None:
    """What each of two processes does: train on its half of every batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    net = Net()
    optimizer = KFAC(net.parameters(), net, factor_every=2, inverse_every=4)
    model = nn.parallel.DistributedDataParallel(net)
    for step in range(10):
        x, y = data(step, 4)
        optimizer.zero_grad()
        for half in (0, 1):  # accumulated
            part = slice(2 * rank + half, 2 * rank + half + 1)
            (F.cross_entropy(model(x[part]), y[part]) / 2).backward()
        optimizer.step()
    torch.save(net.state_dict(), folder / f"{rank}.pt")
    torch.distributed.barrier()  # a rank that is gone would be an error to the other
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that ends in order


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """On the union of their batches; a peer averages the factors' inverses."""
    tests = str(Path(__file__).parents[1])
    code = (
        "import sys, runpy, pathlib; sys.path.insert(0, sys.argv[2]); "
        "runpy.run_path(sys.argv[1])['as_rank'](int(sys.argv[4]), pathlib.Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, __file__, tests, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in (0, 1)]
    net = Net()
    optimizer = KFAC(net.parameters(), net, factor_every=2, inverse_every=4)
    for step in range(10):
        x, y = data(step, 4)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for rank in (0, 1):
        for name, weight in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(weight, net.get_parameter(name).detach(), msg=name)


def fit(folder: Path, steps: int, checkpoint: str | None = None, **options: Any) -> dict[str, Any]:
    """The checkpoint after ``steps`` steps of a Lightning fit, which saves every fifth."""
    from pytorch_lightning import LightningModule, Trainer
    from pytorch_lightning.callbacks import ModelCheckpoint

    class Task(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net().float()

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            x, y = data(self.global_step)  # not the batch: the loader does not resume
            return F.cross_entropy(self.net(x.float()), y)

        def configure_optimizers(self) -> KFAC:
            return KFAC(self.parameters(), self, factor_every=3, inverse_every=4)

    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=5, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    loader = torch.utils.data.DataLoader(torch.arange(14))
    trainer.fit(Task(), loader, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    end: dict[str, Any] = torch.load(folder / "end.ckpt", weights_only=True)
    return end


@pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|is not resumable|exists and is not empty)"
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_resumes_bitwise(precision: Any, tmp_path: Path, short_run: None) -> None:
    """Accumulated and clipped, from a checkpoint between two updates of the factors."""
    options: dict[str, Any] = {
        "precision": precision,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.5,
    }
    uninterrupted = fit(tmp_path, 11, **options)
    resumed = fit(tmp_path, 11, str(tmp_path / "step=5.ckpt"), **options)
    assert_equal_nested(resumed["state_dict"], uninterrupted["state_dict"])
    assert_equal_nested(resumed["optimizer_states"], uninterrupted["optimizer_states"])
    (state,) = uninterrupted["optimizer_states"]
    assert {entry["updates"].item() for entry in state["state"].values() if "A" in entry} == {5.0}
