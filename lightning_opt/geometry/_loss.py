"""What a loss may return, and the mean over batches that have different numbers of terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Loss: TypeAlias = Callable[[Any], Tensor | tuple[Tensor, float]]


def checked_batches(batches: Iterable[Any]) -> list[Any]:
    """The batches as a list, so that every evaluation sees the same ones in the same order.

    Raises:
        ValueError: there are none.
    """
    batches = list(batches)
    if not batches:
        raise ValueError("batches is empty: the loss needs at least one batch.")
    return batches


def evaluate(loss: Loss, batch: Any) -> tuple[Tensor, float]:
    """The mean loss of one batch as a 0-d tensor, and the number of terms it is the mean of.

    Raises:
        TypeError: the loss is not a tensor.
        ValueError: the loss is not one real number, or the number of terms is negative.
    """
    value = loss(batch)
    mean, terms = value if isinstance(value, tuple) else (value, 1.0)
    if not isinstance(mean, Tensor):
        raise TypeError(
            f"loss(batch) returned {type(mean).__name__}: it has to return the mean loss as a "
            f"tensor, or (mean loss, number of terms)."
        )
    if mean.numel() != 1 or not mean.is_floating_point():
        raise ValueError(
            f"loss(batch) returned a tensor of shape {tuple(mean.shape)} and {mean.dtype}: it has "
            f"to be one real number, such as the mean over the batch."
        )
    terms = float(terms)
    if not terms >= 0:
        raise ValueError(f"loss(batch) returned {terms} as the number of terms of its mean.")
    return mean.reshape(()), terms


def total_terms(terms: Iterable[float]) -> float:
    """The number of terms of all batches.

    Raises:
        ValueError: it is zero, so that there is no mean.
    """
    total = sum(terms)
    if total == 0:
        raise ValueError("No batch has any term: there is no mean loss to analyze.")
    return total


def mean_loss(loss: Loss, batches: Sequence[Any]) -> tuple[float, float]:
    """The loss over all batches, each weighted by its number of terms, and that number."""
    evaluated = [evaluate(loss, batch) for batch in batches]
    # One transfer from the device for all batches.
    means = torch.stack([mean for mean, _ in evaluated]).tolist()
    counts = [terms for _, terms in evaluated]
    total = total_terms(counts)
    # A mean over no terms is NaN and says nothing.
    pairs = zip(means, counts, strict=True)
    return sum(mean * terms for mean, terms in pairs if terms > 0) / total, total
