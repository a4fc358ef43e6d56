r"""Eigenvalue density, extreme eigenvalues and trace of a symmetric operator, from one Krylov run.

Stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017; Ghorbani et al. 2019, arXiv:1901.10159): for
a random unit vector :math:`v_1`, the eigenvalues :math:`\theta_k` of the Lanczos matrix
:math:`T = S \Theta S^T` and the weights :math:`\tau_k = S_{1k}^2` are the nodes and weights of a
quadrature for the spectral density,

.. math:: \phi(t) \approx \mathrm{mean}_{v_1} \sum_k \tau_k \, \delta(t - \theta_k).

The same run gives the extreme eigenvalues, each with its residual :math:`\beta_m |S_{mk}|`, and
Hutchinson's estimate of the trace, :math:`n` times the mean of :math:`\alpha_1 = v_1^T H v_1`. Some
more products with random vectors give the trace an error bar, and the run takes most of their noise
away (see :mod:`._trace`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from ._basis import Reorthogonalize
from ._krylov import checked_size, krylov
from ._trace import TraceSamples, mean_and_error
from .lanczos import Operator, Ritz

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Reorthogonalize", "Spectrum", "check_arguments", "spectrum"]


@dataclass(frozen=True)
class Spectrum:
    """What a Krylov run knows about the spectrum of an operator of shape (n, n).

    Attributes:
        nodes: eigenvalues of the Lanczos matrix, ascending, shape (probes, steps). A run that ended
            early, because its Krylov space was exhausted, is padded with NaN.
        weights: their weights, adding up to 1 for every probe, shape (probes, steps); the padding
            has weight 0. ``(nodes, weights)`` is the density, unsmoothed:
            ``lightning_opt.figures.density(nodes, weights, grid, width)`` draws it at any
            width.
        eigenvalues: the largest, descending, then the smallest, descending; shape (k,). An
            eigenvalue with several eigenvectors occurs once. Empty without re-orthogonalization,
            whose nodes repeat the outliers.
        residuals: :math:`\\lVert H x - \\lambda x \\rVert` of each, in units of the eigenvalues: a
            bound on the distance to the nearest eigenvalue, and no less than one roundoff of the
            operator. Over the largest absolute eigenvalue it is the relative error; shape (k,).
        trace: an estimate of the trace.
        trace_stderr: its standard error over the samples, or the probes where there are no samples;
            NaN with one of them.
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


def spectrum(
    operator: Operator,
    *,
    steps: int = 100,
    probes: int = 1,
    samples: int = 0,
    top: int = 5,
    bottom: int = 5,
    reorthogonalize: Reorthogonalize = "auto",
    memory: int | None = None,
    seed: int = 0,
    resume: str | Path | None = None,
    group: ProcessGroup | None = None,
    progress: Callable[[], object] | None = None,
) -> Spectrum:
    """Density, extreme eigenvalues and trace by stochastic Lanczos quadrature.

    All probes advance together: the operator is applied ``steps`` times, to the vectors of all
    probes as columns of one matrix (to one vector where there is one probe).

    Args:
        operator: symmetric, with ``@``, ``shape``, ``dtype`` and ``device``: a Hessian, a matrix.
        steps: Lanczos steps, one application of the operator each. No more than n are taken, and n
            steps give the exact spectrum.
        probes: random start vectors with entries ±1, drawn from a generator of their own. More of
            them make the density and the trace less noisy; two or more have error bars.
        samples: further random vectors, one product each, for the trace alone. With
            re-orthogonalization the run's own knowledge of the outliers is taken out of their
            noise, so that some samples do what else takes many probes.
        top: how many of the largest eigenvalues to list.
        bottom: how many of the smallest eigenvalues to list.
        reorthogonalize: ``"full"`` keeps the basis, which is ``steps`` vectors for each probe, and
            makes each new vector orthogonal to it; ``"none"`` keeps three vectors for each probe,
            which leaves the density right but repeats outliers, so that no eigenvalues are listed;
            ``"auto"`` is full where the memory is there. The basis is on the operator's device if
            it takes no more than a third of what is free there, else in the host's memory.
        memory: bytes that the basis may take in this process, for ``"auto"``. By default a third
            of what is free on the device, or else of what is available on the host, shared with the
            processes of ``group`` there.
        seed: of the start vectors: the same ones on every device.
        resume: a file in which the run is kept while it lasts, written every few seconds at most;
            the basis is beside it in ``{resume}.basis``. If the file exists the run goes on from
            it, after one product that checks that the operator is still the same, and gives bitwise
            what it would have given; ``steps`` may have grown. Removed at the end.
        group: processes that call this together, with an operator that gives each of them the same
            product. Every process keeps a slice of the coordinates of every vector; the results are
            the same in all. Files are read and written by the group's first.
        progress: called after every Lanczos step of every probe, and every sample.

    Returns:
        A :class:`Spectrum`.

    Raises:
        ValueError: an operator that is not square or not floating point, an argument out of range,
            a file of another run or a damaged one.
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
    check_arguments(steps, probes, top, bottom, reorthogonalize, memory, samples)
    checked_size(operator)
    # Before the run, so that a run that is continued has lost nothing but these.
    drawn = TraceSamples(operator, samples, seed, progress or (lambda: None))
    run = krylov(
        operator,
        steps=steps,
        probes=probes,
        seed=seed,
        start="rademacher",
        reorthogonalize=reorthogonalize,
        memory=memory,
        resume=resume,
        group=group,
        progress=progress,
    )
    size, full = run.shards.size, run.basis is not None
    ritz = [run.ritz(probe) for probe in range(probes)]
    eigenvalues, residuals = _extremes(ritz, top, bottom) if full else (np.empty(0), np.empty(0))
    trace, error = mean_and_error(drawn.traces(run) if samples else size * run.alphas[:, 0])
    return Spectrum(
        nodes=_padded([each.values for each in ritz], steps, math.nan),
        weights=_padded([each.vectors[0] ** 2 for each in ritz], steps, 0.0),
        eigenvalues=eigenvalues,
        residuals=residuals,
        trace=trace,
        trace_stderr=error,
        dimension=size,
        reorthogonalized=full,
    )


def check_arguments(
    steps: int,
    probes: int,
    top: int,
    bottom: int,
    reorthogonalize: str,
    memory: int | None = None,
    samples: int = 0,
) -> None:
    """Raises a ValueError for what :func:`spectrum` would refuse, before there is an operator."""
    for name, value, least in (
        ("steps", steps, 1),
        ("probes", probes, 1),
        ("samples", samples, 0),
        ("top", top, 0),
        ("bottom", bottom, 0),
        ("memory", 0 if memory is None else memory, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}: it has to be at least {least}.")
    if reorthogonalize not in get_args(Reorthogonalize):
        raise ValueError(
            f"reorthogonalize is {reorthogonalize!r}: it has to be 'auto', 'full' or 'none'."
        )
    if memory is not None and reorthogonalize != "auto":
        raise ValueError(
            f"memory is {memory}, which is for reorthogonalize='auto' to decide by; it is "
            f"{reorthogonalize!r}."
        )


def _extremes(
    probes: list[Ritz], top: int, bottom: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest and smallest eigenvalues and their residuals, from the best probe for each.

    By interlacing, the k-th largest node of any orthonormal basis is at most the k-th largest
    eigenvalue: the probe with the largest one is nearest. The k-th smallest mirror it.
    """
    most = max(len(ritz.values) for ritz in probes)
    above = min(top, most)
    below = min(bottom, most - above)  # no node is listed from both ends
    ranked = [max(_at(probes, -rank), key=lambda node: node[0]) for rank in range(1, above + 1)]
    ranked += [min(_at(probes, rank), key=lambda node: node[0]) for rank in reversed(range(below))]
    values = np.array(ranked, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def _at(probes: list[Ritz], index: int) -> list[tuple[float, float]]:
    """The node at ``index`` and its residual, of every probe that has as many nodes."""
    return [
        (float(ritz.values[index]), float(ritz.residuals[index]))
        for ritz in probes
        if -len(ritz.values) <= index < len(ritz.values)
    ]


def _padded(rows: list[NDArray[np.float64]], steps: int, value: float) -> NDArray[np.float64]:
    padded = np.full((len(rows), steps), value)
    for row, entries in zip(padded, rows, strict=True):
        row[: len(entries)] = entries
    return padded
