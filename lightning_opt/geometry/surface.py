r"""The loss along a line and over a plane (Goodfellow et al. 2015; Li et al. 2018).

.. math::
    f(c) = L((1 - c)\,\theta_0 + c\,\theta_1), \qquad
    f(a, b) = L(\theta + a\,d_1 + b\,d_2)

The weights are changed in place, always starting from the pristine ones, and are put back bit by
bit at the end, also after an exception. A NaN or an infinity is stored as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from . import adaptive
from ._loss import Loss, checked_batches
from ._parameters import check_like, checked_params
from ._points import Points
from .batchnorm import Statistics, check_batchnorm, following

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Line:
    """The loss along a line.

    Attributes:
        coefficients: shape (k,); 0 is the start, 1 is the end.
        values: the loss at each, shape (k,).
        terms: the number of terms that the loss is the mean of.
        metrics: the name of each metric to its values, each of shape (k,).
        batchnorm: what happened to BatchNorm's running statistics.
    """

    coefficients: NDArray[np.float64]
    values: NDArray[np.float64]
    terms: float
    metrics: dict[str, NDArray[np.float64]]
    batchnorm: Statistics

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The attributes as arrays, ready for ``numpy.savez``; each metric as ``metric_{name}``."""
        return _arrays(self)


@dataclass(frozen=True)
class Plane:
    """The loss over a plane.

    Attributes:
        alphas: coordinates along the first direction, shape (a,).
        betas: coordinates along the second direction, shape (b,).
        values: ``values[i, j]`` is the loss at ``alphas[i], betas[j]``, shape (a, b).
        terms: the number of terms that the loss is the mean of.
        metrics: the name of each metric to its values, each of shape (a, b).
        batchnorm: what happened to BatchNorm's running statistics.
        evaluated: where the loss was evaluated; elsewhere it is interpolated. Shape (a, b).
        tolerance: what interpolated losses may be off by, over the range from the lowest loss to
            ``clip``; 0 where all are evaluated.
        clip: losses above it are known to be above it, and no better; infinite where all are
            evaluated.
    """

    alphas: NDArray[np.float64]
    betas: NDArray[np.float64]
    values: NDArray[np.float64]
    terms: float
    metrics: dict[str, NDArray[np.float64]]
    batchnorm: Statistics
    evaluated: NDArray[np.bool_]
    tolerance: float
    clip: float

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The attributes as arrays, ready for ``numpy.savez``; each metric as ``metric_{name}``."""
        return _arrays(self)


def line(
    loss: Loss,
    params: Iterable[Tensor],
    batches: Iterable[Any],
    start: Iterable[Tensor],
    end: Iterable[Tensor],
    coefficients: ArrayLike,
    *,
    batchnorm: Statistics = "kept",
    model: nn.Module | None = None,
    progress: Callable[[], object] | None = None,
    resume: str | Path | None = None,
    group: ProcessGroup | None = None,
) -> Line:
    """The loss at ``(1 - c) * start + c * end`` for every coefficient c, without gradients.

    Args:
        loss: ``loss(batch)``, the mean loss of a batch, or ``(mean loss, number of terms)``, or
            with the means of metrics over the same terms as a third, ``{"accuracy": mean}``.
        params: the tensors that the loss reads its weights from; changed in place meanwhile.
        batches: what ``loss`` is called with.
        start: tensors like ``params``: coefficient 0, exactly. In the thesis' eq. 37 these are
            :func:`~lightning_opt.geometry.directions.perturbed` new weights.
        end: tensors like ``params``: coefficient 1, exactly; usually the trained weights.
        coefficients: shape (k,).
        batchnorm: what happens to BatchNorm's running statistics. ``"kept"`` leaves them.
            ``"interpolated"`` moves them as the weights: ``params``, ``start`` and ``end`` include
            :func:`~lightning_opt.geometry.batchnorm.running_statistics`. ``"estimated"`` takes them
            from the batches again at every point, which doubles the time.
        model: the network whose layers ``batchnorm`` is about; not needed for ``"kept"``.
        progress: called after every point.
        resume: a file that keeps what is known while this runs. If it exists, the computation goes
            on from there.
        group: the processes that call this together, with the same arguments. They share the
            points, and all get the same result.

    Raises:
        TypeError: a parameter is no real floating-point tensor; the loss is no tensor.
        ValueError: no parameters, no batches, shapes that differ from the parameters', coefficients
            that are not a vector of finite numbers; a choice for BatchNorm that does not fit the
            model or the parameters; a file of another computation.

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
    check_batchnorm(batchnorm, model, params, group)
    with torch.no_grad(), _restored(params), following(batchnorm, model, loss, batches) as arrive:

        def place(index: int) -> None:
            _lerp(params, start, end, float(grid[index]))
            arrive()

        points = Points(
            loss,
            batches,
            len(grid),
            place,
            device=params[0].device,
            row=len(grid),
            progress=progress,
            group=group,
        )
        identity = _identity(resume, [*start, *end], "line", grid, batchnorm)
        with points.kept_in(resume, identity):
            points.evaluate(range(len(grid)))
    return Line(grid, points.values, points.terms, points.metrics, batchnorm)


def plane(
    loss: Loss,
    params: Iterable[Tensor],
    batches: Iterable[Any],
    directions: Sequence[Iterable[Tensor]],
    alphas: ArrayLike,
    betas: ArrayLike,
    *,
    tolerance: float = 0.0,
    clip: float | None = None,
    batchnorm: Statistics = "kept",
    model: nn.Module | None = None,
    progress: Callable[[], object] | None = None,
    resume: str | Path | None = None,
    group: ProcessGroup | None = None,
) -> Plane:
    """The loss at ``params + alpha * directions[0] + beta * directions[1]``, without gradients.

    Args:
        loss: see :func:`line`.
        params: the tensors that the loss reads its weights from; changed in place meanwhile.
        batches: what ``loss`` is called with.
        directions: two, each a list of tensors like ``params``.
        alphas: coordinates along the first direction, shape (a,).
        betas: coordinates along the second direction, shape (b,).
        tolerance: with 0 every point is evaluated. With 0.01, points are evaluated where the
            surface bends until those in between are interpolated with an error of at most 1 % of
            the drawn range, which goes from the lowest loss to ``clip``. This is an estimate from
            what is seen of the surface, and does not hold for the metrics. The finer the grid, the
            more is saved; a rough surface is evaluated everywhere.
        clip: the highest loss that matters, for a ``tolerance``: above it only "above" is right.
            By default half of the plane lies below it, as in a drawing.
        batchnorm: see :func:`line`.
        model: see :func:`line`.
        progress: called after every point that is evaluated.
        resume: see :func:`line`.
        group: see :func:`line`.

    Raises:
        TypeError: a parameter is no real floating-point tensor; the loss is no tensor.
        ValueError: no parameters, no batches, not two directions, shapes that differ from the
            parameters', coordinates that are not a vector of finite numbers; a tolerance out of
            range, a clip without one; a choice for BatchNorm that does not fit the model or the
            parameters; a file of another computation.

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
        >>> axis = [i / 25 - 1 for i in range(51)]
        >>> bowl = plane(lambda batch: (x**2).sum(), [x], [None], [[east], [north]], axis, axis,
        ...              tolerance=0.01)
        >>> int(bowl.evaluated.sum()), bowl.evaluated.size
        (121, 2601)
    """
    params, batches = checked_params(params), checked_batches(batches)
    if len(directions) != 2:
        raise ValueError(f"directions has {len(directions)} entries: a plane needs two.")
    first = _like("directions[0]", directions[0], params)
    second = _like("directions[1]", directions[1], params)
    rows, columns = _coordinates("alphas", alphas), _coordinates("betas", betas)
    _check_adaptive(tolerance, clip)
    check_batchnorm(batchnorm, model, params, group)
    shape = len(rows), len(columns)
    with (
        torch.no_grad(),
        _restored(params) as pristine,
        following(batchnorm, model, loss, batches) as arrive,
    ):
        move = _mover(params, pristine, first, second)

        def place(index: int) -> None:
            i, j = divmod(index, shape[1])
            move(float(rows[i]), float(columns[j]))
            arrive()

        points = Points(
            loss,
            batches,
            shape[0] * shape[1],
            place,
            device=params[0].device,
            row=shape[1],
            progress=progress,
            group=group,
        )
        identity = _identity(
            *(resume, [*pristine, *first, *second], "plane", rows, columns),
            *(tolerance, clip, batchnorm),
        )
        with points.kept_in(resume, identity):
            evaluated, values, metrics, clip = _fill(points, shape, tolerance, clip)
    return Plane(
        rows, columns, values, points.terms, metrics, batchnorm, evaluated, float(tolerance), clip
    )


def _fill(
    points: Points, shape: tuple[int, int], tolerance: float, clip: float | None
) -> tuple[NDArray[np.bool_], NDArray[np.float64], dict[str, NDArray[np.float64]], float]:
    """Where the loss was evaluated, the loss and the metrics everywhere, and the clip."""
    if tolerance == 0:
        points.evaluate(range(len(points.values)))
        metrics = {name: values.reshape(shape) for name, values in points.metrics.items()}
        return np.ones(shape, bool), points.values.reshape(shape), metrics, np.inf
    # Points that an interrupted run knows count only when their round comes again: its decisions
    # are repeated.
    evaluated, wanted = np.zeros(shape, bool), adaptive.coarse_grid(shape)
    while wanted.size:
        points.evaluate(wanted.tolist())
        evaluated.flat[wanted] = True
        proposal = points.on_first(
            lambda: adaptive.propose(points.values.reshape(shape), evaluated, tolerance, clip)
        )
        wanted = proposal.wanted
    metrics = points.on_first(
        lambda: {
            name: adaptive.interpolate(values.reshape(shape), evaluated)
            for name, values in points.metrics.items()
        }
    )
    return evaluated, proposal.values, metrics, proposal.clip


def _mover(
    params: list[Tensor], pristine: list[Tensor], first: list[Tensor], second: list[Tensor]
) -> Callable[[float, float], None]:
    """A function that puts the weights at coordinates; fast where the first one stays the same."""
    row: list[Tensor] = []
    at: float | None = None

    def move(alpha: float, beta: float) -> None:
        nonlocal row, at
        if alpha != at:
            row.clear()  # before the next one takes its memory
            row, at = list(torch._foreach_add(pristine, first, alpha=alpha)), alpha
        _add(params, row, second, beta)

    return move


def _add(params: list[Tensor], base: list[Tensor], step: list[Tensor], scale: float) -> None:
    if params[0].device.type == "cpu":  # memory is what takes the time: pass through it once
        for param, a, b in zip(params, base, step, strict=True):
            torch.add(a, b, alpha=scale, out=param)
    else:  # launching kernels is
        torch._foreach_copy_(params, base)
        torch._foreach_add_(params, step, alpha=scale)


def _lerp(params: list[Tensor], start: list[Tensor], end: list[Tensor], weight: float) -> None:
    """Exact at both ends."""
    torch._foreach_copy_(params, start)
    torch._foreach_lerp_(params, end, weight)


def _identity(resume: str | Path | None, tensors: list[Tensor], *rest: object) -> str:
    """A fingerprint of the points that a file is about; not needed without a file."""
    if resume is None:
        return ""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().view(torch.uint8).cpu().numpy().data)
    for value in rest:
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return digest.hexdigest()


def _check_adaptive(tolerance: float, clip: float | None) -> None:
    if not 0 <= tolerance < 1:
        raise ValueError(
            f"tolerance is {tolerance}: it has to be a part of the drawn range, such as 0.01, or 0 "
            f"to evaluate every point."
        )
    if clip is not None and tolerance == 0:
        raise ValueError(
            f"clip is {clip} and tolerance is 0, with which every point is evaluated, however high "
            f"its loss: set tolerance=0.01, or leave clip to the drawing."
        )
    if clip is not None and np.isnan(clip):
        raise ValueError("clip is NaN: it has to be a loss, or infinite.")


def _arrays(result: Line | Plane) -> dict[str, NDArray[np.generic]]:
    arrays = {
        field.name: np.asarray(getattr(result, field.name))
        for field in fields(result)
        if field.name != "metrics"
    }
    return arrays | {f"metric_{name}": values for name, values in result.metrics.items()}


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
