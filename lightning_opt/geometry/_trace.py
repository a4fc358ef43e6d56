r"""The trace by random vectors, with what a Krylov run knows taken out of their noise.

Hutchinson (1990): for v with entries :math:`\pm 1`, :math:`E[v^T H v] = \mathrm{tr}\, H`, with an
error that comes from the entries of H off the diagonal, by far most of them the outliers'. A run
with the basis Q and :math:`T = Q^T H Q` that began from another vector knows the outliers, and

.. math:: E[v^T (H - Q T Q^T) v] + \mathrm{tr}\, T = \mathrm{tr}\, H

for any Q that does not depend on v: what is left to chance is H without its outliers (the idea of
Hutch++, Meyer et al. 2021, which spends products on finding Q).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._shards import Shards
from .lanczos import Lanczos, Operator

_STREAM = 1_000_003
"""Apart from the seeds that somebody gives the start vectors of a run."""


class TraceSamples:
    """Products with random vectors, taken before the run; these are not kept but drawn again.

    Args:
        operator: symmetric, of shape (n, n).
        count: how many vectors.
        seed: of the vectors.
        tick: called after every product.

    Raises:
        FloatingPointError: the operator returned a NaN or an infinity.
    """

    def __init__(
        self, operator: Operator, count: int, seed: int, tick: Callable[[], object]
    ) -> None:
        self._operator, self._seed = operator, seed
        self._shards = Shards(operator.shape[0], operator.device)  # whole vectors, in every process
        self._squares = np.empty(count)
        for index in range(count):
            v = self._vector(index)
            self._squares[index] = self._shards.inner([v], [operator @ v])[0]
            tick()
        if not np.isfinite(self._squares).all():
            raise FloatingPointError("The operator returned a NaN or an infinity.")

    def traces(self, run: Lanczos) -> NDArray[np.float64]:
        """An estimate of the trace from each vector, shape (count,).

        Without a basis in the run they are Hutchinson's.
        """
        if run.basis is None:
            return self._squares
        tridiagonal = run.tridiagonal(0)
        T = tridiagonal.matrix()
        known = [self._known(index, run, T) for index in range(len(self._squares))]
        traces: NDArray[np.float64] = self._squares - np.array(known) + float(np.trace(T))
        return traces

    def _known(self, index: int, run: Lanczos, T: NDArray[np.float64]) -> float:
        """vᵀ Q T Qᵀ v."""
        assert run.basis is not None
        slices = self._vector(index)[run.shards.mine]
        c = run.basis.coefficients(0, slices, len(T))
        return float(c @ T @ c)

    def _vector(self, index: int) -> Tensor:
        """±1, the same on every device."""
        seed = (self._seed + 1) * _STREAM + index
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (self._shards.size,), generator=generator, dtype=torch.int8)
        vector = signs.to(self._operator.device, self._operator.dtype)
        return vector.mul_(2).sub_(1)


def mean_and_error(traces: NDArray[np.float64]) -> tuple[float, float]:
    """Their mean and its standard error, which is NaN of a single one."""
    count = len(traces)
    error = float(traces.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    return float(traces.mean()), error
