r"""Directions in parameter space to draw the loss along.

Filter normalization (Li et al. 2018, arXiv:1712.09913): with :math:`d_f` and :math:`\theta_f` the
part of the direction and of the weights that belongs to output filter :math:`f`,

.. math:: d_f \leftarrow \frac{d_f}{\lVert d_f \rVert} \lVert \theta_f \rVert

so that a step means the same in networks whose layers are scaled differently. Biases and the
parameters of normalization layers, which have one axis, are not moved. Beyond the paper, several
directions are made orthogonal filter by filter *before* they are scaled: the scales of a filter are
then common to all of them, and the directions stay orthogonal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from ._parameters import checked_params

Normalize = Literal["filter", "layer"]


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
    if count < 1:
        raise ValueError(f"count is {count}: it has to be at least 1.")
    if normalize not in ("filter", "layer", None):
        raise ValueError(f"normalize is {normalize!r}: it has to be 'filter', 'layer' or None.")
    generator = torch.Generator().manual_seed(seed)
    tensors = [_for_tensor(param, count, normalize, generator) for param in params]
    return [list(direction) for direction in zip(*tensors, strict=True)]


def _for_tensor(
    param: Tensor, count: int, normalize: str | None, generator: torch.Generator
) -> list[Tensor]:
    """The part of each direction that belongs to ``param``."""
    if normalize is not None and param.dim() < 2:
        return [torch.zeros_like(param, requires_grad=False) for _ in range(count)]
    rows = len(param) if normalize == "filter" else 1
    weights = param.detach().to("cpu", torch.float64).reshape(rows, -1)
    gaussian = torch.randn(rows, weights.shape[1], count, generator=generator, dtype=torch.float64)
    unit = _orthonormal(gaussian)
    norms = gaussian.norm(dim=1) if normalize is None else weights.norm(dim=1, keepdim=True)
    scaled = unit * norms.unsqueeze(1)
    return [
        scaled[..., index].reshape(param.shape).to(param.device, param.dtype)
        for index in range(count)
    ]


def _orthonormal(vectors: Tensor) -> Tensor:
    """Gram–Schmidt on the columns of every matrix of the stack (rows, entries, count)."""
    q, r = torch.linalg.qr(vectors)
    # The signs make each column the one that Gram–Schmidt gives, and not its negative.
    q = q * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1)).unsqueeze(-2)
    missing = vectors.shape[-1] - q.shape[-1]
    return torch.nn.functional.pad(q, (0, missing))
