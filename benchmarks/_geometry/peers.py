"""How the peers are called, each in the way that its documentation shows."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .problem import Batch, Problem


def pyhessian(problem: Problem) -> Any:
    """PyHessian's object; ``torch.eig``, which torch has removed, is given back to it."""

    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

    torch.eig = eig
    from pyhessian import hessian

    single = len(problem.batches) == 1
    data: dict[str, Any] = (
        {"data": problem.batches[0]} if single else {"dataloader": problem.batches}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # backward with create_graph
        return hessian(problem.network, F.cross_entropy, cuda=False, **data)


def eigenthings(problem: Problem) -> Any:
    """hessian-eigenthings' operator."""
    from hessian_eigenthings import HessianOperator

    def loss(network: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(network(batch[0]), batch[1])

    return HessianOperator(problem.network, problem.batches, loss)


def curvlinops(problem: Problem) -> Any:
    """curvlinops' operator."""
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(
        problem.network,
        torch.nn.CrossEntropyLoss(),
        problem.params,
        problem.batches,
        check_deterministic=False,
    )


def quiet() -> None:
    """Peers warn of what they are, and import what torch warns of."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
