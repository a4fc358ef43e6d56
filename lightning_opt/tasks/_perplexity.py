"""Perplexity: exp of the mean loss over all tokens."""

from __future__ import annotations

from torch import Tensor

from ._mean_loss import MeanLoss


class Perplexity(MeanLoss):
    """exp of Σ loss / Σ tokens: infinite or NaN where that is, or where it is too large for exp.

    >>> import torch
    >>> perplexity = Perplexity()
    >>> perplexity.update(torch.tensor(6.0), 2)
    >>> perplexity.update(torch.tensor(3.0), 1)
    >>> perplexity.compute()
    tensor(20.0855)
    """

    def compute(self) -> Tensor:
        return super().compute().exp()
