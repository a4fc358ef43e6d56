"""The order of the training examples, as a function of seed and epoch alone.

PyTorch's ``RandomSampler`` draws from the global random state, so that a resumed run, or one whose
optimizer draws random numbers, sees another order. Here two runs of one seed see one order, and a
run that continues in epoch 7 sees the order of epoch 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import Sampler


class SeededSampler(Sampler[int]):
    """A new permutation of ``range(size)`` each epoch, without replacement.

    Args:
        size: Number of examples.
        seed: Seed of the run.
        epoch: The epoch, or what is asked for it at the start of each pass (since Lightning's
            ``set_epoch`` does not reach a sampler that it has wrapped for distributed training).

    Attributes:
        seed, epoch: As above. What wants the same order in every run sets both, as it would those
            of PyTorch's ``DistributedSampler``.

    >>> sampler = SeededSampler(4, seed=0, epoch=lambda: 3)
    >>> list(sampler) == list(sampler)
    True
    """

    def __init__(self, size: int, *, seed: int, epoch: int | Callable[[], int]) -> None:
        self._size = size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        # Two draws mix seed and epoch, so that seed 0 in epoch 1 is not seed 1 in epoch 0.
        epoch = self.epoch() if callable(self.epoch) else self.epoch
        generator = torch.Generator().manual_seed(self.seed)
        mixed = int(torch.randint(2**62, (epoch + 1,), generator=generator)[-1])
        generator.manual_seed(mixed)
        return iter(torch.randperm(self._size, generator=generator).tolist())


def shuffled(data: LightningDataModule, size: int) -> SeededSampler:
    """The order of a data module's training examples: by the seed of the run and the epoch.

    The epoch is not ``trainer.current_epoch``, which counts completed ones: a fit that resumes from
    a checkpoint of an epoch's end iterates over the data loader, whose workers fetch at once,
    before that epoch is counted.
    """

    def epoch() -> int:
        if data.trainer is None:
            return 0
        progress: Any = data.trainer.fit_loop.epoch_progress.current
        return int(progress.processed)

    return SeededSampler(size, seed=torch.initial_seed(), epoch=epoch)
