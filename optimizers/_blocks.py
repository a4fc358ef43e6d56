"""Views of tensors, small enough to stay in the processor's cache over several operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Tensors: TypeAlias = tuple[Tensor, ...]

# Elements of a block per thread: nearly half a megabyte of float32. With smaller ones the calls
# cost more than the cache saves.
_BLOCK = 122_880


def blocks(*tensors: Tensor) -> Iterator[Tensors]:
    """Views of tensors of one length, cut along their first axis to fit into the cache."""
    first = tensors[0]
    size = _BLOCK * torch.get_num_threads()
    if first.device.type != "cpu" or first.numel() <= size:
        yield tensors
    else:
        rows = max(1, size * len(first) // first.numel())
        yield from zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


def flat(*tensors: Tensor) -> Tensors:
    """Views of tensors of one shape as vectors, in the order in which they lie in memory.

    Tensors that are not laid out alike, or have gaps, are returned as they are.
    """
    if views := viewed(tensors, -1):
        return views
    first = tensors[0]
    order = sorted(range(first.ndim), key=first.stride, reverse=True)
    return viewed([tensor.permute(order) for tensor in tensors], -1) or tensors


def viewed(tensors: Sequence[Tensor], *shape: int) -> Tensors | None:
    """Views of this shape, or None where one of the tensors has gaps or another order."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return tuple(tensor.view(shape) for tensor in tensors)
    return None
