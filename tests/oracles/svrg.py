"""SVRG in plain loops over scalars, in the symbols of Johnson & Zhang and of Yin et al."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def svrg(
    theta: list[float],
    gradient: Callable[[int, list[float]], list[float]],
    samples: Sequence[int],
    snapshots: Mapping[int, Sequence[tuple[int, float]]],
    eta: float,
    beta: float,
    coefficient: Callable[[int], float],
    *,
    decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> list[list[float]]:
    """The parameters after each step.

    Before step t, if there is a snapshot for it,

        θ̃ = θ_t,   μ = Σ_i n_i ∇f_i(θ̃) / Σ_i n_i          over its pairs (i, n_i)

    and then, with i the sample of step t,

        d_t = ∇f_i(θ_t) − c_t (∇f_i(θ̃) − μ)
        u_t = β u_{t−1} + d_t,   u_0 = d_0
        θ_{t+1} = θ_t − η u_t

    Weight decay λ: d + λθ in place of d, or (decoupled) θ − ηλθ in place of θ. To maximize, every
    gradient changes sign.

    Args:
        theta: θ_0.
        gradient: ∇f_i(θ), of i and θ.
        samples: the sample of each step.
        snapshots: the samples of the snapshot that is taken before a step, and their weights.
        eta: η.
        beta: β.
        coefficient: c_t, of t counted from 0.
    """
    theta = list(theta)
    sign = -1.0 if maximize else 1.0
    snapshot: list[float] = []
    mu: list[float] = []
    u: list[float] | None = None
    path = []
    for t, i in enumerate(samples):
        if t in snapshots:
            snapshot = list(theta)
            mu = [0.0] * len(theta)
            weights = sum(n for _, n in snapshots[t])
            for k, n in snapshots[t]:
                g = gradient(k, snapshot)
                for j in range(len(theta)):
                    mu[j] += n / weights * sign * g[j]
        here, there = gradient(i, theta), gradient(i, snapshot)
        d = []
        for j in range(len(theta)):
            d_j = sign * here[j] - coefficient(t) * (sign * there[j] - mu[j])
            if decoupled:
                theta[j] = theta[j] - eta * decay * theta[j]
            else:
                d_j = d_j + decay * theta[j]
            d.append(d_j)
        u = d if u is None else [beta * before + now for before, now in zip(u, d, strict=True)]
        for j in range(len(theta)):
            theta[j] = theta[j] - eta * u[j]
        path.append(list(theta))
    return path
