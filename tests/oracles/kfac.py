"""K-FAC in plain loops over lists of floats, in the symbols of Martens & Grosse, 1503.05671."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Vector = list[float]
Matrix = list[list[float]]
# ā with its homogeneous coordinate, and the gradient g, by s, of one term of the mean loss.
Row = tuple[Vector, Vector]


def expand(examples: Sequence[Sequence[Row]]) -> tuple[Matrix, Matrix]:
    """A and G of a layer whose positions are all rows (2311.00636).

    A = 1/(N R) Σ_n Σ_r ā āᵀ,    G = 1/N Σ_n Σ_r g gᵀ

    for N examples, each a term of the loss, of R positions.
    """
    rows = [row for example in examples for row in example]
    A = total([outer(a) for a, _ in rows])
    G = total([outer(g) for _, g in rows])
    return each(lambda x: x / len(rows), A), each(lambda x: x / len(examples), G)


def reduce(examples: Sequence[Sequence[Row]]) -> tuple[Matrix, Matrix]:
    """A and G of a layer whose positions are put together first (2311.00636).

    A = 1/N Σ_n a aᵀ with a = 1/R Σ_r ā,    G = 1/N Σ_n h hᵀ with h = Σ_r g
    """
    put_together = []
    for example in examples:
        columns = zip(*[a for a, _ in example], strict=True)
        a = [math.fsum(column) / len(example) for column in columns]
        h = [math.fsum(column) for column in zip(*[g for _, g in example], strict=True)]
        put_together.append([(a, h)])
    return expand(put_together)


@dataclass
class Map:
    """One matrix W (outputs × inputs, the bias its last column) and what K-FAC knows of it."""

    W: Matrix
    A: Matrix = field(default_factory=list)
    G: Matrix = field(default_factory=list)
    A_inverse: Matrix = field(default_factory=list)
    G_inverse: Matrix = field(default_factory=list)
    u: Matrix = field(default_factory=list)


@dataclass
class KFACOracle:
    """The update, for layers that are lists of maps, and for matrices that SGD trains."""

    eta: float
    mu: float
    lam: float
    decay: float
    kappa: float | None
    factor_every: int = 1
    inverse_every: int = 1
    block: int | None = None
    weight_decay: float = 0.0
    decoupled: bool = False
    maximize: bool = False
    t: int = 0
    k: int = 0

    def step(
        self,
        layers: list[list[Map]],
        gradients: list[list[Matrix]],
        batch: list[list[tuple[Matrix, Matrix]]],
        others: list[Map],
        other_gradients: list[Matrix],
    ) -> None:
        """Update every W.

        Args:
            layers: the preconditioned layers.
            gradients: ∇W of each map of each layer.
            batch: A and G of this batch, of each map of each layer.
            others: what SGD trains.
            other_gradients: their gradients.
        """
        self.t += 1
        if due(self.t, self.factor_every):
            self.k += 1
            epsilon = min(1 - 1 / self.k, self.decay)
            for layer, pairs in zip(layers, batch, strict=True):
                for m, (A, G) in zip(layer, pairs, strict=True):
                    m.A = average(m.A, A, epsilon)
                    m.G = average(m.G, G, epsilon)
        if due(self.t, self.inverse_every):
            for layer in layers:
                for m in layer:
                    self.invert(m)
        changes: list[tuple[Map, Matrix]] = []
        measure = 0.0
        for layer, nablas in zip(layers, gradients, strict=True):
            inner = 0.0
            for m, nabla in zip(layer, nablas, strict=True):
                g = self.direction(m, nabla)
                delta = product(product(m.G_inverse, g), m.A_inverse)
                inner += math.fsum(math.fsum(row) for row in each(lambda d, n: d * n, delta, g))
                changes.append((m, delta))
            measure += abs(inner)
        nu = 1.0
        if self.kappa is not None and measure > 0:
            nu = min(1.0, math.sqrt(self.kappa / (self.eta**2 * measure)))
        for m, delta in changes:
            self.move(m, each(lambda d: nu * d, delta))
        for m, nabla in zip(others, other_gradients, strict=True):
            self.move(m, self.direction(m, nabla))

    def invert(self, m: Map) -> None:
        trace_A = math.fsum(m.A[i][i] for i in range(len(m.A))) / len(m.A)
        trace_G = math.fsum(m.G[i][i] for i in range(len(m.G))) / len(m.G)
        pi = math.sqrt(trace_A / trace_G)
        m.A_inverse = inverse(shifted(blocks(m.A, self.block), pi * math.sqrt(self.lam)))
        m.G_inverse = inverse(shifted(blocks(m.G, self.block), math.sqrt(self.lam) / pi))

    def direction(self, m: Map, nabla: Matrix) -> Matrix:
        """The gradient of what is descended along, with the penalty's if there is one."""
        sign = -1.0 if self.maximize else 1.0
        penalty = 0.0 if self.decoupled else self.weight_decay
        return each(lambda n, w: sign * n + penalty * w, nabla, m.W)

    def move(self, m: Map, delta: Matrix) -> None:
        shrink = 1 - self.eta * self.weight_decay if self.decoupled else 1.0
        before = m.u or each(lambda d: 0.0, delta)
        m.u = each(lambda u, d: self.mu * u + d, before, delta)
        m.W = each(lambda w, u: shrink * w - self.eta * u, m.W, m.u)


def due(t: int, every: int) -> bool:
    """As in short runs: at 1, 2, 4, ... below the interval, then at its multiples."""
    early = {2**n for n in range(20) if 2**n < every}
    return t in early or t % every == 0


def average(old: Matrix, new: Matrix, epsilon: float) -> Matrix:
    return each(lambda o, n: epsilon * o + (1 - epsilon) * n, old, new) if old else new


def each(function: Callable[..., float], *matrices: Matrix) -> Matrix:
    """A function of the elements that are at the same place."""
    return [
        [function(*elements) for elements in zip(*rows, strict=True)]
        for rows in zip(*matrices, strict=True)
    ]


def total(matrices: list[Matrix]) -> Matrix:
    return each(lambda *elements: math.fsum(elements), *matrices)


def outer(v: Vector) -> Matrix:
    return [[x * y for y in v] for x in v]


def product(left: Matrix, right: Matrix) -> Matrix:
    return [
        [math.fsum(row[k] * right[k][j] for k in range(len(right))) for j in range(len(right[0]))]
        for row in left
    ]


def shifted(M: Matrix, shift: float) -> Matrix:
    return [[x + shift * (i == j) for j, x in enumerate(row)] for i, row in enumerate(M)]


def blocks(M: Matrix, limit: int | None) -> Matrix:
    """M with zeros outside of ⌈width/limit⌉ diagonal blocks, of which the first may be wider."""
    width = len(M)
    number = 1 if limit is None else math.ceil(width / limit)
    of = [k for k in range(number) for _ in range(width // number + (k < width % number))]
    return [[x if of[i] == of[j] else 0.0 for j, x in enumerate(row)] for i, row in enumerate(M)]


def inverse(M: Matrix) -> Matrix:
    """By Gauss and Jordan, with pivots."""
    n = len(M)
    rows = [list(row) + [float(i == j) for j in range(n)] for i, row in enumerate(M)]
    for column in range(n):
        pivot = max(range(column, n), key=lambda i: abs(rows[i][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [x / rows[column][column] for x in rows[column]]
        for i in range(n):
            if i != column:
                factor = rows[i][column]
                rows[i] = [x - factor * y for x, y in zip(rows[i], rows[column], strict=True)]
    return [row[n:] for row in rows]
