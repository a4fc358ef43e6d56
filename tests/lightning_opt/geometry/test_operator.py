"""What all operators of curvature share: columns, memory, weights, determinism, processes."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_opt.geometry import CurvatureOperator, hessian
from lightning_opt.geometry._saved import bytes_saved

METHODS = ("kept", "reverse", "forward", "auto")


class Problem:
    """A small network on batches of different sizes that counts how often it is evaluated."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (12,), generator=generator)
        self.batches = [(x[:3], y[:3]), (x[3:7], y[3:7]), (x[7:], y[7:])]
        self.evaluations = 0

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        self.evaluations += 1
        return F.cross_entropy(self.network(batch[0]), batch[1]), len(batch[1])

    def operator(self, **options: object) -> CurvatureOperator:
        return hessian(self.loss, self.network.parameters(), self.batches, **options)


@pytest.fixture
def problem() -> Problem:
    return Problem()


@pytest.mark.parametrize("columns", ["auto", "loop", "batched"])
@pytest.mark.parametrize("method", METHODS)
def test_columns_are_multiplied_together_as_one_by_one(problem, method, columns):
    H = problem.operator(method=method, columns=columns)
    V = torch.randn(H.shape[0], 3, dtype=torch.float64)
    reference = problem.operator(method="reverse")
    one_by_one = torch.stack([reference @ v for v in V.T], dim=1)
    torch.testing.assert_close(H @ V, one_by_one, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(H @ V, one_by_one, rtol=1e-12, atol=1e-14)  # from what was kept


@pytest.mark.parametrize(("method", "evaluations"), [("kept", 3), ("reverse", 6), ("forward", 6)])
def test_kept_graphs_are_built_once(problem, method, evaluations):
    H = problem.operator(method=method)
    v = torch.ones(H.shape[0], dtype=torch.float64)
    assert torch.equal(H @ v, H @ v)
    assert problem.evaluations == evaluations


def test_several_columns_pass_over_the_data_once(problem):
    H = problem.operator(method="reverse")
    _ = H @ torch.randn(H.shape[0], 5, dtype=torch.float64)
    assert problem.evaluations == 3


def test_as_many_graphs_are_kept_as_fit_into_memory(problem):
    """One evaluation measures a graph, and each product builds those anew that are not kept."""
    v = torch.ones(sum(p.numel() for p in problem.network.parameters()), dtype=torch.float64)
    size = bytes_saved(
        lambda: torch.autograd.grad(
            problem.loss(problem.batches[0])[0],
            list(problem.network.parameters()),
            create_graph=True,
        ),
        problem.network.parameters(),
    )
    for memory, kept in ((0, 0), (size - 1, 0), (2 * size, 2), (None, 3)):
        H = problem.operator(memory=memory)
        first = H @ v
        problem.evaluations = 0
        torch.testing.assert_close(H @ v, first, rtol=1e-14, atol=0)
        assert problem.evaluations == 3 - kept


def test_bytes_saved_are_those_of_the_activations():
    x = torch.randn(100, 100, requires_grad=True)
    assert bytes_saved(lambda: x.exp().sum(), [x]) == 40_000  # the result of exp
    assert bytes_saved(lambda: x.square().sum(), [x]) == 0  # x itself


def test_measuring_a_graph_does_not_keep_it():
    """A hook that returns an output of the node that saves it makes a cycle for good."""
    alive: list[weakref.ref[Tensor]] = []

    def build() -> Tensor:
        result = torch.ones(3, requires_grad=True).exp()
        alive.append(weakref.ref(result))
        return result.sum()

    bytes_saved(build, [])
    gc.collect()
    assert alive[0]() is None


def test_new_weights_give_a_new_product(problem):
    """The graphs that were kept are those of the old ones."""
    H = problem.operator(method="kept")
    v = torch.ones(H.shape[0], dtype=torch.float64)
    before = H @ v
    with torch.no_grad():
        for param in problem.network.parameters():
            param.mul_(1.5)
    after = H @ v
    assert not torch.allclose(after, before, rtol=0.01)
    torch.testing.assert_close(after, problem.operator(method="reverse") @ v)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_with_noise_is_found_out(method):
    """With a kept graph the noise would be frozen, and the result one of many."""
    layer = nn.Linear(20, 1)
    H = hessian(
        lambda x: F.dropout(layer(x), 0.5).square().mean(),
        layer.parameters(),
        [torch.ones(50, 20)],
        method=method,
    )
    torch.manual_seed(0)
    if method == "kept":  # asked for by name, and evaluated once
        assert torch.equal(H @ torch.ones(21), H @ torch.ones(21))
    else:
        with pytest.raises(ValueError, match=r"loss of batch 0 was .* switch dropout"):
            for _ in range(2):
                _ = H @ torch.ones(21)


def test_a_loss_of_zero_or_nan_is_no_noise():
    x = torch.zeros(2, requires_grad=True)
    for loss in (lambda _: x.square().sum(), lambda _: (x / 0).square().sum()):
        H = hessian(loss, [x], [None], method="reverse")
        for _ in range(2):
            _ = H @ torch.ones(2)


def test_scipy_finds_the_eigenvalues(problem):
    H = problem.operator()
    dense = (H @ torch.eye(H.shape[0], dtype=torch.float64)).numpy()
    operator = H.to_scipy()
    assert operator.dtype == np.float64
    np.testing.assert_allclose(operator @ np.eye(H.shape[0]), dense, atol=1e-15)
    np.testing.assert_allclose(
        eigsh(operator, k=3, return_eigenvectors=False), np.linalg.eigvalsh(dense)[-3:]
    )


def test_the_product_of_columns_does_not_depend_on_their_layout(problem):
    H = problem.operator(columns="loop")
    V = torch.randn(4, H.shape[0], dtype=torch.float64).T
    torch.testing.assert_close(H @ V, H @ V.contiguous(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fast"}, "method is 'fast'.*'kept'"),
        ({"columns": "all"}, "columns is 'all'"),
        ({"memory": -1}, "memory is -1"),
    ],
)
def test_bad_options_are_named(problem, options, message):
    with pytest.raises(ValueError, match=message):
        problem.operator(**options)


def test_rows_are_written_where_they_are_wanted(problem):
    operator = problem.operator()
    rows = torch.randn(2, operator.shape[0], dtype=operator.dtype)
    out = torch.full_like(rows, torch.nan)
    assert operator.of_rows(rows, out) is out
    torch.testing.assert_close(out, (operator @ rows.T).T, rtol=1e-12, atol=1e-14)


TWO_PROCESSES = """
import os, sys
import torch
import torch.distributed as dist
from test_operator import Problem

rank = int(sys.argv[1])
store = dist.FileStore(sys.argv[2], 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
problem = Problem()
n = sum(p.numel() for p in problem.network.parameters())
v = torch.linspace(-1, 1, 2 * n, dtype=torch.float64).reshape(n, 2)
whole = problem.operator() @ v
problem.batches = problem.batches[:1] if rank == 0 else problem.batches[1:]
shared = problem.operator(group=dist.group.WORLD) @ v
torch.testing.assert_close(shared, whole, rtol=1e-12, atol=1e-14)
other = [torch.empty_like(shared) for _ in range(2)]
dist.all_gather(other, shared)
assert torch.equal(other[0], other[1])
dist.destroy_process_group()
os._exit(0)  # gloo's threads may abort an interpreter that ends in order
"""


def test_two_processes_have_the_hessian_of_the_union_of_their_batches(tmp_path: Path):
    """Three examples on the one, nine on the other: each counts with its number of terms."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), str(tmp_path / "store")],
            cwd=Path(__file__).parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
