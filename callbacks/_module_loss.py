"""The loss of a LightningModule as a function of its weights, on fixed batches."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeAlias

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.data import extract_batch_size
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_opt.errors import UsageError, nearest

from ._untouched import random_state, seed_all

Split = Literal["train", "val"]
LossOption: TypeAlias = str | Callable[[LightningModule, Any], Tensor] | None


@dataclass(frozen=True)
class Batch:
    """A batch on the module's device.

    Attributes:
        value: what the data loader yielded, after the transfer hooks.
        index: its position in the epoch.
        terms: how many terms its mean loss has.
    """

    value: Any
    index: int
    terms: float


def take_batches(
    trainer: Trainer, module: LightningModule, split: Split, count: int, seed: int
) -> list[Batch]:
    """The first ``count`` batches of an epoch, as Lightning hands them to ``training_step``.

    A shuffling data loader is seeded, so that every run with the same data and ``seed`` gets the
    same batches, whatever its own seed and epoch. Loading happens in this process: the workers of
    the data loader, and their random state, are left alone. Batches whose mean has no terms are
    left out.

    Raises:
        UsageError: the data loader is empty, or the terms of a batch cannot be counted.
    """
    loaders, available = _loaders(trainer, split)
    with _seeded(loaders, seed):
        fetched = [batch for batch, _, _ in islice(iter(loaders), min(count, available))]
    values = [_transferred(trainer, module, value) for value in fetched if value is not None]
    batches = [
        Batch(value, index, terms)
        for index, (value, terms) in enumerate(
            zip(values, _count_terms(module, values), strict=True)
        )
        if terms > 0
    ]
    if not batches:
        raise UsageError(f"The {split} data loader gave no batch with any term of the loss in it.")
    return batches


def _loaders(trainer: Trainer, split: Split) -> tuple[CombinedLoader, int]:
    """The data loaders of a split, and how many batches Lightning itself would use."""
    if split == "train":
        iterables, counts = trainer.train_dataloader, [trainer.num_training_batches]
    else:
        iterables, counts = trainer.val_dataloaders, list(trainer.num_val_batches)
    if iterables is None:
        raise UsageError(f"split={split!r} needs a {split} data loader, and the trainer has none.")
    loaders = CombinedLoader(iterables, "max_size_cycle" if split == "train" else "sequential")
    total = sum(counts)
    return loaders, int(total) if total != float("inf") else 2**31


@contextmanager
def _seeded(loaders: CombinedLoader, seed: int) -> Iterator[None]:
    """Makes the data loaders draw from ``seed``, in this process, and restores them."""
    seed_all(seed)
    data_loaders = [loader for loader in loaders.flattened if isinstance(loader, DataLoader)]
    generators = {id(g): g for loader in data_loaders for g in _generators(loader)}.values()
    states = [(generator, generator.get_state()) for generator in generators]
    options = [(loader, loader.num_workers, loader.timeout) for loader in data_loaders]
    # These order by a seed and an epoch of their own: DistributedSampler, and who follows it.
    samplers = [
        sampler
        for loader in data_loaders
        for sampler in _samplers(loader)
        if hasattr(sampler, "seed") and hasattr(sampler, "epoch")
    ]
    orders = [(sampler, sampler.seed, sampler.epoch) for sampler in samplers]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        for loader in data_loaders:
            loader.num_workers, loader.timeout = 0, 0
        for sampler in samplers:
            sampler.seed, sampler.epoch = seed, 0
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
        for sampler, its_seed, epoch in orders:
            sampler.seed, sampler.epoch = its_seed, epoch
        for loader, workers, timeout in options:
            loader.num_workers, loader.timeout = workers, timeout


def _samplers(loader: DataLoader[Any]) -> list[Any]:
    """The samplers of a data loader, and those that they wrap."""
    found: list[Any] = []
    pending: list[Any] = [loader.sampler, loader.batch_sampler]
    while pending:
        sampler = pending.pop()
        if sampler is not None and not any(sampler is known for known in found):
            found.append(sampler)
            pending.append(getattr(sampler, "sampler", None))
    return found


def _generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """The private generators that iterating over ``loader`` draws from."""
    generators = [getattr(owner, "generator", None) for owner in (loader, *_samplers(loader))]
    return [generator for generator in generators if isinstance(generator, torch.Generator)]


def _transferred(trainer: Trainer, module: LightningModule, value: Any) -> Any:
    """What Lightning's training loop does to a batch before ``training_step`` sees it."""
    value = trainer.precision_plugin.convert_input(value)
    value = module._on_before_batch_transfer(value, dataloader_idx=0)
    return trainer.strategy.batch_to_device(value, dataloader_idx=0)


def _count_terms(module: LightningModule, values: list[Any]) -> list[float]:
    """How many terms the mean loss of each batch has."""
    terms = [known_terms(module, value) for value in values]
    if all(known is not None for known in terms):
        return [float(known) for known in terms if known is not None]
    rank_zero_warn(
        f"{type(module).__name__} has no loss_terms(batch), and its batches have no integer "
        f"'labels': every batch is weighted by its number of examples. If the loss is the mean "
        f"over something else, such as tokens, let loss_terms(batch) return how many there are."
    )
    return [float(_batch_size(module, value)) for value in values]


def known_terms(module: LightningModule, value: Any) -> float | Tensor | None:
    """How many terms the mean loss of a batch has, if the module or the batch tells; else None."""
    count = getattr(module, "loss_terms", None)
    if callable(count):
        terms: float | Tensor = count(value)
        return terms
    labels = _labels(value)
    return None if labels is None else (labels != -100).sum()


def _labels(value: Any) -> Tensor | None:
    """The integer labels of a batch, in which -100 marks what the loss ignores."""
    if not isinstance(value, Mapping):
        return None
    labels = value.get("labels")
    integer = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    return labels if integer else None


def _batch_size(module: LightningModule, value: Any) -> int:
    try:
        with warnings.catch_warnings():  # one warning is enough
            warnings.simplefilter("ignore")
            return extract_batch_size(value)
    except (MisconfigurationException, RecursionError):
        raise UsageError(
            f"The number of examples of a {type(value).__name__} is unknown: let "
            f"{type(module).__name__}.loss_terms(batch) return how many terms its mean loss has."
        ) from None


class ModuleLoss:
    """``loss(batch)`` for the functions of ``lightning_opt.geometry``.

    Args:
        module: whose weights the loss depends on.
        loss: None for the module's ``training_step``, else a callable ``loss(module, batch)`` or
            the name of a method that takes the batch.
        seed: where the random numbers of a step start, if it draws any.
    """

    def __init__(self, module: LightningModule, loss: LossOption, seed: int) -> None:
        self._name, self._step = _step(module, loss)
        self._seed = seed
        self._random = False

    def __call__(self, batch: Batch) -> tuple[Tensor, float]:
        if self._random:
            seed_all(self._seed + batch.index)
        # A step may pop entries off its batch, and the batch is needed again.
        value = batch.value if isinstance(batch.value, Tensor) else copy.copy(batch.value)
        return self._loss_of(self._step(value, batch.index)), batch.terms

    def at_rest(self, batches: list[Batch]) -> float:
        """The mean loss at the present weights; also finds out whether steps draw random numbers.

        If they do (dropout, noise, sampling), every evaluation from here on starts from the same
        seed, so that the loss is a function of the weights.
        """
        self._random = True
        total = 0.0
        drawn = False
        for batch in batches:
            seed_all(self._seed + batch.index)
            before = random_state()
            loss, terms = self(batch)
            total += loss.item() * terms
            drawn = drawn or not _equal(before, random_state())
        self._random = drawn
        return total / sum(batch.terms for batch in batches)

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


def _equal(first: Any, second: Any) -> bool:
    """Whether two random states are the same."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool((first == second).all() if hasattr(first, "all") else first == second)
