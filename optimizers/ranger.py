"""Ranger: rectified Adam on centralized gradients, inside Lookahead.

With t the step, every gradient of more than one axis is first centralized, G ← G − mean(G), the
mean over all axes but the output one (Yong et al., 2004.01461). Then (Liu et al., 1908.03265)

    m ← β₁ m + (1 − β₁) g        m̂ = m / (1 − β₁ᵗ)
    v ← β₂ v + (1 − β₂) g²       ρ∞ = 2 / (1 − β₂) − 1,    ρₜ = ρ∞ − 2 t β₂ᵗ / (1 − β₂ᵗ)

    ρₜ > 5:  θ ← θ − η m̂ r √(1 − β₂ᵗ) / (√v + ε),
             r = √((ρₜ − 4)(ρₜ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρₜ))
    else:    θ ← θ − η m̂

and :class:`Lookahead` (1907.08610) around it. The combination is L. Wright's, 2019–2020.

Departure from 1908.03265: the paper rectifies from ρₜ > 4 on; the threshold 5 and the place of ε
are those of ``torch.optim.RAdam``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from typing_extensions import Self

from ._base import check_betas, check_range, learning_rate
from ._elementwise import ElementwiseOptimizer, Number, add_product, add_quotient
from .lookahead import Lookahead

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# An ε beside which √v does not count: with η times as much, the step of momentum alone.
_HUGE = 2.0**100
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class Ranger(Lookahead):
    """Ranger (L. Wright): RAdam on centralized gradients in Lookahead; see the module's docstring.

    An L2 ``weight_decay`` is added to the gradient after centralization: centralized with it, the
    mean of the weights would not decay.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: learning rate η, a number or a tensor of one element.
        alpha: α, the slow weights' step size, in [0, 1].
        k: number of RAdam steps to a step of the slow weights.
        betas: decay rates (β₁, β₂) of the two moments.
        eps: ε, added to √v.
        weight_decay: λ, an L2 penalty, or decoupled (see below).
        centralize: which gradients are centralized. True: all of more than one axis, the output
            axis being 0 unless :meth:`attach` has found another; a whole number: all of more than
            one axis, this being their output axis; False: none.
        decoupled_weight_decay: θ ← θ − ηλθ before the step, as in AdamW, in place of g ← g + λθ.
        maximize: climb instead of descend.
        compile: run RAdam's update through ``torch.compile``, as in :class:`Yogi`.

    Raises:
        TypeError, ValueError: an option is out of range, or a parameter is complex.

    >>> import torch
    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 1))
    >>> optimizer = Ranger(model.parameters(), lr=0.01).attach(model)
    >>> model(torch.arange(10)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        alpha: float = 0.5,
        k: int = 6,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        *,
        centralize: bool | int = True,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        compile: bool = False,
    ) -> None:
        base = partial(
            _CentralizedRAdam,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            centralize=centralize,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            compile=compile,
        )
        super().__init__(params, base, k=k, alpha=alpha)

    def attach(self, model: nn.Module) -> Self:
        """Take each parameter's output axis from its layer, in groups with ``centralize=True``.

        The weight of a transposed convolution has its outputs on axis 1, and embeddings are not
        centralized: a row is a word, not an output. The axes are part of :meth:`state_dict`. A
        group that is added later needs another call.

        Raises:
            ValueError: none of the model's parameters is in this optimizer.
        """
        return super().attach(model)


class _CentralizedRAdam(ElementwiseOptimizer):
    """The base of :class:`Ranger`, which is the name that its users know."""

    _name = "Ranger"

    def __init__(self, params: ParamsT, **options: Any) -> None:
        super().__init__(params, {**options, "output_axes": None})

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        check_betas(group["betas"])
        for name in ("lr", "eps", "weight_decay"):
            check_range(name, group[name], 0.0)
        centralize = group["centralize"]
        if isinstance(centralize, bool):
            return
        if not isinstance(centralize, int):
            raise TypeError(f"centralize={centralize!r} is neither True, False nor an output axis.")
        axes = min((p.ndim for p in group["params"] if p.ndim > 1), default=math.inf)
        if not 0 <= centralize < axes:
            raise ValueError(
                f"centralize={centralize!r} is not an axis of every matrix, kernel or other "
                f"tensor in its group: one has {axes} axes."
            )

    def attach(self, model: nn.Module) -> Self:
        axis_of = _output_axes(model)
        if not any(theta in axis_of for group in self.param_groups for theta in group["params"]):
            raise ValueError(
                f"attach({type(model).__name__}): none of its parameters is in this optimizer; "
                f"pass the model that the optimizer trains."
            )
        for group in self.param_groups:
            group["output_axes"] = [axis_of.get(theta, 0) for theta in group["params"]]
        return self

    def _output_axis(self, group: Mapping[str, Any], index: int) -> int | None:
        centralize = group["centralize"]
        if centralize is False or group["params"][index].ndim < 2:
            return None
        if centralize is not True:
            return int(centralize)
        axes: list[int | None] | None = group["output_axes"]
        return 0 if axes is None else axes[index]

    def _initial_state(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {"m": 0.0, "v": 0.0}

    def _coefficients(self, t: float, group: Mapping[str, Any]) -> tuple[Number, ...]:
        beta1, beta2 = group["betas"]
        eta = learning_rate(group) / (1 - beta1**t)
        rectification = _rectification(t, beta2)
        if rectification is None:
            return beta1, beta2, _HUGE, eta * _HUGE
        return beta1, beta2, group["eps"], eta * rectification * math.sqrt(1 - beta2**t)

    @staticmethod
    def _rule(
        theta: Tensor,
        g: Tensor,
        m: Tensor,
        v: Tensor,
        beta1: Number,
        beta2: Number,
        eps: Number,
        eta: Number,
    ) -> None:
        m.lerp_(g, 1 - beta1)
        add_product(v.mul_(beta2), g, g, 1 - beta2)
        add_quotient(theta, m, v.sqrt().add_(eps), -eta)


def _rectification(t: float, beta2: float) -> float | None:
    """r of step t, or None while the variance of the adaptive learning rate is intractable."""
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= 5:
        return None
    return math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))


def _output_axes(model: nn.Module) -> dict[Tensor, int | None]:
    """Every parameter's output axis; None for embeddings, also if another layer shares them."""
    axes: dict[Tensor, int | None] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, _EMBEDDINGS) or axes.get(parameter, 0) is None:
                axes[parameter] = None
            else:
                transposed = isinstance(module, _TRANSPOSED) and parameter is module.weight
                axes[parameter] = 1 if transposed else 0
    return axes
