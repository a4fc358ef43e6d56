"""What happens to BatchNorm's running statistics when the weights are moved.

The statistics of the trained network belong to its own activations. Where the weights are others
they can be *kept*; they can be *interpolated*, that is, move along with the weights as if they were
parameters; or they can be *estimated* again from the batches at every point, as training would have
done. Each gives another picture (far from the weights, kept statistics normalize nothing), which is
why the choice is stored with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from ._loss import Loss

Statistics = Literal["kept", "interpolated", "estimated"]


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of all BatchNorm layers, each tensor once.

    Put beside the parameters, they move along a line or over a plane as the weights do.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_opt.geometry import line
        >>> model = nn.BatchNorm1d(2).eval()
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
        >>> moving = [*model.parameters(), *running_statistics(model)]
        >>> start, end = [[t + shift for t in moving] for shift in (0.0, 1.0)]
        >>> line(lambda x: model(x).mean(), moving, [x], start, end, [0, 1],
        ...      batchnorm="interpolated", model=model).batchnorm
        'interpolated'
    """
    tensors = (
        tensor
        for layer in _layers(model)
        for tensor in (layer.running_mean, layer.running_var)
        if tensor is not None
    )
    return list({id(tensor): tensor for tensor in tensors}.values())


def check_batchnorm(
    choice: Statistics,
    model: nn.Module | None,
    params: Sequence[Tensor],
    group: ProcessGroup | None,
) -> None:
    """Raises a ValueError unless ``choice`` can be done and is what ``params`` say."""
    if choice not in get_args(Statistics):
        known = ", ".join(map(repr, get_args(Statistics)))
        raise ValueError(f"batchnorm is {choice!r}: it has to be one of {known}.")
    if model is None:
        if choice != "kept":
            raise ValueError(f"batchnorm={choice!r} needs the layers: pass model=.")
        return
    moved = {id(param) for param in params}
    among = [id(tensor) in moved for tensor in running_statistics(model)]
    if choice == "interpolated" and not all(among):
        raise ValueError(
            "batchnorm='interpolated' needs the running statistics among the tensors that move: "
            "pass params=[*params, *running_statistics(model)], and directions or ends like that."
        )
    if choice != "interpolated" and any(among):
        raise ValueError(
            f"params has running statistics of BatchNorm, and batchnorm is {choice!r}: say "
            f"batchnorm='interpolated', or leave them out."
        )
    if choice == "estimated":
        _check_estimable(model, group)


def _check_estimable(model: nn.Module, group: ProcessGroup | None) -> None:
    for name, layer in model.named_modules():
        if not isinstance(layer, _BatchNorm) or layer.running_mean is None:
            continue
        if layer.training:
            raise ValueError(
                f"batchnorm='estimated' and {name or 'the model'} is in training mode, in which it "
                f"does not use its running statistics: call model.eval() first."
            )
        if group is not None and isinstance(layer, nn.SyncBatchNorm):
            raise ValueError(
                f"batchnorm='estimated' with group: {name or 'the model'} is a SyncBatchNorm, "
                f"which averages over processes that are at different points. Leave group out."
            )


@contextmanager
def following(
    choice: Statistics, model: nn.Module | None, loss: Loss, batches: Sequence[Any]
) -> Iterator[Callable[[], None]]:
    """Yields what to call when the weights are at a point; at the end all is as it was, bit by bit.

    To estimate, every batch passes through the network once, and the statistics are the plain
    averages of the batches' own, as ``torch.optim.swa_utils.update_bn`` has them.
    """
    layers = [] if model is None else _layers(model)
    layers = [layer for layer in layers if layer.running_mean is not None]
    modes = [(layer, layer.training, layer.momentum) for layer in layers]
    buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
    saved = [buffer.clone() for buffer in buffers]

    def estimate() -> None:
        for layer in layers:
            layer.reset_running_stats()
            layer.training, layer.momentum = True, None  # a cumulative average
        for batch in batches:
            loss(batch)
        leave()

    def leave() -> None:
        for layer, training, momentum in modes:
            layer.training, layer.momentum = training, momentum

    try:
        yield estimate if choice == "estimated" else lambda: None
    finally:
        leave()
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)


def _layers(model: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
