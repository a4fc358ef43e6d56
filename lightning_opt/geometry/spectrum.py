r"""Eigenvalue density, extreme eigenvalues and trace of a symmetric operator, from one Krylov run.

Stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017; Ghorbani et al. 2019, arXiv:1901.10159): for
a random unit vector :math:`v_1`, the eigenvalues :math:`\theta_k` of the Lanczos matrix
:math:`T = S \Theta S^T` and the weights :math:`\tau_k = S_{1k}^2` are the nodes and weights of a
quadrature for the spectral density,

.. math:: \phi(t) \approx \mathrm{mean}_{v_1} \sum_k \tau_k \, \delta(t - \theta_k).

The same run gives the extreme eigenvalues, each with its residual :math:`\beta_m |S_{mk}|`, and
Hutchinson's estimate of the trace, :math:`n` times the mean of :math:`\alpha_1 = v_1^T H v_1`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .lanczos import Operator, lanczos

Reorthogonalize = Literal["auto", "full", "none"]

BASIS_BYTES = 5 * 2**30
"""What the basis may take with ``reorthogonalize="auto"``: 100 steps of 13 million parameters."""


@dataclass(frozen=True)
class Spectrum:
    """What a Krylov run knows about the spectrum of an operator of shape (n, n).

    Attributes:
        nodes: eigenvalues of the Lanczos matrix, ascending, shape (probes, steps). A run that ended
            early, because its Krylov space was exhausted, is padded with NaN.
        weights: their weights, adding up to 1 for every probe, shape (probes, steps); the padding
            has weight 0. ``(nodes, weights)`` is the density, unsmoothed.
        eigenvalues: the largest, descending, then the smallest, descending; shape (k,). An
            eigenvalue with several eigenvectors occurs once. Empty without re-orthogonalization,
            whose nodes repeat the outliers.
        residuals: :math:`\\lVert H x - \\lambda x \\rVert` of each, a bound on the distance to the
            nearest eigenvalue; shape (k,).
        trace: Hutchinson's estimate of the trace.
        trace_stderr: its standard error over the probes; NaN with one probe.
        dimension: n.
        reorthogonalized: whether the Lanczos vectors were kept orthogonal.
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    residuals: NDArray[np.float64]
    trace: float
    trace_stderr: float
    dimension: int
    reorthogonalized: bool

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The attributes as arrays, ready for ``numpy.savez``."""
        return {name: np.asarray(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class _Run:
    """One probe's quadrature."""

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    residuals: NDArray[np.float64]
    rayleigh: float


def spectrum(
    operator: Operator,
    *,
    steps: int = 100,
    probes: int = 1,
    top: int = 5,
    bottom: int = 5,
    reorthogonalize: Reorthogonalize = "auto",
    seed: int = 0,
    progress: Callable[[], object] | None = None,
) -> Spectrum:
    """Density, extreme eigenvalues and trace by stochastic Lanczos quadrature.

    Args:
        operator: symmetric, with ``@``, ``shape``, ``dtype`` and ``device``: a Hessian, a matrix.
        steps: Lanczos steps for each probe, one product with the operator each. No more than n are
            taken, and n steps give the exact spectrum.
        probes: random start vectors with entries ±1, drawn from a generator of their own.
        top: how many of the largest eigenvalues to list.
        bottom: how many of the smallest eigenvalues to list.
        reorthogonalize: ``"full"`` keeps all ``steps`` vectors and makes each new one orthogonal to
            them; ``"none"`` keeps three, which leaves the density right but repeats outliers, so
            that no eigenvalues are listed; ``"auto"`` is full up to ``BASIS_BYTES``.
        seed: of the start vectors: the same ones on every device.
        progress: called after every Lanczos step.

    Returns:
        A :class:`Spectrum`.

    Raises:
        ValueError: an operator that is not square or not floating point, an argument out of range.
        FloatingPointError: the operator returned a NaN or an infinity.

    Example:
        >>> import torch
        >>> Q, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
        >>> H = Q @ torch.diag(torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)) @ Q.T
        >>> result = spectrum(H, steps=4, top=2, bottom=1)
        >>> print(result.eigenvalues.round(6))
        [10.  3.  1.]
        >>> result.nodes.shape, result.weights.sum().round(6).item()
        ((1, 4), 1.0)
    """
    check_arguments(steps, probes, top, bottom, reorthogonalize)
    size = _checked_size(operator)
    length = min(steps, size)
    full = _keeps_basis(reorthogonalize, operator, length)
    basis = (
        torch.empty(length, size, dtype=operator.dtype, device=operator.device) if full else None
    )
    generator = torch.Generator().manual_seed(seed)
    runs = []
    for _ in range(probes):
        start = _rademacher(size, generator).to(operator.device, operator.dtype)
        runs.append(_run(operator, start, length, basis, progress))
    eigenvalues, residuals = _extremes(runs, top, bottom) if full else (np.empty(0), np.empty(0))
    traces = size * np.array([run.rayleigh for run in runs])
    return Spectrum(
        nodes=_padded([run.nodes for run in runs], steps, math.nan),
        weights=_padded([run.weights for run in runs], steps, 0.0),
        eigenvalues=eigenvalues,
        residuals=residuals,
        trace=float(traces.mean()),
        trace_stderr=float(traces.std(ddof=1) / math.sqrt(probes)) if probes > 1 else math.nan,
        dimension=size,
        reorthogonalized=full,
    )


def check_arguments(steps: int, probes: int, top: int, bottom: int, reorthogonalize: str) -> None:
    """Raises a ValueError for what :func:`spectrum` would refuse, before there is an operator."""
    for name, value, least in (
        ("steps", steps, 1),
        ("probes", probes, 1),
        ("top", top, 0),
        ("bottom", bottom, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}: it has to be at least {least}.")
    if reorthogonalize not in get_args(Reorthogonalize):
        raise ValueError(
            f"reorthogonalize is {reorthogonalize!r}: it has to be 'auto', 'full' or 'none'."
        )


def _checked_size(operator: Operator) -> int:
    shape = tuple(operator.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"The operator has shape {shape}: a spectrum needs a square one.")
    if not operator.dtype.is_floating_point:
        raise ValueError(f"The operator is {operator.dtype}: a spectrum needs floating point.")
    return shape[0]


def _keeps_basis(reorthogonalize: str, operator: Operator, steps: int) -> bool:
    if reorthogonalize == "auto":
        return steps * operator.shape[0] * operator.dtype.itemsize <= BASIS_BYTES
    return reorthogonalize == "full"


def _rademacher(size: int, generator: torch.Generator) -> Tensor:
    """A unit vector with entries ±1/√n."""
    signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8)
    return signs.double().mul_(2).sub_(1).div_(math.sqrt(size))


def _run(
    operator: Operator,
    start: Tensor,
    steps: int,
    basis: Tensor | None,
    progress: Callable[[], object] | None,
) -> _Run:
    tridiagonal = lanczos(operator, start, steps, basis=basis, progress=progress)
    nodes, vectors = tridiagonal.eigh()
    return _Run(
        nodes=nodes,
        weights=vectors[0] ** 2,
        residuals=tridiagonal.betas[-1] * np.abs(vectors[-1]),
        rayleigh=float(tridiagonal.alphas[0]),
    )


def _extremes(
    runs: list[_Run], top: int, bottom: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest and smallest eigenvalues and their residuals, from the best probe for each.

    By interlacing, the k-th largest node of any orthonormal basis is at most the k-th largest
    eigenvalue: the probe with the largest one is nearest. The k-th smallest mirror it.
    """
    most = max(len(run.nodes) for run in runs)
    above = min(top, most)
    below = min(bottom, most - above)  # no node is listed from both ends
    ranked = [max(_at(runs, -rank), key=lambda node: node[0]) for rank in range(1, above + 1)]
    ranked += [min(_at(runs, rank), key=lambda node: node[0]) for rank in reversed(range(below))]
    values = np.array(ranked, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def _at(runs: list[_Run], index: int) -> list[tuple[float, float]]:
    """The node at ``index`` and its residual, of every probe that has as many nodes."""
    return [
        (float(run.nodes[index]), float(run.residuals[index]))
        for run in runs
        if -len(run.nodes) <= index < len(run.nodes)
    ]


def _padded(rows: list[NDArray[np.float64]], steps: int, value: float) -> NDArray[np.float64]:
    padded = np.full((len(rows), steps), value)
    for row, entries in zip(padded, rows, strict=True):
        row[: len(entries)] = entries
    return padded
