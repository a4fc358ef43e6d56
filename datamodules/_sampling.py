"""The order of the training examples, as a function of seed and epoch alone.

PyTorch's ``RandomSampler`` draws from the global random state, so that a resumed run, or one whose
optimizer draws random numbers, sees another order. Here two runs of one seed see one order, and a
run that continues in epoch 7 sees the order of epoch 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler


class SeededSampler(Sampler[int]):
    """A new permutation of ``range(size)`` each epoch, without replacement.

    Args:
        size: Number of examples.
        seed: Seed of the run.
        epoch: Asked at the start of each pass. (A callable, since Lightning's ``set_epoch`` does
            not reach a sampler that it has wrapped for distributed training.)

    >>> sampler = SeededSampler(4, seed=0, epoch=lambda: 3)
    >>> list(sampler) == list(sampler)
    True
    """

    def __init__(self, size: int, *, seed: int, epoch: Callable[[], int]) -> None:
        self._size = size
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        # Two draws mix seed and epoch, so that seed 0 in epoch 1 is not seed 1 in epoch 0.
        generator = torch.Generator().manual_seed(self._seed)
        mixed = int(torch.randint(2**62, (self._epoch() + 1,), generator=generator)[-1])
        generator.manual_seed(mixed)
        return iter(torch.randperm(self._size, generator=generator).tolist())
