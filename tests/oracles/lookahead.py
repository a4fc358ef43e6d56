"""Lookahead in plain loops over scalars, in the symbols of Zhang et al., 1907.08610."""

from __future__ import annotations

from collections.abc import Callable

Step = Callable[[list[float], list[float]], list[float]]


def lookahead(
    theta: list[float], gradients: list[list[float]], step: Step, k: int, alpha: float
) -> tuple[list[list[float]], list[list[float]]]:
    """The fast weights θ and the slow weights φ after each step of the base.

        φ_0 = θ_0
        θ ← A(θ, g)                    each step, A the base optimizer
        φ ← φ + α (θ − φ),  θ ← φ      after each k-th

    Args:
        theta: θ_0.
        gradients: the gradient of each step.
        step: A; it may remember what it has seen.
        k: the synchronization period.
        alpha: the slow weights' step size.
    """
    theta = list(theta)
    phi = list(theta)
    fast, slow = [], []
    for count, g in enumerate(gradients, start=1):
        theta = step(theta, g)
        if count % k == 0:
            for i in range(len(phi)):
                phi[i] = phi[i] + alpha * (theta[i] - phi[i])
                theta[i] = phi[i]
        fast.append(list(theta))
        slow.append(list(phi))
    return fast, slow


class MomentumSGD:
    """A base for the oracle: u ← μ u + g, θ ← θ − η u."""

    def __init__(self, eta: float, mu: float) -> None:
        self.eta = eta
        self.mu = mu
        self.u: list[float] | None = None

    def __call__(self, theta: list[float], g: list[float]) -> list[float]:
        """One step."""
        previous = [0.0] * len(g) if self.u is None else self.u
        self.u = [self.mu * u + d for u, d in zip(previous, g, strict=True)]
        return [p - self.eta * u for p, u in zip(theta, self.u, strict=True)]
