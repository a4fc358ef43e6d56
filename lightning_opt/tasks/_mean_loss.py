"""The mean loss over all terms, exact over batches and ranks that have different numbers of them.

Two that are at hand are not. Lightning's ``self.log(..., batch_size=..., sync_dist=True)`` divides
by the mean of the ranks' numbers of terms, rounded down to an integer: 359 images on two ranks are
averaged as if they were 358. torchmetrics' ``MeanMetric`` drops NaN, which hides a diverged run, or
drops the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Σ loss / Σ terms.

    >>> mean = MeanLoss()
    >>> mean.update(torch.tensor(6.0), 2)
    >>> mean.update(torch.tensor(1.5), 1)
    >>> mean.compute()
    tensor(2.5000)
    """

    total: Tensor
    terms: Tensor
    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("terms", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, terms: int) -> None:
        """Count some terms, ``loss`` being the sum over them."""
        # Not in place: validation leaves tensors of inference mode, which must not be changed.
        self.total = self.total + loss.detach()
        self.terms = self.terms + terms

    def compute(self) -> Tensor:
        return self.total / self.terms
