r"""The Hessian of a mean loss as a linear operator.

With :math:`\bar L(\theta) = \sum_b n_b L_b(\theta) / \sum_b n_b`, where batch :math:`b` has
:math:`n_b` terms, either by reverse mode twice (Pearlmutter 1994) or by forward over reverse,

.. math::
    H v = \frac{1}{\sum_b n_b} \sum_b n_b \nabla_\theta \langle \nabla_\theta L_b, v \rangle
        = \frac{1}{\sum_b n_b} \sum_b n_b
          \left. \frac{d}{dt} \nabla_\theta L_b(\theta + t v) \right|_{t = 0}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ._loss import Loss, evaluate
from ._modes import dual_parts, tangents
from ._second_derivatives import FastSecondDerivatives
from .operator import BatchCurvature, Columns, CurvatureOperator, Method, differentiable_params


class _Reverse(BatchCurvature):
    """Reverse over reverse: the graph of the gradient, gone through once for every vector."""

    def __init__(self, loss: Loss, params: Sequence[Tensor], batch: Any) -> None:
        self._params = params
        with FastSecondDerivatives():
            mean, self.terms = evaluate(loss, batch)
        self.value = mean.detach()
        # Of the gradients their graphs are enough, which frees the memory of one vector.
        self._edges: Sequence[GradientEdge | None] = [None] * len(params)
        if self.terms > 0:
            check_graph(mean)
            gradients = torch.autograd.grad(mean, params, create_graph=True, allow_unused=True)
            # A parameter that is unused has no gradient, one that the loss is linear in has a
            # constant one: their rows of the Hessian are zero.
            self._edges = [
                get_gradient_edge(gradient)
                if gradient is not None and gradient.requires_grad
                else None
                for gradient in gradients
            ]

    def product(
        self, vectors: Sequence[Tensor], *, keep: bool, batched: bool = False
    ) -> Sequence[Tensor | None]:
        curved = [
            (edge, vector)
            for edge, vector in zip(self._edges, vectors, strict=True)
            if edge is not None
        ]
        if not curved:
            return [None] * len(self._params)
        edges, weights = zip(*curved, strict=True)
        return torch.autograd.grad(
            edges,
            self._params,
            weights,
            retain_graph=keep,
            allow_unused=True,
            is_grads_batched=batched,
        )


class _Forward(BatchCurvature):
    """Forward over reverse: the gradient's derivative in the direction of the vector."""

    def __init__(self, loss: Loss, params: Sequence[Tensor], batch: Any) -> None:
        self._loss, self._params, self._batch = loss, params, batch

    def product(
        self, vectors: Sequence[Tensor], *, keep: bool, batched: bool = False
    ) -> Sequence[Tensor | None]:
        with tangents(self._params, vectors):
            mean, self.terms = evaluate(self._loss, self._batch)
            self.value, _ = dual_parts(mean.detach())
            if self.terms == 0:
                return [None] * len(self._params)
            check_graph(mean)
            gradients = torch.autograd.grad(mean, self._params, allow_unused=True)
            return [None if gradient is None else dual_parts(gradient)[1] for gradient in gradients]


def check_graph(mean: Tensor) -> None:
    """Raises a ValueError if a loss cannot be differentiated."""
    if not mean.requires_grad:
        raise ValueError(
            "The loss has no graph to differentiate: it was detached, computed under "
            "torch.no_grad(), or does not depend on any parameter that requires a gradient."
        )


def hessian(
    loss: Loss,
    params: Iterable[Tensor],
    batches: Iterable[Any],
    *,
    method: Method = "auto",
    columns: Columns = "auto",
    memory: int | None = None,
    group: torch.distributed.ProcessGroup | None = None,
) -> CurvatureOperator:
    """The Hessian of the mean loss with respect to ``params``, without ever forming it.

    Gradients (``param.grad``) are neither used nor changed. Parameters that the loss does not use
    have zero rows. Fused attention runs on its math kernel, compiled functions run eagerly and
    autocast is off while a product is computed.

    Args:
        loss: ``loss(batch)``, the mean loss of a batch as a tensor, or the pair
            ``(mean loss, number of terms)``. It has to be deterministic, and is checked to be.
        params: the tensors to differentiate with respect to, each requiring a gradient.
        batches: what ``loss`` is called with; kept in memory.
        method: how a product is computed (costs in gradients, measured on ResNet18):
            ``"kept"`` builds the graphs of all gradients once and keeps them (2.1);
            ``"reverse"`` builds them anew for every product (3.5), which needs little memory;
            ``"forward"`` differentiates the gradient in forward mode (3.6), which needs no second
            derivatives by reverse mode; ``"auto"`` keeps as many graphs as fit into ``memory``
            and builds the others anew.
        columns: how the products with several vectors are computed: one after the other
            (``"loop"``) or in one pass through the graph (``"batched"``); ``"auto"`` times both
            at the first such product: name one where every last bit has to be the same each time.
            Forward mode has one way only.
        memory: how many bytes the kept graphs may take; by default half of what is free.
        group: the processes that hold the other batches: the products are those over the batches
            of all of them, every one of which has to compute every product.

    Returns:
        A :class:`CurvatureOperator`: ``H @ v``, ``H.shape``, ``H.to_scipy()``.

    Raises:
        TypeError: a parameter is no real floating-point tensor; the loss is no tensor.
        ValueError: no parameters, no batches, a parameter without ``requires_grad``, an option out
            of range; at a product: a loss that is not one number, that has no graph or that
            changes from call to call, a vector of another shape.
        RuntimeError: at a product: something that torch cannot differentiate twice.

    Example:
        L = x³/6 + x·y at (x, y) = (2, 5) has the Hessian [[x, 1], [1, 0]].

        >>> import torch
        >>> theta = torch.tensor([2.0, 5.0], requires_grad=True)
        >>> H = hessian(lambda batch: theta[0] ** 3 / 6 + theta[0] * theta[1], [theta], [None])
        >>> H.shape
        (2, 2)
        >>> H @ torch.tensor([1.0, 0.0])
        tensor([2., 1.])
    """
    params = differentiable_params(params)

    def curvature(batch: Any, forward: bool) -> BatchCurvature:
        return (_Forward if forward else _Reverse)(loss, params, batch)

    return CurvatureOperator(
        curvature, params, batches, method=method, columns=columns, memory=memory, group=group
    )
