r"""The largest eigenvalues of a symmetric operator with their eigenvectors, by Lanczos.

With :math:`T = S \Theta S^T` the Lanczos matrix and :math:`v_j` the Lanczos vectors, the Ritz
vector :math:`x_k = \sum_j S_{jk} v_j` has :math:`\lVert H x_k - \theta_k x_k \rVert = \beta_m
|S_{mk}|`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ._krylov import krylov
from .lanczos import Lanczos, Operator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Eigenvectors(NamedTuple):
    """Eigenpairs of an operator of shape (n, n).

    Attributes:
        values: the eigenvalues, descending, shape (count,).
        residuals: :math:`\\lVert H x - \\lambda x \\rVert` of each, shape (count,). The sine of the
            angle to the eigenvector is at most the residual over the gap to the other eigenvalues.
        vectors: orthonormal, shape (count, n), with the operator's dtype and device.
    """

    values: NDArray[np.float64]
    residuals: NDArray[np.float64]
    vectors: Tensor


def eigenvectors(
    operator: Operator,
    *,
    count: int = 2,
    steps: int = 100,
    tolerance: float = 1e-4,
    seed: int = 0,
    resume: str | Path | None = None,
    group: ProcessGroup | None = None,
    progress: Callable[[], object] | None = None,
) -> Eigenvectors:
    """The eigenvectors of the largest eigenvalues, the most positive first.

    Of an eigenvalue with several eigenvectors one is found.

    Args:
        operator: symmetric, with ``@``, ``shape``, ``dtype`` and ``device``: a Hessian, a matrix.
        count: how many.
        steps: at most this many products with the operator; their basis is kept, on the device or
            on the host.
        tolerance: ends the run when every residual is at most this times the norm of the operator.
        seed: of the random start vector.
        resume: as for :func:`~.spectrum.spectrum`.
        group: as for :func:`~.spectrum.spectrum`.
        progress: called after every step.

    Returns:
        Values, residuals and vectors. Where ``steps`` were too few, the residuals tell.

    Raises:
        ValueError: an argument out of range; more vectors than the operator has distinct
            eigenvalues.
        FloatingPointError: the operator returned a NaN or an infinity.

    Example:
        >>> import torch
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> values, residuals, (first, second) = eigenvectors(H)
        >>> print(values.round(6))
        [3. 1.]
        >>> round(abs(first @ torch.tensor([1.0, 1.0]).double() / 2**0.5).item(), 6)
        1.0
    """
    for name, value in (("count", count), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} is {value}: it has to be at least 1.")
    if count > steps:
        raise ValueError(f"count is {count}: it cannot be more than steps, which is {steps}.")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}: it has to be at least 0.")

    def converged(run: Lanczos) -> bool:
        if run.step < count:
            return False
        values, residuals, _ = run.ritz(0)
        return bool((residuals[-count:] <= tolerance * np.abs(values).max()).all())

    run = krylov(
        operator,
        steps=steps,
        probes=1,
        seed=seed,
        # A vector of signs can be orthogonal to an eigenvector of a simple operator, or be one.
        start="gaussian",
        reorthogonalize="full",
        resume=resume,
        group=group,
        progress=progress,
        enough=converged,
    )
    values, residuals, S = run.ritz(0)
    if len(values) < count:
        raise ValueError(
            f"count is {count}, but the operator has {len(values)} distinct eigenvalues that a "
            f"random vector can find."
        )
    assert run.basis is not None
    largest = slice(None, -count - 1, -1)
    vectors = run.shards.gather(run.basis.combine(0, S.T[largest].copy()))
    return Eigenvectors(values[largest].copy(), residuals[largest].copy(), vectors)
