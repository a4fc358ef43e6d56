"""Shampoo in plain loops over scalars, in the symbols of 1802.09568, with what 2002.09018 adds."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from itertools import product

Matrix = list[list[float]]
Index = tuple[int, ...]
Block = dict[Index, float]


def shampoo(
    theta: list[float],
    gradients: list[list[float]],
    shape: Index,
    eta: float,
    epsilon: float,
    *,
    relative: bool = False,
    mu: float = 0.0,
    beta: float = 1.0,
    block_size: int | None = None,
    grafting: str | None = None,
    statistics_steps: Collection[int] | None = None,
    root_steps: Collection[int] | None = None,
    decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> list[list[float]]:
    """The tensor after each step, elements in row order; ``shape`` is that after merging axes.

    For each block of the tensor, of k axes, in step t

        H_i ← β H_i + G_(i) G_(i)ᵀ,            H_i = 0 at first    (if t is in statistics_steps)
        X_i ← (H_i + εI)^(−1/2k)               (if t is in root_steps)
        P = G ×_1 X_1 … ×_k X_k

    and for the whole tensor m ← μ m + s P, θ ← θ − η m. Grafted, s = ‖D‖/‖P‖ with D of
    :func:`grafted`; else s = 1. None for the steps means all of them.

    Where ``relative``, ε is multiplied by the largest eigenvalue of H_i. Weight decay λ: g + λθ in
    place of g, or (decoupled) θ − ηλθ in place of θ. To maximize, g changes sign.
    """
    theta = list(theta)
    indices = list(product(*(range(n) for n in shape)))
    blocks = [_Preconditioner(members, len(shape)) for members in _cut(indices, shape, block_size)]
    m = [0.0] * len(theta)
    v = [0.0] * len(theta)
    path = []
    for t, gradient in enumerate(gradients, start=1):
        g = [-d for d in gradient] if maximize else list(gradient)
        for n in range(len(theta)):
            if decoupled:
                theta[n] = theta[n] - eta * decay * theta[n]
            else:
                g[n] = g[n] + decay * theta[n]
        G = dict(zip(indices, g, strict=True))
        P: Block = {}
        for block in blocks:
            if statistics_steps is None or t in statistics_steps:
                block.observe(G, beta)
            if root_steps is None or t in root_steps:
                block.take_roots(epsilon, relative)
            P.update(block.precondition(G))
        v = [beta * a + d**2 for a, d in zip(v, g, strict=True)]
        s = 1.0
        if grafting is not None:
            length = _norm(P.values())
            s = _norm(grafted(grafting, g, v, beta, t)) / length if length > 0 else 0.0
        for n, index in enumerate(indices):
            m[n] = mu * m[n] + s * P[index]
            theta[n] = theta[n] - eta * m[n]
        path.append(list(theta))
    return path


def grafted(method: str, g: list[float], v: list[float], beta: float, t: int) -> list[float]:
    """D: the step of another method, v being Σ β^(t−τ) g_τ² over the steps τ ≤ t.

    SGD's is g, AdaGrad's g/(√v + 1e-8), RMSprop's the same with v divided by its sum of weights.
    """
    if method == "sgd":
        return g
    weight = math.fsum(beta**age for age in range(t)) if method == "rmsprop" else 1.0
    return [d / (math.sqrt(a / weight) + 1e-8) for d, a in zip(g, v, strict=True)]


class _Preconditioner:
    """H_i and X_i of one block, given the indices of its elements in the tensor."""

    def __init__(self, members: list[Index], k: int) -> None:
        self.members = members
        self.k = k
        # The rows of axis i are the values that a member's i-th index takes.
        self.rows = [sorted({index[i] for index in members}) for i in range(k)]
        self.H: list[Matrix] = [[[0.0] * len(rows) for _ in rows] for rows in self.rows]
        self.X: list[Matrix] = []

    def observe(self, G: Block, beta: float) -> None:
        for i, rows in enumerate(self.rows):
            for a, row in enumerate(rows):
                for b, other in enumerate(rows):
                    inner = math.fsum(
                        G[index] * G[(*index[:i], other, *index[i + 1 :])]
                        for index in self.members
                        if index[i] == row
                    )
                    self.H[i][a][b] = beta * self.H[i][a][b] + inner

    def take_roots(self, epsilon: float, relative: bool) -> None:
        self.X = [inverse_root(H, 2 * self.k, epsilon, relative) for H in self.H]

    def precondition(self, G: Block) -> Block:
        P = {index: G[index] for index in self.members}
        for i, rows in enumerate(self.rows):
            P = {
                index: math.fsum(
                    self.X[i][rows.index(index[i])][b] * P[(*index[:i], other, *index[i + 1 :])]
                    for b, other in enumerate(rows)
                )
                for index in self.members
            }
        return P


def inverse_root(H: Matrix, p: int, epsilon: float, relative: bool) -> Matrix:
    """(H + εI)^(−1/p)."""
    eigenvalues, Q = eigen(H)
    added = epsilon * max(eigenvalues) if relative else epsilon
    roots = [(max(value, 0.0) + added) ** (-1 / p) for value in eigenvalues]
    n = range(len(H))
    return [[math.fsum(Q[a][e] * roots[e] * Q[b][e] for e in n) for b in n] for a in n]


def eigen(H: Matrix) -> tuple[list[float], Matrix]:
    """Eigenvalues and eigenvectors (columns) of a symmetric matrix by Jacobi's rotations."""
    n = len(H)
    A = [list(row) for row in H]
    Q = [[float(a == b) for b in range(n)] for a in range(n)]
    for _ in range(30):
        for a in range(n):
            for b in range(a + 1, n):
                if A[a][b] == 0:
                    continue
                # The angle up to 45 degrees at which the rotated A has a zero at (a, b).
                difference = A[b][b] - A[a][a]
                angle = math.atan(2 * A[a][b] / difference) / 2 if difference else math.pi / 4
                c, s = math.cos(angle), math.sin(angle)
                for M in (A, Q):
                    for row in M:
                        row[a], row[b] = c * row[a] - s * row[b], s * row[a] + c * row[b]
                for e in range(n):
                    A[a][e], A[b][e] = c * A[a][e] - s * A[b][e], s * A[a][e] + c * A[b][e]
        if all(abs(A[a][b]) <= 1e-16 * abs(A[a][a]) for a in range(n) for b in range(n) if a != b):
            break
    return [A[a][a] for a in range(n)], Q


def _cut(indices: list[Index], shape: Index, block_size: int | None) -> list[list[Index]]:
    """The indices block by block: each axis in as few parts as the block size allows.

    All parts of an axis are equally long, rounded up, the last one having what is left.
    """
    lengths = []
    for n in shape:
        parts = 1 if block_size is None else -(-n // block_size)
        lengths.append(-(-n // parts))
    blocks: dict[Index, list[Index]] = {}
    for index in indices:
        corner = tuple(i // length for i, length in zip(index, lengths, strict=True))
        blocks.setdefault(corner, []).append(index)
    return list(blocks.values())


def _norm(values: Iterable[float]) -> float:
    return math.sqrt(math.fsum(value**2 for value in values))
