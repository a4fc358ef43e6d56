"""Layers whose second derivatives PyTorch computes slowly, exchanged while a loss is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ._batch_norm import batch_norm
from ._convolution import convolution

# Each returns None for the arguments that it leaves to torch.
_FAST: Mapping[Any, Callable[..., Tensor | None]] = {
    torch.conv1d: partial(convolution, 1),
    torch.conv2d: partial(convolution, 2),
    torch.conv3d: partial(convolution, 3),
    F.batch_norm: batch_norm,
}


class FastSecondDerivatives(TorchFunctionMode):
    """Inside, convolutions and BatchNorm in evaluation mode are recorded with our derivatives."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        fast = _FAST.get(func)
        result = None if fast is None else fast(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result
