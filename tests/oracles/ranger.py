"""Ranger in plain loops over scalars: centralization, RAdam and Lookahead, one after the other."""

from __future__ import annotations

import math
from itertools import product

from oracles.lookahead import lookahead


def ranger(
    theta: list[float],
    gradients: list[list[float]],
    shape: tuple[int, ...],
    eta: float,
    alpha: float,
    k: int,
    beta1: float,
    beta2: float,
    epsilon: float,
    *,
    output_axis: int | None,
    decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> tuple[list[list[float]], list[list[float]]]:
    """Fast and slow weights after each step, for one tensor of ``shape``, elements in row order.

    Each gradient goes through :func:`centralized`, unless ``output_axis`` is None, then through
    :class:`RAdam` inside :func:`oracles.lookahead.lookahead`. To maximize, it changes sign.
    """
    descended = []
    for g in gradients:
        signed = [-d for d in g] if maximize else list(g)
        descended.append(centralized(signed, shape, output_axis))
    radam = RAdam(eta, beta1, beta2, epsilon, decay, decoupled)
    return lookahead(theta, descended, radam, k, alpha)


def centralized(g: list[float], shape: tuple[int, ...], output_axis: int | None) -> list[float]:
    """G_o − mean(G_o) for every index o of the output axis (2004.01461, eq. 1).

    Tensors of fewer than two axes are returned as they are.
    """
    if len(shape) < 2 or output_axis is None:
        return list(g)
    indices = list(product(*(range(size) for size in shape)))
    result = list(g)
    for output in range(shape[output_axis]):
        members = [n for n, index in enumerate(indices) if index[output_axis] == output]
        mean = math.fsum(g[n] for n in members) / len(members)
        for n in members:
            result[n] = g[n] - mean
    return result


class RAdam:
    """Liu et al., 1908.03265, with PyTorch's threshold (5) and place of ε.

        m_t = β₁ m + (1 − β₁) g,   v_t = β₂ v + (1 − β₂) g²,   m̂ = m/(1 − β₁ᵗ)
        ρ∞ = 2/(1 − β₂) − 1,       ρ_t = ρ∞ − 2 t β₂ᵗ/(1 − β₂ᵗ)
        ρ_t > 5:  θ ← θ − η m̂ r √(1 − β₂ᵗ)/(√v + ε),
                  r² = (ρ_t − 4)(ρ_t − 2)ρ∞ / ((ρ∞ − 4)(ρ∞ − 2)ρ_t)
        else:     θ ← θ − η m̂

    Weight decay λ: g + λθ in place of g, or (decoupled) θ − ηλθ in place of θ.
    """

    def __init__(
        self,
        eta: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        decay: float,
        decoupled: bool,
    ) -> None:
        self.eta, self.beta1, self.beta2, self.epsilon = eta, beta1, beta2, epsilon
        self.decay, self.decoupled = decay, decoupled
        self.t = 0
        self.m: dict[int, float] = {}
        self.v: dict[int, float] = {}

    def __call__(self, theta: list[float], gradient: list[float]) -> list[float]:
        """One step."""
        self.t += 1
        t, beta1, beta2 = self.t, self.beta1, self.beta2
        theta = list(theta)
        for i, g in enumerate(gradient):
            if self.decoupled:
                theta[i] = theta[i] - self.eta * self.decay * theta[i]
            else:
                g = g + self.decay * theta[i]
            self.m[i] = beta1 * self.m.get(i, 0.0) + (1 - beta1) * g
            self.v[i] = beta2 * self.v.get(i, 0.0) + (1 - beta2) * g**2
            m_hat = self.m[i] / (1 - beta1**t)
            rho_inf = 2 / (1 - beta2) - 1
            rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
            if rho > 5:
                numerator = (rho - 4) * (rho - 2) * rho_inf
                r = math.sqrt(numerator / ((rho_inf - 4) * (rho_inf - 2) * rho))
                ratio = r * math.sqrt(1 - beta2**t) / (math.sqrt(self.v[i]) + self.epsilon)
                theta[i] = theta[i] - self.eta * m_hat * ratio
            else:
                theta[i] = theta[i] - self.eta * m_hat
        return theta
