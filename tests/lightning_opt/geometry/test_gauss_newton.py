"""Gauss–Newton and the empirical Fisher against matrices formed from Jacobians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_opt.geometry import empirical_fisher, gauss_newton, hessian
from oracles.curvature import full_jacobian

METHODS = ("kept", "reverse", "forward")


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)
    ).double()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (9,), generator=generator)
    return [(x[:2], y[:2]), (x[2:], y[2:])]


def union(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def dense(operator) -> Tensor:
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


@pytest.mark.parametrize("columns", ["loop", "batched"])
@pytest.mark.parametrize("method", METHODS)
def test_gauss_newton_is_the_jacobian_around_the_losses_hessian(network, batches, method, columns):
    """Of softmax and cross entropy, diag p − p pᵀ for every example."""
    network.eval()
    x, _ = union(batches)
    J = full_jacobian(network, x)  # (examples, classes, n)
    exact = torch.zeros(J.shape[2], J.shape[2], dtype=torch.float64)
    for jacobian, logits in zip(J, network(x).detach(), strict=True):
        p = torch.softmax(logits, dim=0)
        exact += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / len(x)
    G = gauss_newton(
        lambda batch: network(batch[0]),
        lambda z, batch: (F.cross_entropy(z, batch[1]), len(z)),
        network.parameters(),
        batches,
        method=method,
        columns=columns,
    )
    torch.testing.assert_close(dense(G), exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("columns", ["loop", "batched"])
@pytest.mark.parametrize("method", METHODS)
def test_the_empirical_fisher_is_the_mean_of_squared_gradients(network, batches, method, columns):
    network.eval()
    x, y = union(batches)
    n = sum(p.numel() for p in network.parameters())
    exact = torch.zeros(n, n, dtype=torch.float64)
    for example, label in zip(x, y, strict=True):
        loss = F.cross_entropy(network(example[None]), label[None])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        g = torch.cat([gradient.reshape(-1) for gradient in gradients])
        exact += torch.outer(g, g) / len(x)
    fisher = empirical_fisher(
        lambda batch: F.cross_entropy(network(batch[0]), batch[1], reduction="none"),
        network.parameters(),
        batches,
        method=method,
        columns=columns,
    )
    torch.testing.assert_close(dense(fisher), exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_of_linear_regression_gauss_newton_is_the_hessian_and_the_data(method):
    """Of half the mean square: XᵀX / N."""
    x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.ones(7, dtype=torch.float64)
    w = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    G = gauss_newton(
        lambda _: x @ w, lambda z, _: (z - y).square().mean() / 2, [w], [None], method=method
    )
    H = hessian(lambda _: (x @ w - y).square().mean() / 2, [w], [None], method=method)
    torch.testing.assert_close(dense(G), x.T @ x / 7)
    torch.testing.assert_close(dense(H), x.T @ x / 7)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_where_there_is_no_curvature(method):
    x, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    linear = gauss_newton(lambda _: x * 2, lambda z, _: z.sum(), [x, unused], [None], method=method)
    assert (linear @ torch.ones(4)).tolist() == [0.0] * 4
    square = gauss_newton(
        lambda _: x * 2, lambda z, _: z.square().sum(), [x, unused], [None], method=method
    )
    assert (square @ torch.ones(4)).tolist() == [8.0, 8.0, 0.0, 0.0]


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_terms_counts_for_nothing(method):
    x = torch.ones(2, requires_grad=True)
    G = gauss_newton(
        lambda n: x * 2,
        lambda z, n: (z.square().sum() / n * n, n),
        [x],
        [3, 0],
        method=method,
    )
    assert (G @ torch.ones(2)).tolist() == [8.0, 8.0]
    fisher = empirical_fisher(lambda n: x.sum().expand(n), [x], [1, 0, 2], method=method)
    assert (fisher @ torch.ones(2)).tolist() == [2.0, 2.0]


def test_bad_outputs_are_named():
    x = torch.ones(2, requires_grad=True)
    for outputs, message in (
        (lambda _: (x, x), "outputs of a batch are tuple"),
        (lambda _: x.argmax(), r"outputs of a batch are torch\.int64"),
    ):
        with pytest.raises(TypeError, match=message):
            _ = gauss_newton(outputs, lambda z, _: z.sum(), [x], [None]) @ torch.ones(2)
    with pytest.raises(ValueError, match="no graph"):
        _ = empirical_fisher(lambda _: x.detach(), [x], [None]) @ torch.ones(2)
