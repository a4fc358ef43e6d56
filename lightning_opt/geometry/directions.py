r"""Directions in parameter space to draw the loss along.

Filter normalization (Li et al. 2018, arXiv:1712.09913): with :math:`d_f` and :math:`\theta_f` the
part of the direction and of the weights that belongs to output filter :math:`f`,

.. math:: d_f \leftarrow \frac{d_f}{\lVert d_f \rVert} \lVert \theta_f \rVert

so that a step means the same in networks whose layers are scaled differently. Biases and the
parameters of normalization layers, which have one axis, are not moved. Beyond the paper, several
directions are made orthogonal filter by filter *before* they are scaled: the scales of a filter are
then common to all of them, and the directions stay orthogonal.

Principal axes of a trajectory :math:`\theta_1 \dots \theta_k` (Li et al. 2018, section 7) are the
right singular vectors of the matrix with rows :math:`\theta_i - \theta_k`, which come from its Gram
matrix of k rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._parameters import check_like, checked_params, unflatten

Normalize = Literal["filter", "layer"]
DTYPE = torch.float64


def random(
    params: Iterable[Tensor],
    *,
    count: int = 2,
    normalize: Normalize | None = "filter",
    seed: int = 0,
) -> list[list[Tensor]]:
    """Gaussian directions, orthogonal to each other and scaled to the weights.

    A filter (or layer) with fewer entries than there are directions is moved by the first ones
    only: more orthogonal directions do not exist in it.

    Args:
        params: the weights; the first axis of each is its output filters.
        count: how many directions.
        normalize: ``"filter"`` scales every output filter of a direction to the norm of the
            weights' filter, ``"layer"`` every whole tensor; both set tensors with fewer than two
            axes to zero. ``None`` leaves the Gaussian's norm, in all tensors.
        seed: of a generator of its own: the same directions on every device.

    Returns:
        ``count`` directions, each a list of tensors like ``params``.

    Raises:
        TypeError: a parameter is no real floating-point tensor.
        ValueError: no parameters, ``count`` below 1, an unknown ``normalize``.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
        >>> (first,), (second,) = random([weight])
        >>> first.norm(dim=1), second.norm(dim=1)
        (tensor([5., 2.]), tensor([5., 2.]))
        >>> bool((first * second).sum(dim=1).abs().max() < 1e-5)
        True
    """
    params = checked_params(params)
    _check_count(count)
    _check_normalize(normalize)
    generator = torch.Generator().manual_seed(seed)
    gaussians = []
    for param in params:
        if normalize is not None and param.dim() < 2:
            gaussians.append(param.new_zeros(count, *param.shape, device="cpu"))
            continue
        # Drawn with the directions last, a filter after the other.
        rows = len(param) if normalize == "filter" else 1
        drawn = torch.randn(rows, param.numel() // rows, count, generator=generator, dtype=DTYPE)
        gaussians.append(drawn.movedim(-1, 0).reshape(count, *param.shape))
    return _scaled(gaussians, params, normalize)


def perturbed(initial: Iterable[Tensor], *, scale: float, seed: int = 0) -> list[Tensor]:
    """A newly initialized model plus a Gaussian perturbation (the thesis, section 5.3).

    The start of a line (its eq. 37), or a direction of a plane (its eq. 38).

    Args:
        initial: the weights of a newly initialized model.
        scale: the perturbation's standard deviation over the root mean square of each tensor, so
            that tensors of zeros stay zero. The thesis does not name one.
        seed: of a generator of its own: the same perturbation on every device.

    Returns:
        A list of tensors like ``initial``.

    Raises:
        TypeError: a parameter is no real floating-point tensor.
        ValueError: no parameters, a ``scale`` that is not a number from 0 on.

    Example:
        >>> import torch
        >>> (start,) = perturbed([torch.ones(10000)], scale=0.5)
        >>> round(start.mean().item(), 1), round(start.std().item(), 1)
        (1.0, 0.5)
    """
    initial = checked_params(initial)
    if not 0 <= scale < float("inf"):
        raise ValueError(f"scale is {scale}: it has to be a number from 0 on.")
    generator = torch.Generator().manual_seed(seed)
    result = []
    for tensor in initial:
        weights = tensor.detach().to("cpu", DTYPE)
        noise = torch.randn(weights.shape, generator=generator, dtype=DTYPE)
        moved = weights + scale * weights.square().mean().sqrt() * noise
        result.append(moved.to(tensor.device, tensor.dtype))
    return result


def from_vectors(
    vectors: Tensor, params: Iterable[Tensor], *, normalize: Normalize | None = None
) -> list[list[Tensor]]:
    """Directions from flat vectors, such as eigenvectors of the Hessian.

    Args:
        vectors: shape (n,) or (count, n), n being the number of entries of ``params``.
        params: the weights.
        normalize: see :func:`random`; here every part keeps its direction, up to what makes it
            orthogonal to those before. By default the vectors are as they are: a normalized
            eigenvector is no eigenvector.

    Returns:
        A list of directions, one for each vector, each a list of tensors like ``params``.

    Raises:
        TypeError: a parameter is no real floating-point tensor.
        ValueError: no parameters, another shape, an unknown ``normalize``.

    Example:
        >>> import torch
        >>> from_vectors(torch.arange(3.0), [torch.zeros(1, 2), torch.zeros(1)])
        [[tensor([[0., 1.]]), tensor([2.])]]
    """
    params = checked_params(params)
    _check_normalize(normalize)
    size = sum(param.numel() for param in params)
    if vectors.dim() not in (1, 2) or vectors.shape[-1] != size:
        raise ValueError(
            f"vectors has shape {tuple(vectors.shape)}: it has to be ({size},) or (count, {size}), "
            f"one entry for each of the parameters."
        )
    rows = vectors.detach().reshape(-1, size)
    if normalize is not None:
        sizes = [param.numel() for param in params]
        pieces = torch.split(rows.to("cpu", DTYPE), sizes, dim=1)
        stacks = [
            piece.reshape(-1, *param.shape) for piece, param in zip(pieces, params, strict=True)
        ]
        return _scaled(stacks, params, normalize)
    return [
        [
            piece.to(param.device, param.dtype, copy=True)
            for piece, param in zip(unflatten(row.contiguous(), params), params, strict=True)
        ]
        for row in rows
    ]


def between(
    start: Iterable[Tensor], *ends: Iterable[Tensor], orthogonalize: bool = False
) -> list[list[Tensor]]:
    """The directions from one model to others: coordinate 0 is the start, 1 the end.

    Two ends span the plane through three models.

    Args:
        start: the weights of a model.
        ends: those of others, tensors like ``start``.
        orthogonalize: removes from each direction its parts along those before, so that the plane's
            picture has right angles. Then only the first end has the coordinates (1, 0).

    Returns:
        A list of directions, one for each end, each a list of tensors like ``start``.

    Raises:
        TypeError: a parameter is no real floating-point tensor.
        ValueError: no parameters, no ends, other shapes; directions that are parallel, with
            ``orthogonalize``.

    Example:
        >>> import torch
        >>> start, end, other = torch.zeros(2), torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
        >>> between([start], [end], [other], orthogonalize=True)
        [[tensor([2., 0.])], [tensor([0., 1.])]]
    """
    start = [tensor.detach() for tensor in checked_params(start)]
    if not ends:
        raise ValueError("between has no end: pass the weights of one model at least.")
    directions: list[list[Tensor]] = []
    for index, tensors in enumerate(ends):
        end = checked_params(tensors)
        check_like(f"ends[{index}]", end, start)
        direction = [b.detach().to(a.device, a.dtype) - a for a, b in zip(start, end, strict=True)]
        length = _inner(direction, direction)
        for earlier in directions if orthogonalize else ():
            share = _inner(direction, earlier) / _inner(earlier, earlier)
            torch._foreach_add_(direction, earlier, alpha=-share)
        if orthogonalize and not _inner(direction, direction) > 1e-10 * length:
            raise ValueError(
                f"ends[{index}] lies in the span of the ends before it, seen from the start: it "
                f"adds no direction. Choose another model."
            )
        directions.append(direction)
    return directions


@dataclass(frozen=True)
class Principal:
    """The principal axes of a trajectory.

    Attributes:
        directions: orthonormal, each a list of tensors like the last weights, which are the origin.
        explained: the share of the trajectory's variance around its end along each, shape (count,).
        coordinates: the trajectory in the plane of the directions, shape (k, count); its last row
            is zero.
    """

    directions: list[list[Tensor]]
    explained: NDArray[np.float64]
    coordinates: NDArray[np.float64]

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """What to draw, ready for ``numpy.savez``: the attributes that are arrays."""
        return {"explained": self.explained, "coordinates": self.coordinates}


def principal(trajectory: Iterable[Iterable[Tensor]], *, count: int = 2) -> Principal:
    """The directions in which a training went: the axes of the checkpoints minus the last one.

    Args:
        trajectory: the weights of k checkpoints, in order, each a list of tensors. Read once; a
            generator that loads files is fine. All are kept, on the CPU.
        count: how many axes.

    Raises:
        TypeError: a parameter is no real floating-point tensor.
        ValueError: fewer than ``count`` + 1 checkpoints, or a trajectory that does not have so many
            dimensions; other shapes; a ``count`` below 1; weights that are not finite.

    Example:
        >>> import torch
        >>> path = torch.tensor([[4.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
        >>> axes = principal([weights] for weights in path)
        >>> axes.explained
        array([0.64, 0.36])
        >>> axes.coordinates.round(6)
        array([[4., 0.],
               [0., 3.],
               [0., 0.]])
    """
    _check_count(count)
    path = [checked_params(tensors) for tensors in trajectory]
    if len(path) <= count:
        raise ValueError(f"The trajectory has {len(path)} checkpoints: {count} axes need more.")
    last = path[-1]
    for index, tensors in enumerate(path):
        check_like(f"trajectory[{index}]", tensors, last)
    offsets = [_offsets(tensors) for tensors in zip(*path, strict=True)]
    gram = torch.stack([matrix.double() @ matrix.double().T for matrix in offsets]).sum(dim=0)
    if not gram.isfinite().all():
        raise ValueError("The trajectory has weights that are not finite: leave these out.")
    squares, left = torch.linalg.eigh(gram)
    squares, left = squares.flip(0)[:count], left.flip(1)[:, :count]
    if not squares[-1] > 1e-12 * squares[0]:
        raise ValueError(f"The trajectory has fewer than {count} dimensions: choose a lower count.")
    # The sign is arbitrary: the start of the trajectory is drawn to the right, and above.
    left = left * torch.where(left[0] < 0, -1.0, 1.0)
    lengths = squares.sqrt()
    stacks = [((left / lengths).T @ matrix.double()) for matrix in offsets]
    directions = [
        [
            stack[index].view(tensor.shape).to(tensor.device, tensor.dtype)
            for stack, tensor in zip(stacks, last, strict=True)
        ]
        for index in range(count)
    ]
    return Principal(
        directions,
        explained=(squares / gram.trace()).numpy(),
        coordinates=(left * lengths).numpy(),
    )


def _offsets(tensors: tuple[Tensor, ...]) -> Tensor:
    """A tensor of all checkpoints minus that of the last, shape (k, entries)."""
    rows = torch.stack([tensor.detach().cpu().reshape(-1) for tensor in tensors])
    return rows - rows[-1].clone()


def _scaled(
    stacks: list[Tensor], params: list[Tensor], normalize: Normalize | None
) -> list[list[Tensor]]:
    """Orthogonal directions with the norms of the weights.

    Args:
        stacks: what each direction has for each parameter, shape (count, *parameter).
        params: the weights.
        normalize: see :func:`random`.
    """
    tensors = [_scaled_tensor(*pair, normalize) for pair in zip(stacks, params, strict=True)]
    return [list(direction) for direction in zip(*tensors, strict=True)]


def _scaled_tensor(stack: Tensor, param: Tensor, normalize: Normalize | None) -> list[Tensor]:
    if normalize is not None and param.dim() < 2:
        return [torch.zeros_like(param, requires_grad=False) for _ in stack]
    rows = len(param) if normalize == "filter" else 1
    weights = param.detach().to("cpu", DTYPE).reshape(rows, -1)
    columns = stack.reshape(len(stack), rows, -1).movedim(0, -1)
    norms = columns.norm(dim=1) if normalize is None else weights.norm(dim=1, keepdim=True)
    scaled = (_orthonormal(columns) * norms.unsqueeze(1)).movedim(-1, 0)
    return [part.reshape(param.shape).to(param.device, param.dtype) for part in scaled]


def _orthonormal(vectors: Tensor) -> Tensor:
    """Gram–Schmidt on the columns of every matrix of the stack (rows, entries, count)."""
    q, r = torch.linalg.qr(vectors)
    # The signs make each column the one that Gram–Schmidt gives, and not its negative.
    q = q * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1)).unsqueeze(-2)
    missing = vectors.shape[-1] - q.shape[-1]
    return torch.nn.functional.pad(q, (0, missing))


def _inner(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(torch.sum(x * y, dtype=torch.float64).item() for x, y in zip(a, b, strict=True))


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count is {count}: it has to be at least 1.")


def _check_normalize(normalize: str | None) -> None:
    if normalize not in ("filter", "layer", None):
        raise ValueError(f"normalize is {normalize!r}: it has to be 'filter', 'layer' or None.")
