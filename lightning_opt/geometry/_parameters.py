"""Parameters as a checked list, and as one flat vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def checked_params(params: Iterable[Tensor]) -> list[Tensor]:
    """The parameters as a list.

    Raises:
        TypeError: ``params`` is one tensor, or one of them is not a real floating-point tensor.
        ValueError: there are none, or one occurs twice.
    """
    if isinstance(params, Tensor):
        raise TypeError("params is one tensor: pass a list of tensors, such as [weight].")
    params = list(params)
    if not params:
        raise ValueError("params is empty: there is nothing that the loss could be a function of.")
    for index, param in enumerate(params):
        if not isinstance(param, Tensor) or not param.is_floating_point():
            kind = param.dtype if isinstance(param, Tensor) else type(param).__name__
            raise TypeError(f"params[{index}] is {kind}: only real floating-point tensors work.")
    if len({id(param) for param in params}) < len(params):
        raise ValueError("params names the same tensor twice: list shared parameters once.")
    return params


def check_like(name: str, tensors: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """Raises a ValueError unless ``tensors`` has the shapes of ``params``."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    expected = [tuple(param.shape) for param in params]
    if len(shapes) != len(expected):
        raise ValueError(f"{name} has {len(shapes)} tensors, the parameters are {len(expected)}.")
    for index, (shape, wanted) in enumerate(zip(shapes, expected, strict=True)):
        if shape != wanted:
            raise ValueError(f"{name}[{index}] has shape {shape}, its parameter {wanted}.")


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """The tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of ``flatten``: views of ``vector`` in the shapes of ``params``."""
    pieces = torch.split(vector, [param.numel() for param in params])
    return [piece.view(param.shape) for piece, param in zip(pieces, params, strict=True)]
