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

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from ._base import check_betas, check_range, learning_rate
from ._elementwise import ElementwiseOptimizer, Number, add_product, add_quotient


class Yogi(ElementwiseOptimizer):
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
        compile: run the update through ``torch.compile``: one pass over memory, after some seconds
            of compiling in the first step, which later processes find in its cache.

    Raises:
        TypeError, ValueError: an option is out of range, or a parameter is complex.

    >>> import torch
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
        compile: bool = False,
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
            "compile": compile,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        check_betas(group["betas"])
        for name in ("lr", "eps", "weight_decay", "initial_accumulator"):
            check_range(name, group[name], 0.0)

    def _initial_state(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {"m": 0.0, "v": group["initial_accumulator"]}

    def _coefficients(self, t: float, group: Mapping[str, Any]) -> tuple[Number, ...]:
        beta1, beta2 = group["betas"]
        eps, eta = group["eps"], learning_rate(group)
        if group["bias_correction"]:
            # η m̂ / (√v̂ + ε), numerator and denominator times √(1 − β₂ᵗ)
            root = math.sqrt(1 - beta2**t)
            eps, eta = eps * root, eta * root / (1 - beta1**t)
        return 1 - beta1, 1 - beta2, eps, eta

    @staticmethod
    def _rule(
        theta: Tensor,
        g: Tensor,
        m: Tensor,
        v: Tensor,
        one_minus_beta1: Number,
        one_minus_beta2: Number,
        eps: Number,
        eta: Number,
    ) -> None:
        g2 = g.square()
        m.lerp_(g, one_minus_beta1)
        add_product(v, (v - g2).sign_(), g2, -one_minus_beta2)
        add_quotient(theta, m, v.sqrt().add_(eps), -eta)
