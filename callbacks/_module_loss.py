"""The loss of a LightningModule as a function of its weights, on fixed batches."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torchmetrics import Metric

from lightning_opt.errors import UsageError, did_you_mean, nearest

from ._batches import Batch
from ._untouched import random_state, seed_all

LossOption: TypeAlias = str | Callable[[LightningModule, Any], Tensor] | None


class ModuleLoss:
    """``loss(batch)`` for the functions of ``lightning_opt.geometry``.

    It has the module's ``self.log`` caught and its torchmetrics reset for every batch, so that they
    do not grow with the evaluations; whoever makes one puts the module back afterwards.

    Args:
        module: whose weights the loss depends on.
        loss: None for the module's ``training_step``, else a callable ``loss(module, batch)`` or
            the name of a method that takes the batch.
        seed: where the random numbers of a step start, if it draws any.
        metrics: names that the step logs through ``self.log``: their values for the batch, numbers
            or torchmetrics, are returned as a third element.
    """

    def __init__(
        self, module: LightningModule, loss: LossOption, seed: int, metrics: Sequence[str] = ()
    ) -> None:
        self._name, self._step = _step(module, loss)
        self._seed = seed
        self._random = False
        self._with_gradients = False
        self._metrics = metrics
        self._logged: dict[str, Any] = {}
        self._states = [part for part in module.modules() if isinstance(part, Metric)]
        for metric in self._states:  # ranks need not evaluate at the same time
            metric.sync_on_compute, metric.dist_sync_on_step = False, False
        if metrics:
            module.__dict__["log"] = self._catch

    def __call__(self, batch: Batch) -> Any:
        if self._random:
            seed_all(self._seed + batch.index)
        for metric in self._states:
            metric.reset()
        # A step may pop entries off its batch, and the batch is needed again.
        value = batch.value if isinstance(batch.value, Tensor) else copy.copy(batch.value)
        if self._with_gradients:
            with torch.enable_grad():
                loss = self._loss_of(self._step(value, batch.index)).detach()
        else:
            loss = self._loss_of(self._step(value, batch.index))
        if self._metrics:
            return loss, batch.terms, self._measured()
        return loss, batch.terms

    def at_rest(self, batches: list[Batch], *, differentiable: bool) -> float:
        """The sum of the loss over all terms at the present weights.

        It also finds out whether steps draw random numbers. If they do (dropout, noise, sampling),
        every evaluation from here on starts from the same seed, so that the loss is a function of
        the weights. And unless the loss is to be differentiated, it finds out whether a step needs
        gradients itself (a gradient penalty): where it does, they are on from here on.
        """
        if differentiable:
            return self._at_rest(batches)
        try:
            with torch.no_grad():
                return self._at_rest(batches)
        except RuntimeError:  # it may have been another one, which then comes again
            self._with_gradients = True
            return self._at_rest(batches)

    def _at_rest(self, batches: list[Batch]) -> float:
        self._random = True
        total = 0.0
        drawn = False
        for batch in batches:
            seed_all(self._seed + batch.index)
            before = random_state()
            loss = self(batch)[0]
            if batch.terms > 0:  # a mean over no terms is NaN and says nothing
                total += loss.item() * batch.terms
            drawn = drawn or not _equal(before, random_state())
        self._random = drawn
        return total

    def _catch(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Stands in for ``LightningModule.log``."""
        self._logged[name] = value

    def _measured(self) -> dict[str, Any]:
        """The metrics of the batch that was evaluated last."""
        logged, self._logged = self._logged, {}
        values = {}
        for name in self._metrics:
            if name not in logged:
                raise unknown_metric(self._name, name, logged)
            value = logged[name]
            value = value.compute() if isinstance(value, Metric) else value
            values[name] = value.detach() if isinstance(value, Tensor) else value
        return values

    def _loss_of(self, output: Any) -> Tensor:
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if isinstance(loss, Tensor):
            if loss.numel() == 1:
                return loss
            raise UsageError(
                f"{self._name} returned a tensor of shape {tuple(loss.shape)}: it has to be the "
                f"mean loss, one number."
            )
        what = (
            f"a dict without 'loss' ({', '.join(map(str, output))})"
            if (isinstance(output, Mapping))
            else str(output if output is None else type(output).__name__)
        )
        raise UsageError(
            f"{self._name} returned {what}: it has to return the loss as a tensor, or a dict with "
            f"'loss'. Pass loss=, a callable loss(module, batch) or the name of a method, if "
            f"training_step is no function of the batch."
        )


def _step(module: LightningModule, loss: LossOption) -> tuple[str, Callable[[Any, int], Any]]:
    """A name for messages, and what computes the loss from a batch and its index."""
    if loss is None:
        name = f"{type(module).__name__}.training_step"
        training_step = module.training_step
        if _takes_index(training_step):
            return name, training_step
        return name, lambda batch, index: training_step(batch)
    if isinstance(loss, str):
        method = getattr(module, loss)
        return f"{type(module).__name__}.{loss}", lambda batch, index: method(batch)
    name = getattr(loss, "__name__", type(loss).__name__)
    return name, lambda batch, index: loss(module, batch)


def _takes_index(training_step: Callable[..., Any]) -> bool:
    """Whether ``training_step`` takes the batch index after the batch, as Lightning decides it."""
    parameters = inspect.signature(training_step).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 2 or any(p.kind == p.VAR_POSITIONAL for p in parameters)


def check_loss(module: LightningModule, loss: LossOption) -> None:
    """Raises a UsageError if ``loss`` cannot be computed with this module."""
    kind = type(module).__name__
    if isinstance(loss, str) and not callable(getattr(module, loss, None)):
        close = nearest(loss, [name for name in dir(module) if not name.startswith("_")])
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(f"loss={loss!r}: {kind} has no method of that name.{hint}")
    if loss is not None:
        return
    if not module.automatic_optimization:
        raise UsageError(
            f"{kind} optimizes manually: its training_step takes optimizer steps and is no loss. "
            f"Pass loss=, a callable loss(module, batch) or the name of a method with (batch)."
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise UsageError(
            f"{kind}.training_step takes dataloader_iter and fetches its own batches. "
            f"Pass loss=, a callable loss(module, batch) or the name of a method with (batch)."
        )


def unknown_metric(step: str, name: str, logged: Iterable[str]) -> UsageError:
    """The error about a metric that a step does not log."""
    return UsageError(f"metrics: {step} logs no {name!r}. {did_you_mean(name, logged)}")


def _equal(first: Any, second: Any) -> bool:
    """Whether two random states are the same."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool((first == second).all() if hasattr(first, "all") else first == second)
