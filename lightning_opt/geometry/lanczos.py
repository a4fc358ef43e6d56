r"""The symmetric Lanczos recurrence (Lanczos 1950), several start vectors in lockstep.

From a unit vector :math:`v_1`, with :math:`\beta_0 v_0 = 0`,

.. math::
    \alpha_j = v_j^T H v_j, \quad w = H v_j - \alpha_j v_j - \beta_{j-1} v_{j-1}, \quad
    \beta_j = \lVert w \rVert, \quad v_{j+1} = w / \beta_j

so that :math:`T = \mathrm{tridiag}(\beta, \alpha, \beta)` is H in the basis :math:`v_1 \dots v_m`.
Of the ways to write it that are equal without rounding, :math:`\alpha_j = v_j^T (H v_j -
\beta_{j-1} v_{j-1})` is computed, the stable one (Paige 1972, 1976).

H is multiplied by the power of two that makes :math:`H v_1` about one, and T is divided by it. This
is exact, and keeps squares of a small loss's curvature from vanishing in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._basis import Basis
from ._shards import Shards
from .operator import CurvatureOperator


class Operator(Protocol):
    """A symmetric linear operator, such as a :class:`~.hessian.Hessian` or a matrix.

    ``H @ v`` takes a vector of shape (n,), and several as columns of shape (n, k).
    """

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

    @property
    def norm(self) -> float:
        """The largest absolute row sum, with :math:`\\beta_m` in the last: at least ‖T‖."""
        before = np.concatenate([[0.0], self.betas[:-1]])
        return float((before + np.abs(self.alphas) + self.betas).max())

    def matrix(self) -> NDArray[np.float64]:
        """T, of shape (m, m)."""
        side = self.betas[:-1]
        T: NDArray[np.float64] = np.diag(self.alphas) + np.diag(side, 1) + np.diag(side, -1)
        return T

    def eigh(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvalues in ascending order, and eigenvectors as columns."""
        values, vectors = np.linalg.eigh(self.matrix())
        return values, vectors


class Ritz(NamedTuple):
    """What T says about H.

    Attributes:
        values: eigenvalues of :math:`T = S \\Theta S^T`, ascending, shape (m,).
        residuals: :math:`\\lVert H x - \\theta_k x \\rVert = \\beta_m |S_{mk}|` with
            :math:`x = \\sum_j S_{jk} v_j`, but no less than one roundoff of H; shape (m,).
        vectors: S, shape (m, m).
    """

    values: NDArray[np.float64]
    residuals: NDArray[np.float64]
    vectors: NDArray[np.float64]


class Lanczos:
    """The recurrence under way: H is applied once a step, to the current vectors of all probes.

    A probe whose Krylov space is exhausted drops out, the others go on.

    Args:
        operator: symmetric, of shape (n, n).
        starts: unit vectors of shape (probes, n), or this process' slices of them. The memory is
            used for later vectors.
        steps: how many there will be at most.
        shards: who keeps which coordinates.
        basis: where all vectors are kept: every new one is made orthogonal to all earlier ones.
            Without it three vectors a probe are kept, and roundoff repeats eigenvalues.

    Attributes:
        step: how many steps were taken.
        active: the probes that are not exhausted.
        current: :math:`v_{j+1}` of the active probes, slices of shape (active, slice).
        previous: :math:`v_j` of the same.
        alphas: shape (probes, steps), NaN where there is none yet; ``betas`` likewise.
        scale: the power of two that H is multiplied by.
    """

    def __init__(
        self,
        operator: Operator,
        starts: Tensor,
        steps: int,
        shards: Shards,
        basis: Basis | None = None,
    ) -> None:
        self.operator = operator
        self.shards = shards
        self.basis = basis
        self.step = 0
        self.active = list(range(len(starts)))
        self.current = starts
        self.previous = torch.zeros_like(starts)
        self.alphas = np.full((len(starts), steps), np.nan)
        self.betas = np.full((len(starts), steps), np.nan)
        self.scale = 1.0
        self._products: Tensor | None = None
        if basis is not None:
            basis.put(0, self.active, starts)

    def advance(self) -> None:
        """Takes one step.

        Raises:
            FloatingPointError: the operator returned a NaN or an infinity.
        """
        v, j = self.current, self.step
        product = self._product(v)
        if j == 0:
            self.scale = self._scale(product)
        else:
            self.previous.mul_(-self._column(self.betas[self.active, j - 1] * self.scale))
        # In the memory of v_{j-1}, which is not needed any more.
        w = self.previous.add_(product, alpha=self.scale)
        alphas = self.shards.inner(v.unbind(), w.unbind())
        w.addcmul_(v, self._column(alphas), value=-1)
        if self.basis is None:
            squares = self.shards.inner(w.unbind(), w.unbind())
        else:
            squares = self.basis.orthogonalize(w, self.active, j + 1)
        self._check_finite(alphas + squares)
        self.alphas[self.active, j] = alphas / self.scale
        self.betas[self.active, j] = np.sqrt(squares) / self.scale
        self.step += 1
        self._turn(w)

    def tridiagonal(self, probe: int) -> Tridiagonal:
        """T of one probe, as far as it got."""
        taken = int(np.isfinite(self.alphas[probe]).sum())
        return Tridiagonal(self.alphas[probe, :taken], self.betas[probe, :taken])

    def ritz(self, probe: int) -> Ritz:
        """Eigenvalues of T of one probe, how good they are, and eigenvectors."""
        T = self.tridiagonal(probe)
        values, S = T.eigh()
        roundoff = torch.finfo(self.operator.dtype).eps * T.norm
        return Ritz(values, np.maximum(T.betas[-1] * np.abs(S[-1]), roundoff), S)

    def repeats_itself(self) -> bool:
        """Whether :math:`\\alpha_j` of the step that was taken last comes out again.

        With another operator (other data, weights or modes) it does not. Rounding, such as of sums
        that are not done in the same order every time, changes it much less than is allowed.
        """
        product = self._product(self.previous) * self.scale
        alphas = self.shards.inner(self.previous.unbind(), product.unbind())
        sizes = np.sqrt(self.shards.inner(product.unbind(), product.unbind()))
        error = np.abs(alphas - self.alphas[self.active, self.step - 1] * self.scale)
        # A comparison that a NaN does not pass.
        return bool((error <= math.sqrt(torch.finfo(product.dtype).eps) * sizes).all())

    def _turn(self, w: Tensor) -> None:
        """Makes w, normalized, the current vector of the probes that go on."""
        betas, v = self.betas[self.active, self.step - 1], self.current
        going = [
            index
            for index, probe in enumerate(self.active)
            if betas[index] > self._negligible(probe)
        ]
        if len(going) < len(self.active):
            v, w, betas = v[going], w[going], betas[going]
            self.active = [self.active[index] for index in going]
        self.previous, self.current = v, w.div_(self._column(betas * self.scale))
        if self.basis is not None and self.step < self.basis.steps:
            self.basis.put(self.step, self.active, self.current)

    def _negligible(self, probe: int) -> float:
        """The β that is roundoff: relative to ‖T‖, so that scaling H only scales the answer."""
        return 10 * torch.finfo(self.current.dtype).eps * self.tridiagonal(probe).norm

    def _product(self, v: Tensor) -> Tensor:
        """H times each row of ``v``, in one application: slices from slices."""
        rows, H = self.shards.gather(v), self.operator
        if isinstance(H, CurvatureOperator):
            # In the memory of the last product.
            out = None if self._products is None else self._products[: len(rows)]
            self._products = product = H.of_rows(rows, out)
        else:
            product = (H @ rows[0]).unsqueeze(0) if len(rows) == 1 else (H @ rows.T).T
        return product[:, self.shards.mine]

    def _scale(self, product: Tensor) -> float:
        """The power of two that brings the largest entry of the first product near one."""
        largest = torch.linalg.vector_norm(product, math.inf).item() if product.numel() else 0.0
        size = float(self.shards.sum(torch.tensor(largest, dtype=torch.float64)))
        limit = -math.log2(torch.finfo(product.dtype).tiny)
        return math.ldexp(1.0, -int(max(-limit, min(limit, math.frexp(size)[1]))))

    def _column(self, numbers: NDArray[np.float64]) -> Tensor:
        """One number for each row of the vectors."""
        v = self.current
        return torch.tensor(numbers, dtype=v.dtype, device=v.device).unsqueeze(1)

    def _check_finite(self, numbers: NDArray[np.float64]) -> None:
        if not np.isfinite(numbers).all():
            raise FloatingPointError(
                f"The operator returned a NaN or an infinity at Lanczos step {self.step + 1}."
            )
