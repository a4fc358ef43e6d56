r"""Convolutions whose second derivatives are as fast as their first ones.

With :math:`y = W * x`, and for the cotangents :math:`\bar y` of y and :math:`\ddot x, \ddot W` of
the first derivatives :math:`\bar x, \bar W`, the second backward pass is

.. math::
    \ddot y = W * \ddot x + \ddot W * x, \qquad
    \bar{\bar x} = \ddot W \star \bar y, \qquad
    \bar{\bar W} = \bar y \star \ddot x

with :math:`\star` the operations that the first backward pass has for x and for W. PyTorch computes
the last one as a convolution whose kernel is a whole image, which takes twice as long on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Stride, padding, dilation, transposed, output padding, groups: as torch.convolution takes them.
Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]


def convolution(axes: int, *args: Any, **kwargs: Any) -> Tensor | None:
    """``torch.conv1d``, ``conv2d`` or ``conv3d`` of the same arguments; None if left to torch."""
    arguments = _arguments(axes, *args, **kwargs)
    if arguments is None:
        return None
    y: Tensor = _Convolution.apply(*arguments)
    return y


def _arguments(
    axes: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Geometry] | None:
    """For :class:`_Convolution`; None for what it leaves to torch."""
    batched = isinstance(input, Tensor) and input.ndim == axes + 2
    if not batched or isinstance(padding, str) or input.dtype != weight.dtype:
        return None
    one = [_list(value, axes) for value in (stride, padding, dilation)]
    return input, weight, bias, (one[0], one[1], one[2], False, [0] * axes, groups)


def _list(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.geometry, ctx.biased = geometry, b is not None
        return torch.convolution(x, W, b, *geometry)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (y_bar,) = cotangents
        x, W = ctx.saved_tensors
        wanted = (*ctx.needs_input_grad[:2], ctx.biased and ctx.needs_input_grad[2])
        first = _FirstBackward.apply(y_bar, x, W, ctx.geometry, wanted)
        return (*first, None)


class _FirstBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y_bar: Tensor, x: Tensor, W: Tensor, geometry: Geometry, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(y_bar, x, W)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return _backward(y_bar, x, W, geometry, wanted)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        x_ddot, W_ddot, b_ddot = cotangents
        y_bar, x, W = ctx.saved_tensors
        for_y, for_x, for_W = ctx.needs_input_grad[:3]
        terms = []
        if for_y and x_ddot is not None:
            terms.append(torch.convolution(x_ddot, W, b_ddot, *ctx.geometry))
            b_ddot = None
        if for_y and W_ddot is not None:
            terms.append(torch.convolution(x, W_ddot, b_ddot, *ctx.geometry))
            b_ddot = None
        if for_y and b_ddot is not None:
            terms.append(b_ddot.view(-1, *[1] * (y_bar.ndim - 2)).expand_as(y_bar))
        for term in terms[1:]:
            terms[0].add_(term)  # new memory would take longer to get than to fill
        y_ddot = terms[0] if terms else None
        x_bar = W_bar = None
        if for_x and W_ddot is not None:
            x_bar, _, _ = _backward(y_bar, x, W_ddot, ctx.geometry, (True, False, False))
        if for_W and x_ddot is not None:
            _, W_bar, _ = _backward(y_bar, x_ddot, W, ctx.geometry, (False, True, False))
        return y_ddot, x_bar, W_bar, None, None


def _backward(
    y_bar: Tensor, x: Tensor, W: Tensor, geometry: Geometry, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    outputs: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        y_bar, x, W, [len(W)], *geometry, list(wanted)
    )
    return outputs
