"""Which examples make up a batch, and the random bits that belong to each of them.

A *draw* is an example's index and 62 random bits. What happens to an example at random, such as its
crop or its masked tokens, is a function of its bits alone, so that it is the same whatever the
number of workers, processes and interruptions. The draws of an epoch are a function of the run's
seed and the epoch; PyTorch's ``RandomSampler`` takes them from the global random state instead, so
that a resumed run, or one whose optimizer draws random numbers, sees others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_opt.errors import UsageError


class Draws(DistributedSampler[Any]):
    """Batches of draws, as int64 tensors of shape (batch, 2): the indices, and the bits.

    For a data loader that does no batching of its own: ``DataLoader(dataset, batch_size=None,
    sampler=draws)`` with ``dataset[draws]``. In distributed runs every process gets its share;
    Lightning replaces no sampler that is a ``DistributedSampler``.

    Args:
        data: The data module, whose trainer knows the processes.
        size: Number of examples.
        batch_size: Draws in a batch of one process; the last batch may have fewer.

    Attributes:
        start: The batch that an iteration begins with.
    """

    def __init__(self, data: LightningDataModule, size: int, batch_size: int) -> None:
        trainer = data.trainer
        replicas, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        super().__init__(range(size), replicas, rank)  # type: ignore[arg-type]
        self._size = size
        self._batch_size = batch_size
        self.start = 0

    @abstractmethod
    def _drawn(self) -> Tensor:
        """The draws of all processes in their order, of shape (draws, 2)."""

    @abstractmethod
    def _share(self) -> int:
        """How many draws this process gets."""

    def __len__(self) -> int:
        return -(-self._share() // self._batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        mine = self._drawn()[self.rank :: self.num_replicas]
        firsts = range(self.start * self._batch_size, len(mine), self._batch_size)
        return (mine[first : first + self._batch_size] for first in firsts)


class TrainingDraws(Draws):
    """A new order each epoch; as many draws for every process, of which a few repeat for it.

    Attributes:
        seed, epoch: What the draws are a function of. What wants the same batches in every run sets
            both, as it would those of PyTorch's ``DistributedSampler``.
    """

    def __init__(
        self,
        data: LightningDataModule,
        size: int,
        batch_size: int,
        *,
        seed: int,
        replacement: bool,
    ) -> None:
        super().__init__(data, size, batch_size)
        self._trainer: Any = data.trainer
        self._replacement = replacement
        self.seed = seed
        if self._trainer is not None:
            # Lightning fetches the first batch of a resumed run before it calls set_epoch.
            progress: Any = self._trainer.fit_loop.epoch_progress.current
            self.epoch = progress.processed

    def _drawn(self) -> Tensor:
        # Two draws mix seed and epoch, so that seed 0 in epoch 1 is not seed 1 in epoch 0.
        generator = torch.Generator().manual_seed(self.seed)
        mixed = int(torch.randint(2**62, (self.epoch + 1,), generator=generator)[-1])
        generator.manual_seed(mixed)
        if self._replacement:
            indices = torch.randint(self._size, (self._size,), generator=generator)
        else:
            indices = torch.randperm(self._size, generator=generator)
        draws = torch.stack([indices, _bits(self._size, generator)], dim=1)
        total = self._share() * self.num_replicas
        return draws if total == self._size else draws[torch.arange(total) % self._size]

    def _share(self) -> int:
        return -(-self._size // self.num_replicas)

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches the trainer is done with."""
        if self._trainer is None:
            return {"epoch": self.epoch, "batches": 0}
        # Counted by the trainer, since what was fetched may be ahead of it.
        loop = self._trainer.fit_loop
        epoch = loop.epoch_progress.current
        running = epoch.started > epoch.processed
        batches = loop.epoch_loop.batch_progress.current.processed if running else 0
        return {"epoch": epoch.processed, "batches": batches}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Makes the next iteration continue where the state was taken."""
        self.epoch, self.start = state["epoch"], state["batches"]
        if self.start >= len(self):
            self.epoch, self.start = self.epoch + 1, 0


class EvaluationDraws(Draws):
    """Every example once, in order, with the same bits every time."""

    def __init__(self, data: LightningDataModule, size: int, batch_size: int, *, seed: int) -> None:
        super().__init__(data, size, batch_size)
        bits = _bits(size, torch.Generator().manual_seed(seed))
        self._draws = torch.stack([torch.arange(size), bits], dim=1)

    def _drawn(self) -> Tensor:
        return self._draws

    def _share(self) -> int:
        return len(range(self.rank, self._size, self.num_replicas))


class TrainingLoader(DataLoader[Any]):
    """A data loader over :class:`TrainingDraws` that resumes in the middle of an epoch.

    Lightning keeps the state of a data loader that has one in its checkpoints.
    """

    sampler: TrainingDraws

    def __iter__(self) -> Any:
        iterator = super().__iter__()  # asks the sampler once, or with workers twice
        self.sampler.start = 0
        return iterator

    def state_dict(self) -> dict[str, int]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.sampler.load_state_dict(state)


def training_loader(
    data: LightningDataModule,
    dataset: Dataset[Any],
    batch_size: int,
    *,
    replacement: bool = False,
    num_workers: int = 0,
) -> TrainingLoader:
    """The data loader of a data module's training examples.

    Args:
        data: The data module.
        dataset: Answers ``dataset[draws]`` with a batch, and ``len(dataset)``.
        batch_size: Examples in a batch of one process.
        replacement: Whether an epoch draws its examples independently of each other.
        num_workers: Processes that make batches.

    Raises:
        UsageError: the trainer asks for ``overfit_batches``, for which Lightning would replace the
            draws.
    """
    trainer: Any = data.trainer
    if trainer is not None and trainer.overfit_batches:
        raise UsageError(
            f"{type(data).__name__} has no overfit_batches, which takes away its draws: use "
            "--trainer.limit_train_batches, with as many epochs as you like."
        )
    draws = TrainingDraws(
        data, _length(dataset), batch_size, seed=torch.initial_seed(), replacement=replacement
    )
    return TrainingLoader(dataset, batch_size=None, sampler=draws, num_workers=num_workers)


def evaluation_loader(
    data: LightningDataModule,
    dataset: Dataset[Any],
    batch_size: int,
    *,
    seed: int = 0,
    num_workers: int = 0,
) -> DataLoader[Any]:
    """A data loader that gives each example once, in order, at random only as ``seed`` says."""
    draws = EvaluationDraws(data, _length(dataset), batch_size, seed=seed)
    return DataLoader(dataset, batch_size=None, sampler=draws, num_workers=num_workers)


def _length(dataset: Dataset[Any]) -> int:
    size: int = len(dataset)  # type: ignore[arg-type]
    return size


def _bits(size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2**62, (size,), generator=generator)
