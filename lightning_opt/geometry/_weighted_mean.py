"""The mean of products over batches, each weighted by its number of terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor

from ._loss import total_terms


class WeightedMean:
    """Rows of a matrix, each of them products with the curvature of batches, and their mean.

    Weights are relative to the first batch's, so that one batch alone is neither multiplied nor
    divided by anything, and takes a pass over the memory less.

    Args:
        out: the rows, whose values do not matter.
        sizes: of the parameters, whose products follow each other in a row.
    """

    def __init__(self, out: Tensor, sizes: Sequence[int]) -> None:
        self._sum = out
        self._sizes = list(sizes)
        self._begun: set[int] = set()  # the first rows of the slices that were added to
        self._unit = 0.0  # the first batch's number of terms
        self._terms = 0.0

    def add(self, rows: slice, products: list[Tensor | None], terms: float) -> None:
        """Adds a batch's products to some rows; the list is emptied.

        None is a parameter's zeros, and all that a batch without terms has.
        """
        first = rows.start not in self._begun
        self._begun.add(rows.start)
        self._unit = self._unit or terms
        self._terms += terms if rows.start == 0 else 0.0
        columns = torch.split(self._sum[rows], self._sizes, dim=1)
        for column in reversed(columns):
            product = products.pop()  # so that its memory is free for what follows
            if product is None:
                if first:
                    column.zero_()
            elif first:
                column.copy_(product.reshape(column.shape))
            else:
                column.add_(product.reshape(column.shape), alpha=terms / self._unit)

    def mean(self, group: torch.distributed.ProcessGroup | None) -> Tensor:
        """The rows of the mean over the batches of all processes."""
        if group is None:
            return _scaled(self._sum, self._unit / total_terms([self._terms]))
        # Units differ between processes.
        _scaled(self._sum, self._unit)
        total = torch.tensor(self._terms, dtype=torch.float64, device=self._sum.device)
        torch.distributed.all_reduce(self._sum, group=group)
        torch.distributed.all_reduce(total, group=group)
        return self._sum.div_(total_terms([total.item()]))


def _scaled(rows: Tensor, factor: float) -> Tensor:
    return rows if factor == 1 else rows.mul_(factor)
