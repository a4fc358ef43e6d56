"""What a loss may return, and the mean over batches that have different numbers of terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

Metrics: TypeAlias = Mapping[str, Tensor | float]
Loss: TypeAlias = Callable[[Any], Tensor | tuple[Tensor, float] | tuple[Tensor, float, Metrics]]


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
    mean, terms, _ = evaluate_metrics(loss, batch)
    return mean, terms


def evaluate_metrics(loss: Loss, batch: Any) -> tuple[Tensor, float, Metrics]:
    """What :func:`evaluate` returns, and the means of metrics over the same terms.

    Raises:
        TypeError: the loss is not a tensor, or what it returns is no mapping of metrics.
        ValueError: the loss is not one real number, or the number of terms is negative.
    """
    value = loss(batch)
    mean, terms, metrics = _unpacked(value) if isinstance(value, tuple) else (value, 1.0, {})
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
    return mean.reshape(()), terms, metrics


def _unpacked(value: tuple[Any, ...]) -> tuple[Any, Any, Metrics]:
    mean, terms, metrics = value if len(value) == 3 else (*value, {})
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"loss(batch) returned {type(metrics).__name__} as its third element: it has to be a "
            f"mapping from the name of a metric to its mean."
        )
    return mean, terms, metrics


def total_terms(terms: Iterable[float]) -> float:
    """The number of terms of all batches.

    Raises:
        ValueError: it is zero, so that there is no mean.
    """
    total = sum(terms)
    if total == 0:
        raise ValueError("No batch has any term: there is no mean loss to analyze.")
    return total
