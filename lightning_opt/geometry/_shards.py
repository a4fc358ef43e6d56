"""The coordinates of vectors, spread over the processes of a group.

Every process of the group keeps one slice of the coordinates of every vector, so that the group has
the memory of all. Inner products are sums over the slices, and whole vectors exist only where an
operator needs them. All processes get the same sums and so decide alike.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

BLOCK = 2**20
"""Entries that an inner product sums in the vectors' own dtype; the rest is summed in float64."""


class Shards:
    """Who keeps which coordinates. Without a group, this process keeps all.

    Attributes:
        size: the number of coordinates.
        mine: those of this process.
        first: whether this is the first process, the one that reads and writes files.
    """

    def __init__(self, size: int, device: torch.device, group: ProcessGroup | None = None) -> None:
        self._group = group
        self._device = device
        ranks = 1 if group is None else dist.get_world_size(group)
        rank = 0 if group is None else dist.get_rank(group)
        self._ranks = ranks
        self._chunk = -(-size // ranks)
        self.size = size
        self.first = rank == 0
        self.mine = slice(min(rank * self._chunk, size), min((rank + 1) * self._chunk, size))
        self.length = self.mine.stop - self.mine.start

    def inner(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> NDArray[np.float64]:
        """The inner products of ``a[i]`` with ``b[i]``, given the slices of this process."""
        parts = [
            torch.dot(x_block, y_block)
            for x, y in zip(a, b, strict=True)
            for x_block, y_block in zip(torch.split(x, BLOCK), torch.split(y, BLOCK), strict=True)
        ]
        return self.sum(torch.stack(parts).view(len(a), -1).cpu().double().sum(dim=1)).numpy()

    def sum(self, partial: Tensor) -> Tensor:
        """The sum over all processes of a few numbers in float64 on the CPU."""
        if self._group is None:
            return partial
        total = partial.to(self._device)
        dist.all_reduce(total, group=self._group)
        return total.cpu()

    def least(self, value: int) -> int:
        """The least of the values of all processes."""
        if self._group is None:
            return value
        least = torch.tensor(value, device=self._device)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self._group)
        return int(least)

    def on_this_host(self) -> int:
        """How many of the processes share the memory of this one's host."""
        if self._group is None:
            return 1
        host = torch.tensor([zlib.crc32(socket.gethostname().encode())], device=self._device)
        hosts = [torch.empty_like(host) for _ in range(self._ranks)]
        dist.all_gather(hosts, host, group=self._group)
        return sum(bool(other == host) for other in hosts)

    def gather(self, rows: Tensor) -> Tensor:
        """Whole vectors, of shape (rows, size), from the slices of all processes."""
        if self._group is None:
            return rows
        padded = rows.new_zeros(len(rows), self._chunk, device=self._device)
        padded[:, : self.length] = rows
        whole = padded.new_empty(len(rows), self._chunk * self._ranks)
        for row, slices in zip(padded, whole, strict=True):
            dist.all_gather_into_tensor(slices, row, group=self._group)
        return whole[:, : self.size]

    def scatter(self, read: Callable[[], Tensor], count: int, dtype: torch.dtype) -> Tensor:
        """The slices of this process of the ``count`` vectors that the first process reads."""
        if self._group is None:
            return read().to(self._device)
        shape = (count, self.size)
        rows = read() if self.first else torch.empty(shape, dtype=dtype)
        rows = rows.to(self._device)
        dist.broadcast(rows, group=self._group, group_src=0)
        return rows[:, self.mine].clone()

    def on_first(self, function: Callable[[], T]) -> T:
        """Calls ``function`` in the first process; all return or raise what it does."""
        if self._group is None:
            return function()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = function()
            except Exception as error:  # the others must not wait for what will not come
                outcome[1] = error
        dist.broadcast_object_list(outcome, group=self._group, group_src=0)
        result, failure = outcome
        if failure is not None:
            raise failure
        return result  # type: ignore[no-any-return]
