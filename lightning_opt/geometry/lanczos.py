r"""The symmetric Lanczos recurrence (Lanczos 1950), one start vector.

From a unit vector :math:`v_1`, with :math:`\beta_0 v_0 = 0`,

.. math::
    \alpha_j = v_j^T H v_j, \quad w = H v_j - \alpha_j v_j - \beta_{j-1} v_{j-1}, \quad
    \beta_j = \lVert w \rVert, \quad v_{j+1} = w / \beta_j

so that :math:`T = \mathrm{tridiag}(\beta, \alpha, \beta)` is H in the basis :math:`v_1 \dots v_m`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Operator(Protocol):
    """A symmetric linear operator on vectors, such as a :class:`~.hessian.Hessian` or a matrix."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def __matmul__(self, v: Tensor, /) -> Any: ...


@dataclass(frozen=True)
class Tridiagonal:
    """H in the Lanczos basis.

    Attributes:
        alphas: the diagonal, shape (m,).
        betas: beside the diagonal, shape (m,); the last one is the residual :math:`\\beta_m`.
    """

    alphas: NDArray[np.float64]
    betas: NDArray[np.float64]

    def eigh(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvalues in ascending order, and eigenvectors as columns."""
        side = self.betas[:-1]
        matrix = np.diag(self.alphas) + np.diag(side, 1) + np.diag(side, -1)
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors


def lanczos(
    operator: Operator,
    start: Tensor,
    steps: int,
    *,
    basis: Tensor | None = None,
    progress: Callable[[], object] | None = None,
) -> Tridiagonal:
    """At most ``steps`` steps; fewer where the Krylov space of ``start`` is exhausted.

    Args:
        operator: symmetric, of shape (n, n).
        start: a unit vector.
        steps: m.
        basis: memory of shape (m, n) for the basis: every new vector is orthogonalized against all
            earlier ones. Without it three vectors are kept, and roundoff repeats eigenvalues.
        progress: called after every step.

    Raises:
        FloatingPointError: the operator returned a NaN or an infinity.
    """
    # Relative to ||T||, so that scaling H scales the answer and changes nothing else. Below some
    # roundoffs of the operator's own dtype, a direction is noise.
    tolerance = 10 * torch.finfo(operator.dtype).eps
    norm_dtype = None if start.device.type == "mps" else torch.float64  # MPS has no float64
    alphas: list[float] = []
    betas: list[float] = []
    v, previous, beta, size = start, torch.zeros_like(start), 0.0, 0.0
    for step in range(steps):
        if basis is not None:
            basis[step] = v
        product = operator @ v
        alpha = torch.dot(v, product).item()
        w = product.sub(v, alpha=alpha).sub_(previous, alpha=beta)
        if basis is not None:
            for _ in range(2):  # once leaves what the cancellation in w has lost
                w.sub_((basis[: step + 1] @ w) @ basis[: step + 1])
        # In float64, because the squares of a small loss's curvature underflow in float32.
        following = torch.linalg.vector_norm(w, dtype=norm_dtype).item()
        if not (math.isfinite(alpha) and math.isfinite(following)):
            raise FloatingPointError(
                f"The operator returned a NaN or an infinity at Lanczos step {step + 1}."
            )
        alphas.append(alpha)
        betas.append(following)
        if progress is not None:
            progress()
        size = max(size, beta + abs(alpha) + following)
        if following <= tolerance * size:
            break
        v, previous, beta = w.div_(following), v, following
    return Tridiagonal(np.array(alphas), np.array(betas))
