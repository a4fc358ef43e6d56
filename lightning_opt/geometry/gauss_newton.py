r"""Two positive stand-ins for the Hessian: generalized Gauss–Newton and empirical Fisher.

With :math:`J` the Jacobian of a network's outputs and :math:`H_L` the Hessian of the mean loss with
respect to them (Schraudolph 2002), and with :math:`g_i` the gradient of the loss of term
:math:`i`,

.. math::
    G v = J^T H_L J v, \qquad F v = \frac{1}{N} \sum_i g_i g_i^T v.

The empirical Fisher uses the data's labels (Kunstner et al. 2019 on what that means). Both are
:math:`J^T M J` for a matrix M of the outputs: for the Fisher these are the terms' losses and
:math:`M = I / N`. :math:`J v` is taken in forward mode, or by reverse mode twice, because
:math:`J^T u` is linear in :math:`u`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch.distributed
from torch import Tensor

from ._loss import evaluate
from ._modes import dual_parts, tangents
from .hessian import check_graph
from .operator import BatchCurvature, Columns, CurvatureOperator, Method, differentiable_params

Outputs: TypeAlias = Callable[[Any], Tensor]
OutputLoss: TypeAlias = Callable[[Tensor, Any], Tensor | tuple[Tensor, float]]


class _Sandwich(BatchCurvature):
    """:math:`J^T M J` with J the Jacobian of ``outputs(batch)``."""

    def __init__(
        self, outputs: Outputs, params: Sequence[Tensor], batch: Any, forward: bool
    ) -> None:
        self._outputs_of, self._batch = outputs, batch
        self._params, self._forward = params, forward
        if forward:
            # The derivatives in the direction of a vector come with the outputs, in each product.
            with torch.no_grad():
                self._outputs = self._evaluate()
            return
        self._outputs = self._evaluate()
        check_graph(self._outputs)
        self._u = torch.zeros_like(self._outputs, requires_grad=True)
        self._pulled = torch.autograd.grad(
            self._outputs, params, self._u, create_graph=True, allow_unused=True
        )

    def _evaluate(self) -> Tensor:
        return _checked_outputs(self._outputs_of(self._batch))

    @abstractmethod
    def _middle(self, v: Tensor, *, keep: bool, batched: bool) -> Tensor | None:
        """M v, None for zeros."""

    def product(
        self, vectors: Sequence[Tensor], *, keep: bool, batched: bool = False
    ) -> Sequence[Tensor | None]:
        none: Sequence[Tensor | None] = [None] * len(self._params)
        if self.terms == 0:
            return none
        if self._forward:
            with tangents(self._params, vectors):
                outputs, pushed = dual_parts(self._evaluate())
            check_graph(outputs)
        else:
            outputs, pushed = self._outputs, self._pushed(vectors, batched)
        middle = None if pushed is None else self._middle(pushed, keep=keep, batched=batched)
        if middle is None:
            return none
        return torch.autograd.grad(
            outputs,
            self._params,
            middle,
            retain_graph=keep,
            allow_unused=True,
            is_grads_batched=batched,
        )

    def _pushed(self, vectors: Sequence[Tensor], batched: bool) -> Tensor | None:
        """J v by reverse mode; the graph is still needed for Jᵀ."""
        used = [
            (pulled, vector)
            for pulled, vector in zip(self._pulled, vectors, strict=True)
            if pulled is not None and pulled.requires_grad
        ]
        if not used:
            return None
        outputs, weights = zip(*used, strict=True)
        (pushed,) = torch.autograd.grad(
            outputs, self._u, weights, retain_graph=True, is_grads_batched=batched
        )
        return pushed


class _GaussNewton(_Sandwich):
    def __init__(
        self,
        outputs: Outputs,
        loss: OutputLoss,
        params: Sequence[Tensor],
        batch: Any,
        forward: bool,
    ) -> None:
        super().__init__(outputs, params, batch, forward)
        self._leaf = self._outputs.detach().requires_grad_()
        mean, self.terms = evaluate(lambda batch: loss(self._leaf, batch), batch)
        self.value = mean.detach()
        if self.terms > 0:
            check_graph(mean)
            (self._gradient,) = torch.autograd.grad(mean, self._leaf, create_graph=True)

    def _middle(self, v: Tensor, *, keep: bool, batched: bool) -> Tensor | None:
        if not self._gradient.requires_grad:  # the loss is linear in the outputs
            return None
        (product,) = torch.autograd.grad(
            self._gradient,
            self._leaf,
            v,
            retain_graph=keep,
            allow_unused=True,
            is_grads_batched=batched,
        )
        return product


class _EmpiricalFisher(_Sandwich):
    def __init__(
        self, losses: Outputs, params: Sequence[Tensor], batch: Any, forward: bool
    ) -> None:
        super().__init__(losses, params, batch, forward)
        self.terms = float(self._outputs.numel())
        self.value = self._outputs.detach().mean()

    def _middle(self, v: Tensor, *, keep: bool, batched: bool) -> Tensor | None:
        return v / self.terms


def _checked_outputs(outputs: object) -> Tensor:
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        kind = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        raise TypeError(f"The outputs of a batch are {kind}: they have to be one real tensor.")
    return outputs


def gauss_newton(
    outputs: Outputs,
    loss: OutputLoss,
    params: Iterable[Tensor],
    batches: Iterable[Any],
    *,
    method: Method = "auto",
    columns: Columns = "auto",
    memory: int | None = None,
    group: torch.distributed.ProcessGroup | None = None,
) -> CurvatureOperator:
    """The generalized Gauss–Newton matrix of ``loss(outputs(batch), batch)``.

    It is the Hessian for a network that is linear in its parameters, and positive semidefinite
    wherever the loss is convex in the outputs.

    Args:
        outputs: ``outputs(batch)``, what the network computes, one tensor of any shape.
        loss: ``loss(outputs, batch)``, the mean loss, or ``(mean loss, number of terms)``.
        params, batches, method, columns, memory, group: as in :func:`hessian`.

    Returns:
        A :class:`CurvatureOperator`.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`hessian` does.

    Example:
        Half the square of x·y at (x, y) = (2, 5): J = (y, x).

        >>> theta = torch.tensor([2.0, 5.0], requires_grad=True)
        >>> G = gauss_newton(lambda batch: theta.prod(), lambda z, batch: z**2 / 2, [theta], [None])
        >>> G @ torch.eye(2)
        tensor([[25., 10.],
                [10.,  4.]])
    """
    params = differentiable_params(params)

    def curvature(batch: Any, forward: bool) -> BatchCurvature:
        return _GaussNewton(outputs, loss, params, batch, forward)

    return CurvatureOperator(
        curvature, params, batches, method=method, columns=columns, memory=memory, group=group
    )


def empirical_fisher(
    losses: Outputs,
    params: Iterable[Tensor],
    batches: Iterable[Any],
    *,
    method: Method = "auto",
    columns: Columns = "auto",
    memory: int | None = None,
    group: torch.distributed.ProcessGroup | None = None,
) -> CurvatureOperator:
    """The mean over all terms of the outer product of a term's gradient with itself.

    Args:
        losses: ``losses(batch)``, the loss of every term, one tensor of any shape: one entry an
            example, or a token that counts.
        params, batches, method, columns, memory, group: as in :func:`hessian`.

    Returns:
        A :class:`CurvatureOperator`.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`hessian` does.

    Example:
        Two examples with gradients (1, 0) and (0, 2).

        >>> theta = torch.ones(2, requires_grad=True)
        >>> F = empirical_fisher(lambda x: x * theta, [theta], [torch.tensor([1.0, 2.0])])
        >>> F @ torch.eye(2)
        tensor([[0.5000, 0.0000],
                [0.0000, 2.0000]])
    """
    params = differentiable_params(params)

    def curvature(batch: Any, forward: bool) -> BatchCurvature:
        return _EmpiricalFisher(losses, params, batch, forward)

    return CurvatureOperator(
        curvature, params, batches, method=method, columns=columns, memory=memory, group=group
    )
