"""Lookahead: k steps of any optimizer forward, one step of its slow weights after it.

The base optimizer moves the fast weights θ. The slow weights φ start at φ₀ = θ₀, and after every
k of its steps

    φ ← φ + α (θ − φ),    θ ← φ

Zhang, Lucas, Hinton & Ba, Lookahead Optimizer: k steps forward, 1 step back, 1907.08610. The base
keeps its state over a synchronization, as in the paper's experiments. The paper evaluates φ:
:meth:`Lookahead.eval` puts it into the parameters and :meth:`Lookahead.train` takes it out again.

Lookahead and its base are one optimizer to the outside. They share ``param_groups``, so that a
scheduler acts on both, and ``state``, so that φ is moved, saved and loaded as momentum is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Self

from ._base import BaseOptimizer, check_range, check_whole, fitted, working_dtype
from ._blocks import blocks, flat

_OWN_STATE = ("slow", "fast")


class Lookahead(BaseOptimizer):
    """Lookahead (1907.08610) over any base optimizer; the module's docstring has the update.

    The base's options are those of the parameter groups, next to ``k`` and ``alpha``; each group
    counts its own steps. Slow weights are taken when a parameter gets its first gradient, just
    before it first moves, so weights may be loaded after construction. Those of bfloat16 and
    float16 parameters are kept in float32.

    Args:
        params: parameters, named parameters, or groups of them.
        base: builds the base optimizer from parameters: a class, or a ``functools.partial`` of
            one with its options.
        k: number of base steps to a step of the slow weights.
        alpha: α, the slow weights' step size, in [0, 1].

    Attributes:
        base: the base optimizer.

    Raises:
        TypeError, ValueError: ``base`` does not build an optimizer, or an option is out of range.

    >>> from functools import partial
    >>> w = torch.nn.Parameter(torch.zeros(()))
    >>> optimizer = Lookahead([w], partial(torch.optim.SGD, lr=1.0), k=5, alpha=0.5)
    >>> w.grad = torch.tensor(-1.0)
    >>> def value_after_a_step():
    ...     optimizer.step()
    ...     return w.item()
    >>> [value_after_a_step() for _ in range(5)]
    [1.0, 2.0, 3.0, 4.0, 2.5]
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Callable[[Iterable[Any]], Optimizer] = torch.optim.Adam,
        k: int = 5,
        alpha: float = 0.5,
    ) -> None:
        if isinstance(params, Optimizer) or not callable(base):
            raise TypeError(
                f"{self._name} builds its base optimizer itself: "
                f"write Lookahead(params, base=functools.partial(torch.optim.Adam, lr=1e-3))."
            )
        self.base = base(params)
        if not isinstance(self.base, Optimizer):
            raise TypeError(f"base={base!r} built {self.base!r}, which is not an Optimizer.")
        options = {"k": k, "alpha": alpha, "fast_steps": 0, "train_mode": True}
        super().__init__(self.base.param_groups, {**self.base.defaults, **options})
        self._share()

    def _share(self) -> None:
        self.param_groups = self.base.param_groups
        self.state = self.base.state

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base}

    def _check_group(self, group: Mapping[str, Any]) -> None:
        check_whole("k", group["k"])
        check_range("alpha", group["alpha"], 0.0, 1.0, closed=True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters to this optimizer and its base; its count starts at 0.

        Raises:
            TypeError, ValueError: an option is out of range; the group is not added.
        """
        param_group["fast_steps"] = 0
        param_group["train_mode"] = self._training
        if self.param_groups is self.base.param_groups:
            self.base.add_param_group(param_group)
            # The base has just appended it to the list that both share: have it checked there.
            self.param_groups.pop()
        super().add_param_group(param_group)

    def attach(self, model: nn.Module) -> Self:
        """Pass the model on to a base that wants to know its layers, and return this optimizer."""
        if callable(attach := getattr(self.base, "attach", None)):
            attach(model)
        return self

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of the base, and one of the slow weights in each group whose k-th it is.

        Args:
            closure: evaluates the model again, with gradients, and returns the loss; the base
                decides how often.

        Returns:
            What the base returns: the closure's loss, or None without one.

        Raises:
            RuntimeError: the parameters hold the slow weights.
        """
        if not self._training:
            raise RuntimeError(
                f"{self._name} is in evaluation mode, and its parameters are the slow "
                f"weights: call optimizer.train() before step()."
            )
        starts: dict[Tensor, Tensor] = {}

        def evaluate() -> float:
            assert closure is not None
            with torch.enable_grad():
                loss = closure()
            self._remember_starts(starts)  # now the gradients are known, and nothing has moved
            return loss

        if closure is None:
            self._remember_starts(starts)
            loss = self.base.step()
        else:
            loss = self.base.step(evaluate)
        # Only now: most optimizers take a parameter's empty state for the sign of its first step.
        for theta, start in starts.items():
            self.state[theta]["slow"] = start
        for group in self.param_groups:
            group["fast_steps"] += 1
            if group["fast_steps"] % group["k"] == 0:
                self._synchronize(group)
        return loss

    def _remember_starts(self, starts: dict[Tensor, Tensor]) -> None:
        for _, _, theta in self._with_gradients():
            if theta not in starts and "slow" not in self.state.get(theta, ()):
                starts[theta] = theta.detach().to(working_dtype(theta), copy=True)

    def _synchronize(self, group: Mapping[str, Any]) -> None:
        for theta in group["params"]:
            if (slow := self.state.get(theta, {}).get("slow")) is not None:
                for fast, phi in blocks(*flat(theta, slow)):
                    phi.lerp_(fast.to(phi.dtype), group["alpha"])
                    fast.copy_(phi)

    @property
    def _training(self) -> bool:
        return all(group["train_mode"] for group in self.param_groups)

    @torch.no_grad()
    def eval(self) -> None:
        """Put the slow weights into the parameters, and keep the fast ones in the state.

        Mode and fast weights are part of :meth:`state_dict`. Does nothing in evaluation mode.
        """
        if not self._training:
            return
        for group in self.param_groups:
            group["train_mode"] = False
            for theta in group["params"]:
                if "slow" in (state := self.state.get(theta, {})):
                    state["fast"] = theta.detach().clone()
                    theta.copy_(state["slow"])

    @torch.no_grad()
    def train(self) -> None:
        """Put the fast weights back into the parameters. Does nothing in training mode."""
        for group in self.param_groups:
            group["train_mode"] = True
            for theta in group["params"]:
                if (fast := self.state.get(theta, {}).pop("fast", None)) is not None:
                    theta.copy_(fast)

    def _load_state(self, saved: Mapping[str, Any]) -> None:
        # The base loads its part by its own rules (which tensors it casts, where it has them).
        base_state = {
            key: {name: value for name, value in state.items() if name not in _OWN_STATE}
            for key, state in saved["state"].items()
        }
        self.base.load_state_dict({**saved, "state": base_state})
        self._share()
        for key, theta in self._matched(saved):
            state = saved["state"].get(key, {})
            own = {name: state[name] for name in _OWN_STATE if name in state}
            if own:
                self.state[theta].update(fitted(own, theta))
