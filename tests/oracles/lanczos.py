"""Lanczos in plain loops, and large operators whose spectra and eigenvectors are known."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def lanczos(
    H: NDArray[np.float64], v: NDArray[np.float64], steps: int
) -> tuple[list[float], list[float]]:
    """Alphas and betas, each vector made orthogonal to every earlier one by one, twice."""
    V, alphas, betas = [v / np.sqrt(sum(x * x for x in v))], [], []
    for j in range(steps):
        w = H @ V[j]
        alphas.append(sum(w * V[j]))
        w = w - alphas[j] * V[j] - (betas[j - 1] * V[j - 1] if j > 0 else 0)
        for earlier in (*V, *V):
            w = w - sum(earlier * w) * earlier
        betas.append(np.sqrt(sum(w * w)))
        V.append(w / betas[j])
    return alphas, betas


class Reflected:
    """An operator with given eigenvalues, rotated by three reflections: no matrix is needed.

    Attributes:
        applied: the shapes of what it was applied to.
    """

    def __init__(self, eigenvalues: Tensor, dtype: torch.dtype = torch.float64) -> None:
        n = len(eigenvalues)
        generator = torch.Generator().manual_seed(0)
        axes = torch.randn(3, n, generator=generator, dtype=torch.float64)
        self.axes = (axes / axes.norm(dim=1, keepdim=True)).to(dtype)
        self.eigenvalues = eigenvalues.to(dtype)
        self.shape, self.dtype, self.device = (n, n), dtype, torch.device("cpu")
        self.applied: list[tuple[int, ...]] = []

    def coordinates(self, v: Tensor) -> Tensor:
        """Those of v, of shape (n,) or (n, k), in the basis of the eigenvectors."""
        return self._reflect(v, self.axes)

    def __matmul__(self, v: Tensor) -> Tensor:
        self.applied.append(tuple(v.shape))
        scaled = torch.einsum("n,n...->n...", self.eigenvalues, self.coordinates(v))
        return self._reflect(scaled, self.axes.flip(0))

    def _reflect(self, v: Tensor, axes: Tensor) -> Tensor:
        for axis in axes:
            v = v - 2 * torch.einsum("n,...->n...", axis, axis @ v)
        return v
