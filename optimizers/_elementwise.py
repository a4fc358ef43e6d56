"""Updates in which every element depends on its own gradient and state alone.

Written plainly, such an update reads and writes memory a dozen times where once would do. Here it
runs either block by block, every block small enough to stay in the processor's cache while all of
the update's operations pass over it, or compiled by ``torch.compile``, which makes a single pass
of it. The method writes its rule once, on tensors. Its numbers are floats, but tensors without axes
where it is compiled: a float would be a constant of the code, and every step would compile anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ._base import BaseOptimizer, learning_rate, working_dtype
from ._blocks import Tensors, blocks, flat, viewed

Number: TypeAlias = float | Tensor
# What is added of θ to g and what is kept of θ (None: nothing, all), then the rule's coefficients.
Numbers: TypeAlias = tuple[Number | None, ...]

# The place of g among θ, g and the tensors of the state.
_GRADIENT = 1

# Elements of a sum from which torch.compile takes care of rounding.
_LONG = 4096
# Vectors of up to this many elements are updated as one, since a call costs more than the work.
_SHORT = 16_384


def add_product(x: Tensor, a: Tensor, b: Tensor, scale: Number) -> None:
    """x ← x + scale · a · b."""
    if isinstance(scale, Tensor):
        x.add_((a * b).mul_(scale))
    else:
        x.addcmul_(a, b, value=scale)


def add_quotient(x: Tensor, a: Tensor, b: Tensor, scale: Number) -> None:
    """x ← x + scale · a / b."""
    if isinstance(scale, Tensor):
        x.add_((a / b).mul_(scale))
    else:
        x.addcdiv_(a, b, value=scale)


class ElementwiseOptimizer(BaseOptimizer):
    """An optimizer that gives the update of an element; see the module's docstring.

    Weight decay, ``maximize``, centralization and half precision are dealt with here. Groups have
    the options ``lr``, ``weight_decay``, ``decoupled_weight_decay``, ``maximize``, ``compile``.
    """

    # Called with θ, g, the tensors of the state and the coefficients, each in their order. Updates
    # θ and the state in place; g is not written to.
    _rule: Callable[..., None]

    def _initial_state(self, group: Mapping[str, Any]) -> dict[str, float]:
        """The names of the tensors of the state, and what all their elements start at."""
        raise NotImplementedError

    def _coefficients(self, t: float, group: Mapping[str, Any]) -> tuple[Number, ...]:
        """The rule's numbers in step ``t``, counted from 1."""
        raise NotImplementedError

    def _output_axis(self, group: Mapping[str, Any], index: int) -> int | None:
        """The axis over whose entries a gradient is centralized; None if it is not."""
        return None

    def _update_group(self, group: dict[str, Any], indices: Sequence[int]) -> None:
        initial = self._initial_state(group)
        thetas = [group["params"][index] for index in indices]
        for theta in thetas:
            if "step" not in self.state[theta]:
                self.state[theta].update(_new_state(theta, initial))
        states = [self.state[theta] for theta in thetas]
        if states:
            torch._foreach_add_([state["step"] for state in states], 1)

        steps: dict[tuple[float, torch.device], _Step] = defaultdict(_Step)
        for index, theta, state in zip(indices, thetas, states, strict=True):
            tensors = (theta, theta.grad, *[state[name] for name in initial])
            steps[state["step"].item(), theta.device].add(tensors, self._output_axis(group, index))
        for (t, _), step in steps.items():
            numbers = (*_decay(group), *self._coefficients(t, group))
            step.run(type(self)._rule, numbers, group["maximize"], group["compile"])


class _Step:
    """The updates of the tensors of one device whose steps have the same number."""

    def __init__(self) -> None:
        self.short: dict[tuple[torch.dtype, ...], list[Tensors]] = defaultdict(list)
        self.updates: list[tuple[Tensors, int | None]] = []  # with the output axis, or None

    def add(self, tensors: Tensors, output_axis: int | None) -> None:
        theta = tensors[0]
        if theta.ndim == 1 and theta.numel() <= _SHORT:
            self.short[theta.dtype, tensors[_GRADIENT].dtype].append(tensors)
        else:
            self.updates.append((tensors, output_axis))

    def run(
        self, rule: Callable[..., None], numbers: Numbers, maximize: bool, compiled: bool
    ) -> None:
        packs = [_Pack(vectors) for vectors in self.short.values()]
        updates = [*self.updates, *((pack.tensors, None) for pack in packs)]
        if compiled:
            _update_compiled(rule, updates, numbers, maximize)
        else:
            for tensors, axis in updates:
                views = flat(*tensors) if axis is None else _rows(tensors, axis)
                for block in blocks(*views):
                    _update(rule, block, None if axis is None else 0, numbers, maximize)
        for pack in packs:
            pack.copy_back()


class _Pack:
    """Several vectors, each with its gradient and state, as one."""

    def __init__(self, vectors: list[Tensors]) -> None:
        self.columns = list(zip(*vectors, strict=True))
        self.tensors = tuple(torch.cat(column) for column in self.columns)

    def copy_back(self) -> None:
        sizes = [theta.numel() for theta in self.columns[0]]
        for position, (column, whole) in enumerate(zip(self.columns, self.tensors, strict=True)):
            if position != _GRADIENT:
                torch._foreach_copy_(column, torch.split(whole, sizes))


def _new_state(theta: Tensor, initial: Mapping[str, float]) -> dict[str, Tensor]:
    dtype = working_dtype(theta)
    tensors = {name: torch.full_like(theta, x, dtype=dtype) for name, x in initial.items()}
    return {"step": torch.zeros((), dtype=torch.float32, device="cpu"), **tensors}


def _decay(group: Mapping[str, Any]) -> tuple[Number | None, Number | None]:
    """What of θ is added to the gradient, and what is kept of θ itself; None for no change."""
    weight_decay = group["weight_decay"]
    if weight_decay == 0:
        return None, None
    if group["decoupled_weight_decay"]:
        return None, 1 - learning_rate(group) * weight_decay
    return weight_decay, None


def _update(
    rule: Callable[..., None],
    tensors: Tensors,
    output_axis: int | None,
    numbers: Numbers,
    maximize: bool,
) -> Tensor | None:
    """One update; returns the means over all axes but the output one, if it centralizes."""
    parameter, gradient, *state = tensors
    penalty, kept, *coefficients = numbers
    theta, g = parameter.to(state[0].dtype), gradient.to(state[0].dtype)
    means = None
    if output_axis is not None:
        means = _means(g, output_axis)
        g = g - means
    if maximize:
        g = -g
    if penalty is not None:
        g = g + theta * penalty
    if kept is not None:
        theta.mul_(kept)
    rule(theta, g, *state, *coefficients)
    if theta is not parameter:
        parameter.copy_(theta)
    return means


def _means(g: Tensor, output_axis: int) -> Tensor:
    length = g.numel() // max(1, len(g))
    if output_axis == 0 and g.is_contiguous() and length > _LONG and length % 2 == 0:
        # In two halves: compiled, a longer sum is a more careful one, at half the speed.
        halves = g.view(len(g), 2, -1).mean(2)
        return halves.mean(1).view(-1, *[1] * (g.ndim - 1))
    return g.mean([axis for axis in range(g.ndim) if axis != output_axis], keepdim=True)


def _update_compiled(
    rule: Callable[..., None],
    updates: list[tuple[Tensors, int | None]],
    numbers: Numbers,
    maximize: bool,
) -> None:
    """All updates as one call of compiled code, made for their shapes and layouts."""
    shapes = tuple(
        (axis, *((x.shape, x.stride(), x.dtype) for x in tensors[: _GRADIENT + 1]))
        for tensors, axis in updates
    )
    numbers = tuple(
        x if x is None or isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)
        for x in numbers
    )
    _compiled(rule, shapes)(rule, updates, numbers, maximize)


def _update_all(
    rule: Callable[..., None],
    updates: list[tuple[Tensors, int | None]],
    numbers: Numbers,
    maximize: bool,
) -> list[Tensor | None]:
    # The means are returned for torch 2.14's inductor, which fails to fuse what would follow them
    # into their loop (KeyError).
    return [_update(rule, tensors, axis, numbers, maximize) for tensors, axis in updates]


@cache
def _compiled(rule: Callable[..., None], shapes: tuple[Any, ...]) -> Callable[..., Any]:
    """A function of its own for every set of shapes.

    ``torch.compile`` keeps eight variants of a function's code at most, over all its users, and
    quietly compiles no more; a copy of the code counts anew.
    """
    code = _update_all.__code__.replace(co_name=f"_update_all_{rule.__qualname__}")
    return torch.compile(FunctionType(code, globals()), dynamic=False)


def _rows(tensors: Tensors, axis: int) -> Tensors:
    """Views with ``axis`` as the first one, and as matrices where they lie in memory like that."""
    moved = tuple(tensor.transpose(0, axis) for tensor in tensors)
    return viewed(moved, len(moved[0]), -1) or moved
