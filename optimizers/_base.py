"""What the optimizers of this folder share.

A method is a subclass of :class:`BaseOptimizer` with two parts of its own: the ranges of its
options (``_check_group``) and the update of one parameter (``_update``). Everything that PyTorch's
users expect around it is here, once: closures, ``maximize``, tensors as learning rates, parameter
groups, refusals that leave nothing half done, and a state that keeps its precision.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._blocks import blocks, flat


def check_range(
    name: str, value: object, low: float, high: float = math.inf, *, closed: bool = False
) -> None:
    """Refuse a ``value`` outside of [low, high), or of [low, high] where ``closed``.

    Raises:
        TypeError: the value is neither a number nor a tensor of one element.
        ValueError: it is out of range, or not a number in IEEE's sense.

    >>> check_range("lr", -1.0, 0.0)
    Traceback (most recent call last):
    ValueError: lr=-1.0 is out of range: expected 0.0 <= lr < inf.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, Tensor) and value.numel() == 1):
        raise TypeError(f"{name}={value!r} is not a number.")
    number = float(value)  # type: ignore[arg-type]
    if not (low <= number < high or (closed and number == high)):
        below = "<=" if closed else "<"
        expected = f"{low} <= {name} {below} {high}"
        raise ValueError(f"{name}={value!r} is out of range: expected {expected}.")


def check_betas(betas: object) -> None:
    """Refuse anything but two decay rates in [0, 1).

    Raises:
        TypeError, ValueError: as :func:`check_range`, naming the rate.
    """
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas={betas!r} is not a pair of numbers.")
    for i, beta in enumerate(betas):
        check_range(f"betas[{i}]", beta, 0.0, 1.0)


def check_whole(name: str, value: object) -> None:
    """Refuse anything but a whole number of at least 1.

    Raises:
        TypeError, ValueError: as :func:`check_range`.
    """
    if not isinstance(value, int):
        raise TypeError(f"{name}={value!r} is not a whole number.")
    check_range(name, value, 1)


def check_choice(name: str, value: object, *choices: str | None) -> None:
    """Refuse a ``value`` that is none of ``choices``.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} is none of {', '.join(map(repr, choices))}.")


def working_dtype(parameter: Tensor) -> torch.dtype:
    """The precision that a parameter's state and update have: its own, but at least float32.

    A running average with decay 0.999 does not move in bfloat16.
    """
    return torch.promote_types(parameter.dtype, torch.float32)


def fitted(value: Any, parameter: Tensor) -> Any:
    """State of ``parameter`` on its device and in its working precision.

    Counters, and whatever is called "step", stay as they are: PyTorch keeps them on the CPU.
    """
    if isinstance(value, Tensor):
        dtype = working_dtype(parameter) if value.is_floating_point() else value.dtype
        return value.to(parameter.device, dtype)
    if isinstance(value, Mapping):
        return {k: v if k == "step" else fitted(v, parameter) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(fitted(v, parameter) for v in value)
    return value


def learning_rate(group: Mapping[str, Any]) -> Any:
    """η, as a number or a tensor without axes, which multiplies any parameter."""
    lr = group["lr"]
    return lr.reshape(()) if isinstance(lr, Tensor) else lr


def decay(theta: Tensor, g: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Apply the group's weight decay λ: to θ itself where decoupled, else to the gradient.

    Decoupled, θ ← θ − ηλθ (Loshchilov & Hutter, 1711.05101); otherwise the result is g + λθ, the
    gradient of the loss with an L2 penalty.
    """
    weight_decay = group["weight_decay"]
    if weight_decay == 0:
        return g
    if group["decoupled_weight_decay"]:
        theta.mul_(1 - learning_rate(group) * weight_decay)
        return g
    return g.add(theta, alpha=weight_decay)


def descend(
    theta: Tensor,
    d: Tensor,
    state: dict[str, Any],
    group: Mapping[str, Any],
    s: Tensor | None = None,
) -> None:
    """Go along s d with heavy-ball momentum: u ← μ u + s d, θ ← θ − η u (Polyak, 1964).

    As in ``torch.optim.SGD``; u is kept in the state unless μ is 0. Without ``s`` it is 1.
    """
    eta, mu = learning_rate(group), group["momentum"]
    if mu > 0 and "u" not in state:
        state["u"] = torch.zeros_like(theta, dtype=d.dtype)
    momentum = (state["u"],) if mu > 0 else ()
    for weights, direction, *us in blocks(*flat(theta, d, *momentum)):
        if s is not None:
            direction = direction * s
        for u in us:
            direction = u.mul_(mu).add_(direction)
        if isinstance(eta, Tensor):
            weights.sub_(direction * eta)
        else:
            weights.sub_(direction, alpha=eta)  # no memory of its own


class BaseOptimizer(Optimizer):
    """A PyTorch optimizer that updates one parameter at a time from its gradient."""

    @property
    def _name(self) -> str:
        """What error messages call this optimizer."""
        return type(self).__name__

    def _check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse a parameter group, its options filled in, that the method cannot train."""
        for index, parameter in enumerate(group["params"]):
            if parameter.is_complex():
                raise ValueError(
                    f"{self._name} does not support complex parameters, and "
                    f"{_describe(group, index)} is {parameter.dtype}: "
                    f"train its real view, torch.view_as_real."
                )

    def _update(
        self, theta: Tensor, g: Tensor, state: dict[str, Any], group: Mapping[str, Any]
    ) -> None:
        """Update ``theta`` in place; ``g`` may be ``theta.grad`` itself and is not written to."""
        raise NotImplementedError

    def _gradient(self, group: Mapping[str, Any], index: int) -> Tensor:
        """The direction to descend along, in working precision."""
        theta = group["params"][index]
        g: Tensor = theta.grad.to(working_dtype(theta))
        return -g if group["maximize"] else g

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with options of their own, also in the middle of a run.

        Raises:
            TypeError, ValueError: an option is out of range; the group is not added.
        """
        super().add_param_group(param_group)
        try:
            self._check_group(param_group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again, with gradients, and returns the loss.

        Returns:
            The closure's loss, or None without one.

        Raises:
            ValueError: a gradient is sparse; no parameter has been changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_sparse_gradients()
        self._update_all()
        return loss

    def _update_all(self) -> None:
        """Update the parameters, given their gradients."""
        for group in self.param_groups:
            indices = [i for i, p in enumerate(group["params"]) if p.grad is not None]
            self._update_group(group, indices)

    def _update_group(self, group: dict[str, Any], indices: Sequence[int]) -> None:
        """Update those of a group's parameters that have a gradient, which ``indices`` names."""
        for index in indices:
            theta = group["params"][index]
            self._update(theta, self._gradient(group, index), self.state[theta], group)

    def _with_gradients(self) -> Iterator[tuple[dict[str, Any], int, Tensor]]:
        for group in self.param_groups:
            for index, theta in enumerate(group["params"]):
                if theta.grad is not None:
                    yield group, index, theta

    def _refuse_sparse_gradients(self) -> None:
        for group, index, theta in self._with_gradients():
            assert theta.grad is not None
            if theta.grad.layout != torch.strided:
                raise ValueError(
                    f"{self._name} does not support sparse gradients, and "
                    f"{_describe(group, index)} has one: build its layer with sparse=False, "
                    f"or give it to torch.optim.SparseAdam."
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, also into a new model and another precision.

        PyTorch's own method casts the state to the parameters' precision, and so would throw away
        the float32 state of bfloat16 parameters.
        """
        options = [dict(group) for group in self.param_groups]
        saved: dict[str, Any] = {}
        # Registered last, the hook sees what the user's own hooks have made of the state.
        handle = self.register_load_state_dict_pre_hook(lambda _, final: saved.update(final))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        self._load_state(saved)
        for group, built in zip(self.param_groups, options, strict=True):
            for name, value in built.items():
                # An option that the checkpoint does not know yet stays as it was built, and so
                # does the one that is about this process and not about the method.
                if name not in group or name == "compile":
                    group[name] = value

    def _load_state(self, saved: Mapping[str, Any]) -> None:
        for key, parameter in self._matched(saved):
            if key in saved["state"]:
                self.state[parameter] = fitted(saved["state"][key], parameter)

    def _matched(self, saved: Mapping[str, Any]) -> Iterator[tuple[int, Tensor]]:
        """The saved state's keys and the parameters that they stand for."""
        for theirs, ours in zip(saved["param_groups"], self.param_groups, strict=True):
            yield from zip(theirs["params"], ours["params"], strict=True)


def _describe(group: Mapping[str, Any], index: int) -> str:
    parameter = group["params"][index]
    name = group["param_names"][index] if "param_names" in group else f"number {index} of its group"
    return f"parameter {name} of shape {tuple(parameter.shape)}"
