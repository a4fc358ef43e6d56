"""Yogi: adaptive moments whose second moment grows and shrinks additively.

With g the gradient, elementwise,

    m ← β₁ m + (1 − β₁) g
    v ← v − (1 − β₂) sign(v − g²) g²
    θ ← θ − η m̂ / (√v̂ + ε)

Adam lets v fall by the factor β₂ where the gradient is small; Yogi lets it fall by (1 − β₂) g² at
most, so that the effective learning rate η / √v never jumps.

Zaheer, Reddi, Sachan, Kale & Kumar, Adaptive Methods for Nonconvex Optimization, NeurIPS 2018.

Departure from the paper: it takes m̂ = m and v̂ = v, with v started from the first large batch. The
usual implementations correct the bias, m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ), and start v at a
small constant; that is the default here, and ``bias_correction=False`` is the paper's rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ._base import BaseOptimizer, check_betas, check_range, decay, learning_rate


class Yogi(BaseOptimizer):
    """Yogi (Zaheer et al., NeurIPS 2018); the module's docstring has the update.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: learning rate η, a number or a tensor of one element.
        betas: decay rates (β₁, β₂) of the two moments.
        eps: ε, added outside of the root.
        weight_decay: λ, an L2 penalty, or decoupled (see below).
        bias_correction: divide m by 1 − β₁ᵗ and v by 1 − β₂ᵗ; the paper does not.
        initial_accumulator: the value at which every element of v starts.
        decoupled_weight_decay: θ ← θ − ηλθ before the step, as in AdamW, in place of g ← g + λθ.
        maximize: climb instead of descend.

    Raises:
        TypeError, ValueError: an option is out of range, or a parameter is complex.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = Yogi([w], lr=0.1)
    >>> w.square().sum().backward()
    >>> optimizer.step()
    >>> w.detach()
    tensor([ 0.9001, -1.9000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        bias_correction: bool = True,
        initial_accumulator: float = 1e-6,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "initial_accumulator": initial_accumulator,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        check_betas(group["betas"])
        for name in ("lr", "eps", "weight_decay", "initial_accumulator"):
            check_range(name, group[name], 0.0)

    def _update(
        self, theta: Tensor, g: Tensor, state: dict[str, Any], group: Mapping[str, Any]
    ) -> None:
        if "v" not in state:
            v0 = group["initial_accumulator"]
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["m"] = torch.zeros_like(theta, dtype=g.dtype)
            state["v"] = torch.full_like(theta, v0, dtype=g.dtype)
        m, v = state["m"], state["v"]
        beta1, beta2 = group["betas"]
        state["step"] += 1
        t = state["step"].item()

        g = decay(theta, g, group)
        g2 = g.square()
        m.lerp_(g, 1 - beta1)
        v.addcmul_((v - g2).sign_(), g2, value=beta2 - 1)

        correction1, correction2 = 1.0, 1.0
        if group["bias_correction"]:
            correction1, correction2 = 1 - beta1**t, 1 - beta2**t
        root = (v / correction2).sqrt_().add_(group["eps"])
        theta.sub_((m / correction1).div_(root).mul_(learning_rate(group)))
