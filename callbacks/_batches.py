"""The fixed batches that an analysis looks at, and how much each of them counts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.data import extract_batch_size
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_opt.errors import UsageError

from ._ranks import Group, gathered, group_of
from ._untouched import seed_all

Split = Literal["train", "val"]
UNKNOWN = 2**31  # how many batches there are where nobody knows


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

    For ``"train"`` they are those of the data module's ``analysis_dataloader()`` where it has one:
    training examples that are not augmented. In a distributed run every process asks for its own.
    A shuffling data loader is seeded, so that every run with the same data and ``seed`` gets the
    same batches, whatever its own seed and epoch. Loading happens in this process: the workers of
    the data loader, and their random state, are left alone. Batches whose mean has no terms are
    left out. Every rank takes those of its own shard.

    Raises:
        UsageError: the data loader is empty, or the terms of a batch cannot be counted; on every
            rank, if the first happens on one.
    """
    group = group_of(trainer)
    loaders, available = loaders_of(trainer, split)
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    if split == "train" and hasattr(datamodule, "analysis_dataloader"):
        loaders = CombinedLoader(datamodule.analysis_dataloader(), "max_size_cycle")
    with seeded(loaders, seed):
        fetched = [batch for batch, _, _ in islice(iter(loaders), min(count, available))]
    values = [transferred(trainer, module, value) for value in fetched if value is not None]
    # Each batch of all ranks has an index of its own: random steps are seeded by it.
    batches = [
        Batch(value, index * trainer.world_size + trainer.global_rank, terms)
        for index, (value, terms) in enumerate(
            zip(values, count_terms(module, values), strict=True)
        )
    ]
    # A rank whose batches have no terms still has to take part.
    batches = [batch for batch in batches if batch.terms > 0] or batches[:1]
    terms = gathered(total_terms(batches), group)
    if sum(terms) == 0 or min(gathered(len(batches), group)) == 0:
        raise UsageError(f"The {split} data loader gave no batch with any term of the loss in it.")
    return batches


def total_terms(batches: list[Batch]) -> float:
    """The number of terms of all batches."""
    return sum(batch.terms for batch in batches)


def batches_of_all_ranks(
    module: LightningModule, batches: list[Batch], group: Group
) -> list[Batch]:
    """The batches of every rank on every rank, in the order of their indices."""
    if group is None:
        return batches
    shards = gathered([_moved(batch, module, torch.device("cpu")) for batch in batches], group)
    union = sorted((batch for shard in shards for batch in shard), key=lambda batch: batch.index)
    return [_moved(batch, module, module.device) for batch in union if batch.terms > 0]


def _moved(batch: Batch, module: LightningModule, device: torch.device) -> Batch:
    return replace(batch, value=module.transfer_batch_to_device(batch.value, device, 0))


def loaders_of(trainer: Trainer, split: Split) -> tuple[CombinedLoader, int]:
    """The data loaders of a split, and how many batches Lightning itself would use."""
    validates = trainer.state.fn == "validate"
    combined: Any
    counts: list[float]
    if split == "train":
        if validates and trainer.train_dataloader is None:
            _load_training_data(trainer)
        combined, counts = trainer.fit_loop._combined_loader, [trainer.num_training_batches]
    else:
        loop = trainer.validate_loop if validates else trainer.fit_loop.epoch_loop.val_loop
        combined, counts = loop._combined_loader, list(trainer.num_val_batches)
    if combined is None:
        raise UsageError(f"split={split!r} needs a {split} data loader, and the trainer has none.")
    # Another one over the same data loaders: that of the trainer may be in the middle of an epoch.
    loaders = CombinedLoader(combined.iterables, combined._mode)
    loaders.limits = combined.limits
    total = sum(counts)
    return loaders, int(total) if total != float("inf") else UNKNOWN


def has_training_data(trainer: Trainer) -> bool:
    """Whether a run that does not train could load the data of training."""
    return bool(trainer.fit_loop._data_source.is_defined())


def _load_training_data(trainer: Trainer) -> None:
    """Makes the training data loaders as ``fit`` would, in a run of ``validate``."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    if datamodule is not None:
        datamodule.setup("fit")
    trainer.fit_loop.setup_data()
    loader = trainer.fit_loop._combined_loader
    if loader is not None:
        loader.reset()  # ends the workers that it started


@contextmanager
def seeded(loaders: CombinedLoader, seed: int) -> Iterator[None]:
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


def transferred(trainer: Trainer, module: LightningModule, value: Any) -> Any:
    """What Lightning's training loop does to a batch before ``training_step`` sees it."""
    value = trainer.precision_plugin.convert_input(value)
    value = module._on_before_batch_transfer(value, dataloader_idx=0)
    return trainer.strategy.batch_to_device(value, dataloader_idx=0)


def count_terms(module: LightningModule, values: list[Any]) -> list[float]:
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
