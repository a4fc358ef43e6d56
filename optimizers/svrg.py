"""SVRG: stochastic gradients, less the noise that the same sample has at a snapshot.

At a snapshot θ̃ of the parameters the gradient over many batches is taken, μ = ∇f(θ̃). Each step
then evaluates its own sample i twice, at θ and at θ̃:

    d = ∇fᵢ(θ) − c (∇fᵢ(θ̃) − μ)
    u ← β u + d
    θ ← θ − η u

The subtracted term is zero on average, so d estimates ∇f(θ) as ∇fᵢ(θ) does, and near θ̃ with a
variance that falls to zero. The price: each step costs two gradients.

Johnson & Zhang, Accelerating Stochastic Gradient Descent using Predictive Variance Reduction, NIPS
2013, with c = 1 and θ̃ the last iterate (their option I). Yin et al., A Coefficient Makes SVRG
Effective, 2311.05589, has a c that falls from 0.75 to 0 in the course of training: α-SVRG.

Departures from the papers: the momentum β is that of ``torch.optim.SGD``, and 0 is theirs. What μ
is the mean over is the caller's choice: all data, as in the papers, or some batches of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from typing_extensions import Self

from ._base import BaseOptimizer, check_range, decay, descend, working_dtype

Coefficient: TypeAlias = float | Callable[[int], float]


@dataclass(frozen=True)
class LinearDecay:
    """α-SVRG's coefficient (2311.05589): linearly from ``start`` to 0, and 0 from then on.

    Args:
        steps: after how many steps of the optimizer it is 0; usually all of the training.
        start: its value at the first step.
        every: it changes only so often. The authors' code holds it from one snapshot to the next;
            that is the number of steps between two.

    Raises:
        ValueError: an argument is out of range.

    >>> [LinearDecay(steps=4)(step) for step in range(6)]
    [0.75, 0.5625, 0.375, 0.1875, 0.0, 0.0]
    >>> [LinearDecay(steps=4, start=1.0, every=2)(step) for step in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]
    """

    steps: int
    start: float = 0.75
    every: int = 1

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1)
        check_range("start", self.start, 0.0)
        check_range("every", self.every, 1)

    def __call__(self, step: int) -> float:
        """c after so many steps."""
        return self.start * max(0.0, 1 - (step - step % self.every) / self.steps)


class SVRG(BaseOptimizer):
    """SVRG (Johnson & Zhang, NIPS 2013); the module's docstring has the update.

    :meth:`snapshot` comes first, and again from time to time: once an epoch in α-SVRG. It and
    :meth:`step` take closures, because the loss has to be evaluated at two places. Both gradients
    of a step see the same sample, if the closure holds it: the random generators of torch and
    Python are set back in between, so that dropout draws the same mask; with ``model`` its buffers
    are as well, so that BatchNorm's running statistics are updated once. Without ``model`` they are
    updated by both evaluations, and by a snapshot. What a closure draws from elsewhere, such as
    NumPy, it has to draw before. Clip gradients nowhere: each evaluation would be clipped alone.

    Memory beside the parameters and their gradients: θ̃ and μ, and during a step one more gradient;
    with momentum, u. While another snapshot is taken the old one is kept, in case it fails.

    Parameters that were added, or had no gradient, when the snapshot was taken are trained by plain
    SGD until the next. Those without a gradient at θ are left alone, as by any optimizer; one that
    has none at θ̃ has the gradient 0 there.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: learning rate η, a number or a tensor of one element.
        momentum: β, in [0, 1).
        weight_decay: λ, an L2 penalty, or decoupled (see below).
        model: the model that the closures evaluate, whose buffers to guard; or :meth:`attach` it.
        coefficient: c, a number or a function of the number of steps taken, 0 at the first, such as
            :class:`LinearDecay` for α-SVRG. While it is 0 there is no evaluation at θ̃. It is no
            part of :meth:`state_dict`, the number of steps is.
        decoupled_weight_decay: θ ← θ − ηλθ before the step, as in AdamW, in place of d ← d + λθ.
        maximize: climb instead of descend.

    Attributes:
        unobserved: makes the context in which a step evaluates at θ̃. Who watches the closures (as
            Lightning does: logs, metrics) looks away in there.

    Raises:
        TypeError, ValueError: an option is out of range, a parameter is complex, or ``model`` is
            another one's.

    >>> x = torch.tensor([1.0, 2.0, 6.0])
    >>> w = torch.nn.Parameter(torch.zeros(()))
    >>> optimizer = SVRG([w], lr=1.0)
    >>> def closure(i):
    ...     optimizer.zero_grad()
    ...     loss = (w - x[i]).square() / 2
    ...     loss.backward()
    ...     return loss
    >>> optimizer.snapshot(lambda i=i: closure(i) for i in range(3))
    >>> loss = optimizer.step(lambda: closure(2))
    >>> w.item()  # one step from one example, and at the mean of all
    3.0
    """

    unobserved: Callable[[], AbstractContextManager[object]] = nullcontext

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        model: nn.Module | None = None,
        coefficient: Coefficient = 1.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
    ) -> None:
        if not callable(coefficient):
            check_range("coefficient", coefficient, 0.0)
        self.coefficient = coefficient
        self.model: nn.Module | None = None
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "steps": 0,
        }
        super().__init__(params, defaults)
        if model is not None:
            self.attach(model)

    def __getstate__(self) -> dict[str, Any]:
        own = {"coefficient": self.coefficient, "model": self.model}
        return {**super().__getstate__(), **own}

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        check_range("momentum", group["momentum"], 0.0, 1.0)
        for name in ("lr", "weight_decay"):
            check_range(name, group[name], 0.0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, trained by plain SGD until the next snapshot.

        Raises:
            TypeError, ValueError: an option is out of range; the group is not added.
        """
        if self.param_groups:
            param_group["steps"] = self.param_groups[0]["steps"]
        super().add_param_group(param_group)

    def attach(self, model: nn.Module) -> Self:
        """Guard the buffers of ``model``, and return this optimizer.

        Raises:
            ValueError: none of the model's parameters is in this optimizer.
        """
        if set(self._parameters()).isdisjoint(model.parameters()):
            raise ValueError(
                f"attach({type(model).__name__}): none of its parameters is in this optimizer; "
                f"pass the model that the optimizer trains."
            )
        self.model = model
        return self

    @property
    def has_snapshot(self) -> bool:
        """Whether there is a snapshot, so that :meth:`step` can be called."""
        return any("mu" in state for state in self.state.values())

    @torch.no_grad()
    def snapshot(self, closures: Iterable[Callable[[], object]]) -> None:
        """Take θ̃ from the parameters as they are, and μ from ``closures``.

        Gradients, random generators and the model's buffers are left as they were found, also by an
        exception, which leaves the snapshot of before in place.

        Args:
            closures: one for each batch. Each is called once, with ``.grad`` None in every
                parameter, and computes the mean loss over its batch and the gradients. It returns
                the loss, or ``(loss, terms)`` with the number of terms (examples, tokens) of that
                mean: μ is the mean over all terms. Without terms every batch weighs the same.

        Raises:
            TypeError, ValueError: there is no closure or no term; terms are no number or negative,
                or some closures return them and others do not; a gradient is sparse.
            RuntimeError: no closure computed a gradient.
        """
        mean = self._mean_gradient(closures)
        if not mean:
            raise RuntimeError(
                f"{self._name}.snapshot: the closures computed no gradient for any parameter of "
                f"this optimizer: call loss.backward() in each."
            )
        for theta in self._parameters():
            if theta in mean:
                self.state[theta].update(mu=mean[theta], snapshot=theta.detach().clone())
            elif theta in self.state:
                self.state[theta].pop("mu", None)
                self.state[theta].pop("snapshot", None)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Afterwards ``.grad`` holds ∇fᵢ(θ), and the model's buffers what the evaluation at θ left.

        Args:
            closure: evaluates the model with gradients and returns the loss. It is called twice,
                first at θ̃, with ``.grad`` None in every parameter.

        Returns:
            The loss at θ.

        Raises:
            RuntimeError: there is no closure or no snapshot, or the closure computed no gradients.
            ValueError: a gradient is sparse, or the coefficient is out of range. No parameter has
                been changed by any of these.
        """
        if closure is None:
            raise RuntimeError(
                f"{self._name} evaluates the loss twice a step, and step() was called without a "
                f"closure: write optimizer.step(closure), closure computing the loss and its "
                f"gradients. Lightning passes one in automatic optimization, but not with "
                f"precision='16-mixed', whose scaler calls step() by itself: take 'bf16-mixed'."
            )
        if not self.has_snapshot:
            raise RuntimeError(
                f"{self._name} has no snapshot yet: call optimizer.snapshot(closures) before the "
                f"first step, or give Lightning's Trainer the callback SVRGSnapshot()."
            )
        c = self._current_coefficient()
        had_gradients = any(True for _ in self._with_gradients())
        noise = self._noise(closure) if c else {}
        loss: float | None = self._evaluate(closure)
        if had_gradients and not any(True for _ in self._with_gradients()):
            raise RuntimeError(
                f"{self._name}.step: the closure computed no gradients, and those from before were "
                f"not used: compute the loss and call loss.backward() inside of the closure."
            )
        for group, index, theta in self._with_gradients():
            d = self._direction(group, index, c, noise.get(theta))
            self._update(theta, d, self.state[theta], group)
        for group in self.param_groups:
            group["steps"] += 1
        return loss

    def _mean_gradient(self, closures: Iterable[Callable[[], object]]) -> dict[Tensor, Tensor]:
        """The mean over all terms, of every parameter that has a gradient for one of them."""
        mean: dict[Tensor, Tensor] = {}
        total = 0.0
        counted: set[bool] = set()
        with self._gradients_kept(), self._guard():
            for closure in closures:
                result = self._evaluate(closure)
                counted.add(isinstance(result, tuple))
                if len(counted) > 1:
                    raise ValueError(
                        f"{self._name}.snapshot: some closures return (loss, terms) and others the "
                        f"loss alone: let all or none return the number of terms."
                    )
                terms = _terms(result)
                if terms == 0:  # a mean over nothing is not a number
                    continue
                total += terms
                for _, _, theta in self._with_gradients():
                    assert theta.grad is not None
                    if theta not in mean:
                        mean[theta] = torch.zeros_like(theta, dtype=working_dtype(theta))
                    mean[theta].add_(theta.grad, alpha=terms)
        if total == 0:
            what = "has no term of the loss in it" if counted else "is empty"
            raise ValueError(
                f"{self._name}.snapshot: closures {what}. Pass one closure for each batch; "
                f"an iterator over them is used up after one snapshot."
            )
        for gradient in mean.values():
            gradient.div_(total)
        return mean

    def _noise(self, closure: Callable[[], object]) -> dict[Tensor, Tensor]:
        """∇fᵢ(θ̃) − μ of every parameter that has a snapshot."""
        with self.unobserved(), self._guard(), self._at_snapshot():
            self._evaluate(closure)
        noise = {}
        for theta in self._parameters():
            if (mu := self.state.get(theta, {}).get("mu")) is not None:
                # Not in place: who made the gradient may use its memory for the next one too.
                noise[theta] = -mu if theta.grad is None else theta.grad - mu
        return noise

    def _direction(
        self, group: Mapping[str, Any], index: int, c: float, noise: Tensor | None
    ) -> Tensor:
        """d, or its negative to climb; made in the memory of ``noise``, where there is any."""
        g = self._gradient(group, index)
        if noise is None:
            return g
        return torch.add(g, noise, alpha=c if group["maximize"] else -c, out=noise)

    def _update(
        self, theta: Tensor, g: Tensor, state: dict[str, Any], group: Mapping[str, Any]
    ) -> None:
        descend(theta, decay(theta, g, group), state, group)

    def _current_coefficient(self) -> float:
        if not callable(self.coefficient):
            return float(self.coefficient)
        step = self.param_groups[0]["steps"]
        c = self.coefficient(step)
        check_range(f"coefficient({step})", c, 0.0)
        return float(c)

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        """What ``closure`` returns; ``.grad`` holds its gradients and nothing from before."""
        self.zero_grad()
        with torch.enable_grad():
            result = closure()
        self._refuse_sparse_gradients()
        return result

    @contextmanager
    def _at_snapshot(self) -> Iterator[None]:
        """Has θ̃ in the parameters, without copying anything."""
        kept = [(theta, theta.data) for theta in self._parameters()]
        try:
            for theta, _ in kept:
                theta.data = self.state.get(theta, {}).get("snapshot", theta.data)
            torch.clear_autocast_cache()  # which knows weights by their parameter
            yield
        finally:
            for theta, data in kept:
                theta.data = data
            torch.clear_autocast_cache()

    @contextmanager
    def _gradients_kept(self) -> Iterator[None]:
        kept = [(theta, theta.grad) for theta in self._parameters()]
        try:
            yield
        finally:
            for theta, gradient in kept:
                theta.grad = gradient

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Sets random generators and the model's buffers back afterwards."""
        devices = {theta.device for theta in self._parameters()} - {torch.device("cpu")}
        with ExitStack() as stack:
            stack.callback(random.setstate, random.getstate())
            stack.enter_context(torch.random.fork_rng([]))  # the CPU's
            for device in devices:
                stack.enter_context(torch.random.fork_rng([device], device_type=device.type))
            if self.model is not None:
                stack.enter_context(_buffers_kept(self.model))
            yield

    def _load_state(self, saved: Mapping[str, Any]) -> None:
        super()._load_state(saved)
        for theta, state in self.state.items():
            if "snapshot" in state:  # θ̃ takes the place of θ, so it has θ's precision
                state["snapshot"] = state["snapshot"].to(theta.dtype)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Sets back which buffers the modules have, and what is in them."""
    kept = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    contents = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffers, before in kept:
            buffers.update(before)
        for buffer, content in contents:
            buffer.copy_(content)


def _terms(result: object) -> float:
    """The weight of a batch whose closure returned ``result``."""
    if not isinstance(result, tuple):
        return 1.0
    if len(result) != 2:
        raise ValueError(
            f"SVRG.snapshot: a closure returned a tuple of {len(result)}: it has to return the "
            f"loss or (loss, terms)."
        )
    check_range("terms", result[1], 0.0)
    return float(result[1])
