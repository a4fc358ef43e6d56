"""Yogi in plain loops over scalars, in the symbols of Zaheer et al., NeurIPS 2018."""

from __future__ import annotations

import math


def yogi(
    theta: list[float],
    gradients: list[list[float]],
    eta: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    *,
    bias_correction: bool,
    v0: float,
    decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> list[list[float]]:
    """The parameters after each step, given the gradient of each step.

    For every element, with t = 1, 2, ...

        m_t = β₁ m_{t-1} + (1 − β₁) g_t,                     m_0 = 0
        v_t = v_{t-1} − (1 − β₂) sign(v_{t-1} − g_t²) g_t²,  v_0 given
        θ_t = θ_{t-1} − η m̂_t / (√v̂_t + ε)

    where m̂ = m/(1 − β₁ᵗ) and v̂ = v/(1 − β₂ᵗ) with bias correction, m̂ = m and v̂ = v without.
    Weight decay λ: g + λθ in place of g, or (decoupled) θ − ηλθ in place of θ. To maximize, g
    changes sign.
    """
    theta = list(theta)
    m = [0.0] * len(theta)
    v = [v0] * len(theta)
    path = []
    for t, g_t in enumerate(gradients, start=1):
        for i in range(len(theta)):
            g = -g_t[i] if maximize else g_t[i]
            if decoupled:
                theta[i] = theta[i] - eta * decay * theta[i]
            else:
                g = g + decay * theta[i]
            m[i] = beta1 * m[i] + (1 - beta1) * g
            difference = v[i] - g**2
            sign = 1 if difference > 0 else -1 if difference < 0 else 0
            v[i] = v[i] - (1 - beta2) * sign * g**2
            m_hat = m[i] / (1 - beta1**t) if bias_correction else m[i]
            v_hat = v[i] / (1 - beta2**t) if bias_correction else v[i]
            theta[i] = theta[i] - eta * m_hat / (math.sqrt(v_hat) + epsilon)
        path.append(list(theta))
    return path
