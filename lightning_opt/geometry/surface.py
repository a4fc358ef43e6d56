r"""The loss along a line and over a plane (Goodfellow et al. 2015; Li et al. 2018).

.. math::
    f(c) = L((1 - c)\,\theta_0 + c\,\theta_1), \qquad
    f(a, b) = L(\theta + a\,d_1 + b\,d_2)

The weights are changed in place, always starting from the pristine ones, and are put back bit by
bit at the end, also after an exception. A NaN or an infinity is stored as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ._loss import Loss, checked_batches, mean_loss
from ._parameters import check_like, checked_params


@dataclass(frozen=True)
class Line:
    """The loss along a line.

    Attributes:
        coefficients: shape (k,); 0 is the start, 1 is the end.
        values: the loss at each, shape (k,).
        terms: the number of terms that the loss is the mean of.
    """

    coefficients: NDArray[np.float64]
    values: NDArray[np.float64]
    terms: float

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The attributes as arrays, ready for ``numpy.savez``."""
        return {name: np.asarray(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Plane:
    """The loss over a plane.

    Attributes:
        alphas: coordinates along the first direction, shape (a,).
        betas: coordinates along the second direction, shape (b,).
        values: ``values[i, j]`` is the loss at ``alphas[i], betas[j]``, shape (a, b).
        terms: the number of terms that the loss is the mean of.
    """

    alphas: NDArray[np.float64]
    betas: NDArray[np.float64]
    values: NDArray[np.float64]
    terms: float

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The attributes as arrays, ready for ``numpy.savez``."""
        return {name: np.asarray(value) for name, value in asdict(self).items()}


def line(
    loss: Loss,
    params: Iterable[Tensor],
    batches: Iterable[Any],
    start: Iterable[Tensor],
    end: Iterable[Tensor],
    coefficients: ArrayLike,
    *,
    progress: Callable[[], object] | None = None,
) -> Line:
    """The loss at ``(1 - c) * start + c * end`` for every coefficient c, without gradients.

    Args:
        loss: ``loss(batch)``, the mean loss of a batch, or ``(mean loss, number of terms)``.
        params: the tensors that the loss reads its weights from; changed in place meanwhile.
        batches: what ``loss`` is called with.
        start: tensors like ``params``: coefficient 0, exactly.
        end: tensors like ``params``: coefficient 1, exactly; usually the trained weights.
        coefficients: shape (k,).
        progress: called after every point.

    Raises:
        TypeError: a parameter is no real floating-point tensor; the loss is no tensor.
        ValueError: no parameters, no batches, shapes that differ from the parameters', coefficients
            that are not a vector of finite numbers.

    Example:
        >>> import torch
        >>> x = torch.tensor([3.0])
        >>> start, end = torch.tensor([0.0]), torch.tensor([2.0])
        >>> line(lambda batch: x.square().sum(), [x], [None], [start], [end], [0, 0.5, 1]).values
        array([0., 1., 4.])
        >>> x
        tensor([3.])
    """
    params, batches = checked_params(params), checked_batches(batches)
    start, end = _like("start", start, params), _like("end", end, params)
    grid = _coordinates("coefficients", coefficients)
    values = np.full(grid.shape, np.nan)
    terms = 0.0
    with torch.no_grad(), _restored(params):
        for index, coefficient in enumerate(grid.tolist()):
            # Lerp is exact at both ends.
            torch._foreach_copy_(params, torch._foreach_lerp(start, end, coefficient))
            values[index], terms = mean_loss(loss, batches)
            if progress is not None:
                progress()
    return Line(grid, values, terms)


def plane(
    loss: Loss,
    params: Iterable[Tensor],
    batches: Iterable[Any],
    directions: Sequence[Iterable[Tensor]],
    alphas: ArrayLike,
    betas: ArrayLike,
    *,
    progress: Callable[[], object] | None = None,
) -> Plane:
    """The loss at ``params + alpha * directions[0] + beta * directions[1]``, without gradients.

    Args:
        loss: ``loss(batch)``, the mean loss of a batch, or ``(mean loss, number of terms)``.
        params: the tensors that the loss reads its weights from; changed in place meanwhile.
        batches: what ``loss`` is called with.
        directions: two, each a list of tensors like ``params``.
        alphas: coordinates along the first direction, shape (a,).
        betas: coordinates along the second direction, shape (b,).
        progress: called after every point.

    Raises:
        TypeError: a parameter is no real floating-point tensor; the loss is no tensor.
        ValueError: no parameters, no batches, not two directions, shapes that differ from the
            parameters', coordinates that are not a vector of finite numbers.

    Example:
        >>> import torch
        >>> x = torch.zeros(2)
        >>> east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> surface = plane(lambda batch: x[0] + 10 * x[1], [x], [None], [[east], [north]],
        ...                 alphas=[0, 1, 2], betas=[0, 1])
        >>> surface.values
        array([[ 0., 10.],
               [ 1., 11.],
               [ 2., 12.]])
    """
    params, batches = checked_params(params), checked_batches(batches)
    if len(directions) != 2:
        raise ValueError(f"directions has {len(directions)} entries: a plane needs two.")
    first = _like("directions[0]", directions[0], params)
    second = _like("directions[1]", directions[1], params)
    rows, columns = _coordinates("alphas", alphas), _coordinates("betas", betas)
    values = np.full((len(rows), len(columns)), np.nan)
    terms = 0.0
    with torch.no_grad(), _restored(params) as pristine:
        for i, alpha in enumerate(rows.tolist()):
            row = torch._foreach_add(pristine, first, alpha=alpha)
            for j, beta in enumerate(columns.tolist()):
                torch._foreach_copy_(params, row)
                torch._foreach_add_(params, second, alpha=beta)
                values[i, j], terms = mean_loss(loss, batches)
                if progress is not None:
                    progress()
    return Plane(rows, columns, values, terms)


@contextmanager
def _restored(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yields a copy of the weights and puts them back at the end, whatever happens."""
    pristine = [param.detach().clone() for param in params]
    try:
        yield pristine
    finally:
        torch._foreach_copy_(params, pristine)


def _like(name: str, tensors: Iterable[Tensor], params: list[Tensor]) -> list[Tensor]:
    """``tensors`` beside ``params``: same shapes, dtype and device."""
    listed = list(tensors)
    check_like(name, listed, params)
    # A copy: `start` or `end` may be the parameters themselves, which are about to change.
    return [
        tensor.detach().to(param.device, param.dtype, copy=True)
        for tensor, param in zip(listed, params, strict=True)
    ]


def _coordinates(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"{name} has shape {array.shape}: it has to be a vector of finite numbers, not empty."
        )
    return array
