"""The large-batch gradients of SVRG, taken in the course of a fit."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from lightning_opt.errors import UsageError
from lightning_opt.optimizers import SVRG

from ._batches import UNKNOWN, count_terms, loaders_of, seeded, transferred
from ._flavors import SPLITTING, Callback, is_a, overrides
from ._untouched import untouched


class SVRGSnapshot(Callback):
    """Gives :class:`~lightning_opt.optimizers.SVRG` its snapshots in automatic optimization.

    Before the first step, and from there on at the intervals below, the gradient of the mean
    training loss is taken over a number of training batches, at the weights as they are. A resumed
    optimizer has its snapshot from the checkpoint and goes on with it, bitwise.

    The batches are those of an epoch of its own, shuffled anew for each snapshot, from the seed of
    the run. They go through ``training_step`` in the modes and the precision of training, under DDP
    on all ranks together. A batch counts with its number of terms: the module's
    ``loss_terms(batch)`` if it has one; else the integer ``batch["labels"]`` that are not -100;
    else, with a warning, its batch size. A data loader with workers gets others for it.

    A snapshot, and in each step the evaluation at it, leave no trace but in the optimizer. What
    they log, to ``self.log`` or a logger, is dropped. Torchmetrics' states, buffers, and every
    attribute of the module are put back, and the random state of Python, NumPy and torch, so that
    both evaluations of a step draw the same, and the training's batches keep their order. Other
    callbacks see neither. For that, all that the module holds beside the trained parameters (other
    weights, buffers, states) is copied at every step. Out of reach are objects of other classes
    that the module holds: what a step changes in them is changed twice. The module's own hooks run
    both times (``on_before_backward``, ``on_after_backward``, ``on_before_zero_grad``,
    ``on_before_optimizer_step``; the last two not in a snapshot).

    Args:
        batches: how many training batches; None for a whole epoch.
        every_n_epochs: take a snapshot at the start of every n-th epoch.
        every_n_steps: take one every so many steps, in place of ``every_n_epochs``.
        progress_bar: show one where the trainer shows its own.
        optional: do nothing, in place of an error, where there is nothing to do: no optimizer of
            the module is an SVRG, or the module optimizes manually.

    Raises:
        UsageError: an option is out of range; before training starts, where SVRG would be silently
            wrong: ``precision="16-mixed"``, gradients that are accumulated or clipped, parameters
            split over devices; manual optimization.

    Example:
        >>> import pytorch_lightning as pl
        >>> trainer = pl.Trainer(callbacks=[SVRGSnapshot(every_n_epochs=2)], logger=False)
    """

    def __init__(
        self,
        batches: int | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        *,
        progress_bar: bool = True,
        optional: bool = False,
    ) -> None:
        options = {"batches": batches, "every_n_epochs": every_n_epochs}
        for option, value in {**options, "every_n_steps": every_n_steps}.items():
            if value is not None and value < 1:
                raise UsageError(f"{option} is {value}: it has to be at least 1.")
        self.batches = batches
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.progress_bar = progress_bar
        self.optional = optional
        self._optimizer: SVRG | None = None
        self._counted = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._optimizer = None
        optimizers = [found for found in map(_svrg, trainer.optimizers) if found is not None]
        automatic = pl_module.automatic_optimization
        if self.optional and not (optimizers and automatic):
            return
        if not optimizers:
            others = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
            raise UsageError(
                f"SVRGSnapshot: {type(pl_module).__name__} has no SVRG among its optimizers "
                f"({others or 'none'}): remove the callback, or pass optional=True."
            )
        if not automatic:
            raise UsageError(
                f"SVRGSnapshot: {type(pl_module).__name__} optimizes manually: remove the callback "
                f"and call snapshot(closures) of the optimizer yourself, then step(closure)."
            )
        _refuse(trainer, pl_module)
        (self._optimizer,) = optimizers  # automatic optimization has one
        self._optimizer.unobserved = partial(_unobserved, trainer, pl_module, self._optimizer)
        self._counted = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        optimizer = self._optimizer
        if optimizer is None:
            return
        # Gradients of the last step take room that those at the snapshot need. And a step that
        # computes none, to be skipped, must not find them: it would look as if without a closure.
        optimizer.zero_grad()
        if self.every_n_steps is not None:
            due = trainer.global_step % self.every_n_steps == 0
        else:
            due = batch_idx == 0 and trainer.current_epoch % self.every_n_epochs == 0
        if due or not optimizer.has_snapshot:
            self._take(trainer, pl_module, optimizer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._optimizer is not None:
            del self._optimizer.unobserved
            self._optimizer = None

    def _take(self, trainer: Trainer, module: LightningModule, optimizer: SVRG) -> None:
        loaders, available = loaders_of(trainer, "train")
        count = available if self.batches is None else min(self.batches, available)
        trainers_bar: Any = trainer.progress_bar_callback
        shown = trainers_bar is not None and getattr(trainers_bar, "is_enabled", True)
        # The same on every rank and after a resume, and another order for every snapshot.
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) + trainer.global_step
        with (
            optimizer.unobserved(),
            _iterated_anew(loaders, seed) as batches,
            tqdm(
                islice(batches, count),
                desc=type(self).__name__,
                total=count if count < UNKNOWN else None,
                leave=False,
                disable=not (self.progress_bar and shown),
            ) as watched,
        ):
            optimizer.snapshot(
                partial(self._gradients, trainer, module, optimizer, value, index)
                for index, value in enumerate(watched)
                if value is not None
            )

    def _gradients(
        self,
        trainer: Trainer,
        module: LightningModule,
        optimizer: SVRG,
        value: Any,
        index: int,
    ) -> tuple[object, float]:
        """Computes the gradients of a batch as the training loop does; the batch's loss and terms.

        Under DDP the batch is that of all ranks. Its gradient is the plain mean of theirs, so each
        loss is scaled by the rank's share of the terms.
        """
        value = transferred(trainer, module, value)
        terms = self._count(module, value)
        on_device = torch.tensor(terms, device=trainer.strategy.root_device)
        total = float(trainer.strategy.reduce(on_device, reduce_op="sum"))
        if total == 0:
            return None, 0.0
        loop = trainer.fit_loop.epoch_loop
        step = loop._build_kwargs(OrderedDict(), value, index)
        loss = loop.automatic_optimization._training_step(step).closure_loss
        if loss is None:  # the step skips this batch
            return None, 0.0
        trainer.strategy.backward(loss * (trainer.world_size * terms / total), optimizer)
        return loss, total

    def _count(self, module: LightningModule, value: Any) -> float:
        with warnings.catch_warnings():
            if self._counted:  # one warning is enough
                warnings.simplefilter("ignore")
            (terms,) = count_terms(module, [value])
        self._counted = True
        return terms


def _svrg(optimizer: Optimizer) -> SVRG | None:
    """The optimizer, or what Lookahead is over, if it is an SVRG."""
    inner = getattr(optimizer, "base", optimizer)
    return inner if isinstance(inner, SVRG) else None


def _refuse(trainer: Trainer, module: LightningModule) -> None:
    """Refuses whatever would make SVRG silently wrong."""
    kind, strategy = type(module).__name__, type(trainer.strategy).__name__
    plugin: Any = trainer.precision_plugin
    if is_a(plugin, "MixedPrecision") and plugin.scaler is not None:
        raise UsageError(
            "SVRG evaluates the loss twice a step, and the scaler of precision='16-mixed' has it "
            "evaluated once: take precision='bf16-mixed' or '32-true'."
        )
    scheduled = any(is_a(c, "GradientAccumulationScheduler") for c in _callbacks(trainer))
    if trainer.accumulate_grad_batches != 1 or scheduled:
        raise UsageError(
            f"SVRG evaluates a batch twice a step, and with accumulated gradients (accumulate_grad_"
            f"batches={trainer.accumulate_grad_batches}) that would be the last batch only: take "
            f"larger batches and accumulate_grad_batches=1."
        )
    if trainer.gradient_clip_val or overrides(module, "configure_gradient_clipping"):
        by = (
            f"gradient_clip_val={trainer.gradient_clip_val}"
            if trainer.gradient_clip_val
            else f"{kind}.configure_gradient_clipping"
        )
        raise UsageError(
            f"{by} would clip each of the two gradients of an SVRG step alone, and their "
            f"difference would no longer be zero on average: remove it, and lower lr instead."
        )
    if is_a(trainer.strategy, *SPLITTING):
        raise UsageError(
            f"SVRGSnapshot needs whole parameters on every device, and {strategy} may split them: "
            f"train on one device, or with DDP."
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise UsageError(
            f"{kind}.training_step takes dataloader_iter and would fetch another batch at each of "
            f"the two evaluations of an SVRG step: let it take the batch."
        )


def _callbacks(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


@contextmanager
def _unobserved(trainer: Trainer, module: LightningModule, optimizer: SVRG) -> Iterator[None]:
    """Has nobody see what happens inside, and undoes it in the module.

    The optimizer's parameters are left out, for their sizes: the optimizer puts them back itself.
    """
    callbacks = _callbacks(trainer)
    trained = [theta for group in optimizer.param_groups for theta in group["params"]]
    # A bar draws itself from a thread of its own, which looks it up here.
    bars = [callback for callback in callbacks if is_a(callback, "ProgressBar")]
    trainer.callbacks = bars  # type: ignore[attr-defined]
    try:
        with untouched(trainer, module, except_for=trained):
            yield
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]


@contextmanager
def _iterated_anew(loaders: CombinedLoader, seed: int) -> Iterator[Iterator[Any]]:
    """The batches of ``loaders`` from the start, without a trace in those that training iterates.

    Copies of them are iterated, for workers that persist are tied to their data loader.
    """
    originals = loaders.flattened
    loaders.flattened = [_copied(loader) for loader in originals]
    with seeded(loaders, seed):  # which has no workers, for a few batches
        for loader, original in zip(loaders.flattened, originals, strict=True):
            if isinstance(loader, DataLoader):
                loader.num_workers, loader.timeout = original.num_workers, original.timeout
        try:
            yield (batch for batch, _, _ in loaders)
        finally:
            loaders.reset()  # ends the workers


def _copied(loader: Any) -> Any:
    if not isinstance(loader, DataLoader):
        return loader
    copied = copy.copy(loader)
    copied._iterator = None
    return copied
