r"""The Lanczos vectors of every probe, kept so that new ones can be made orthogonal to them.

With the vectors :math:`v_1 \dots v_j` as the rows of :math:`Q`, one pass of classical Gram–Schmidt
is :math:`w \leftarrow w - Q^T (Q w)`. Rounding leaves of :math:`Qw` its own relative error, so a
second pass is needed just where the first took away most of :math:`w` (Daniel, Gragg, Kaufman &
Stewart 1976); a third never is.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_opt.memory import available

from ._shards import Shards

SHARE = 1 / 3
"""Of the free memory, for the basis: the operator has plans for the rest (it keeps graphs)."""

Reorthogonalize = Literal["auto", "full", "none"]


class Basis:
    """At most ``steps`` vectors for each probe; this process keeps its slice of each.

    Where the basis is not on the device of the vectors, it is the vectors that move: a product with
    the basis reads it once, which takes longer to move than to read.
    """

    def __init__(
        self, probes: int, steps: int, shards: Shards, dtype: torch.dtype, home: torch.device
    ) -> None:
        self._vectors = torch.empty(probes, steps, shards.length, dtype=dtype, device=home)
        self._shards = shards
        self.steps = steps

    def __getitem__(self, index: int) -> Tensor:
        """The vectors number ``index`` of all probes, of shape (probes, slice)."""
        return self._vectors[:, index]

    def put(self, index: int, probes: list[int], rows: Tensor) -> None:
        """Stores the vectors number ``index`` of some probes."""
        for probe, row in zip(probes, rows, strict=True):
            self._vectors[probe, index] = row

    def orthogonalize(self, w: Tensor, probes: list[int], count: int) -> NDArray[np.float64]:
        """Makes each row of ``w`` orthogonal to the first ``count`` vectors of its probe, in place.

        Returns:
            The squared norms of what is left, in float64.
        """
        vectors = [self._vectors[probe, :count] for probe in probes]
        rows = w.to(self._vectors.device)
        squares = np.zeros(len(probes))
        todo = list(range(len(probes)))
        for _ in range(2):
            removed = self._subtract([vectors[i] for i in todo], [rows[i] for i in todo])
            squares[todo] = self._shards.inner([rows[i] for i in todo], [rows[i] for i in todo])
            todo = [i for i, square in zip(todo, removed, strict=True) if square > squares[i]]
            if not todo:
                break
        w.copy_(rows)
        return squares

    def _subtract(self, vectors: list[Tensor], rows: list[Tensor]) -> NDArray[np.float64]:
        """One pass. Returns the squared norms of what was taken away."""
        partial = torch.stack([Q @ row for Q, row in zip(vectors, rows, strict=True)])
        coefficients = self._shards.sum(partial.cpu().double())
        # First the dtype: not every accelerator has float64.
        rounded = coefficients.to(partial.dtype).to(partial.device)
        for Q, row, c in zip(vectors, rows, rounded, strict=True):
            row.addmv_(Q.T, c, alpha=-1)
        squares: NDArray[np.float64] = coefficients.square().sum(dim=1).numpy()
        return squares

    def coefficients(self, probe: int, row: Tensor, count: int) -> NDArray[np.float64]:
        """The inner products of a vector, given its slice, with a probe's first vectors."""
        Q = self._vectors[probe, :count]
        partial = (Q @ row.to(Q.device)).cpu().double()
        products: NDArray[np.float64] = self._shards.sum(partial).numpy()
        return products

    def combine(self, probe: int, coefficients: NDArray[np.float64]) -> Tensor:
        """Linear combinations of a probe's first vectors, as slices of shape (k, slice).

        Args:
            probe: whose vectors.
            coefficients: of shape (k, number of vectors).
        """
        Q = self._vectors[probe, : coefficients.shape[1]]
        return torch.tensor(coefficients, dtype=Q.dtype, device=Q.device) @ Q


def home_of_basis(
    reorthogonalize: Reorthogonalize,
    memory: int | None,
    probes: int,
    steps: int,
    shards: Shards,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.device | None:
    """The device that the basis is to live on; None if it is not to be kept.

    It may take a third of what is free on ``device``, else of what is available on the host,
    shared with the other processes there; a basis that is asked for, or that is within ``memory``
    bytes for this process, goes to the host whatever is available. All processes keep it or none.
    """
    host = torch.device("cpu")
    needed = probes * steps * shards.length * dtype.itemsize
    asked = reorthogonalize == "full" or (memory is not None and needed <= memory)
    refused = reorthogonalize == "none" or (memory is not None and needed > memory)
    neighbors = shards.on_this_host()
    on_device = needed <= SHARE * available(device) / (neighbors if device == host else 1)
    on_host = asked or needed <= SHARE * available(host) / neighbors
    kept = not refused and (on_device or on_host)
    if not shards.least(int(kept)):
        return None
    return device if on_device else host
