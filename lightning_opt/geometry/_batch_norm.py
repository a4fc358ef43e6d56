r"""BatchNorm in evaluation mode, an affine function, with second derivatives in few passes.

With :math:`r = (\sigma^2 + \epsilon)^{-1/2}` of a channel's running variance, and :math:`\gamma,
\beta` its weight and bias,

.. math::
    y = \gamma r (x - \mu) + \beta, \qquad
    \bar x = \gamma r \bar y, \quad
    \bar\gamma = r \sum \bar y (x - \mu), \quad
    \bar\beta = \sum \bar y

with sums over all but the channels. For the cotangents :math:`\ddot x, \ddot\gamma, \ddot\beta` of
these, the second backward pass is

.. math::
    \ddot y = \gamma r \ddot x + \ddot\gamma r (x - \mu) + \ddot\beta, \qquad
    \bar{\bar x} = \ddot\gamma r \bar y, \qquad
    \bar{\bar\gamma} = r \sum \bar y \ddot x

which are the layer itself and its first backward pass again, with other weights and a mean of zero.
PyTorch composes them of some ten operations on whole activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Statistics(NamedTuple):
    mean: Tensor
    variance: Tensor
    eps: float


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """``F.batch_norm``; None if left to torch: by the batch's statistics, or without weights."""
    if training or weight is None or bias is None or running_mean is None or running_var is None:
        return None
    if running_mean.requires_grad or running_var.requires_grad or input.dtype != weight.dtype:
        return None
    y: Tensor = _BatchNorm.apply(input, weight, bias, _Statistics(running_mean, running_var, eps))
    return y


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, statistics: _Statistics
    ) -> Tensor:
        ctx.save_for_backward(x, gamma)
        ctx.statistics = statistics
        return _forward(x, gamma, beta, statistics)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (y_bar,) = cotangents
        x, gamma = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        return (*_FirstBackward.apply(y_bar, x, gamma, ctx.statistics, wanted), None)


class _FirstBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y_bar: Tensor,
        x: Tensor,
        gamma: Tensor,
        statistics: _Statistics,
        wanted: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(y_bar, x, gamma)
        ctx.statistics = statistics
        ctx.set_materialize_grads(False)
        return _backward(y_bar, x, gamma, statistics, wanted)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        x_ddot, gamma_ddot, beta_ddot = cotangents
        y_bar, x, gamma = ctx.saved_tensors
        for_y, for_x, for_gamma = ctx.needs_input_grad[:3]
        centered = ctx.statistics._replace(mean=torch.zeros_like(ctx.statistics.mean))
        terms = []
        if for_y and x_ddot is not None:
            terms.append(_forward(x_ddot, gamma, torch.zeros_like(gamma), centered))
        if for_y and (gamma_ddot is not None or beta_ddot is not None):
            zero = torch.zeros_like(gamma)
            weight, bias = (zero if v is None else v for v in (gamma_ddot, beta_ddot))
            terms.append(_forward(x, weight, bias, ctx.statistics))
        for term in terms[1:]:
            terms[0].add_(term)  # new memory would take longer to get than to fill
        y_ddot = terms[0] if terms else None
        x_bar = gamma_bar = None
        for_x, for_gamma = for_x and gamma_ddot is not None, for_gamma and x_ddot is not None
        if for_x or for_gamma:
            x_bar, gamma_bar, _ = _backward(
                y_bar,
                x if x_ddot is None else x_ddot,
                gamma if gamma_ddot is None else gamma_ddot,
                centered,
                (for_x, for_gamma, False),
            )
        return y_ddot, x_bar, gamma_bar, None, None


def _forward(x: Tensor, gamma: Tensor, beta: Tensor, statistics: _Statistics) -> Tensor:
    mean, variance, eps = statistics
    return torch.batch_norm(x, gamma, beta, mean, variance, False, 0.0, eps, False)


def _backward(
    y_bar: Tensor, x: Tensor, gamma: Tensor, statistics: _Statistics, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    mean, variance, eps = statistics
    outputs: tuple[Tensor | None, ...] = torch.ops.aten.native_batch_norm_backward(
        y_bar, x, gamma, mean, variance, None, None, False, eps, list(wanted)
    )
    return outputs
