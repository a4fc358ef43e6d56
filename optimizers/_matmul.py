"""Products of matrices, by the faster of the two libraries that PyTorch has on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# x yᵀ by oneDNN, the operator that torch.compile makes of nn.Linear. PyTorch's own products of
# float32 matrices are MKL's, which on AMD's processors is half as fast.
_onednn: Callable[..., Tensor] | None = None
if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
    _onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

# Multiplications from which its larger cost of a call is worth it.
_ONEDNN_FROM = 2**21


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b for each of the matrices a (number, m, n) and b (number, n, o)."""
    large = a.shape[1] * a.shape[2] * b.shape[2] >= _ONEDNN_FROM
    if _onednn is None or not large or a.dtype != torch.float32 or not a.is_cpu:
        return torch.bmm(a, b)
    pairs = zip(_dense(a), _dense(b).mT, strict=True)
    results = [_onednn(x, y, None, "none", [], "") for x, y in pairs]
    return results[0].unsqueeze(0) if len(results) == 1 else torch.stack(results)


def _dense(x: Tensor) -> Tensor:
    """Matrices without gaps between rows or columns; with them oneDNN takes 500 times as long."""
    without_gaps = x.stride()[1:] in ((x.shape[2], 1), (1, x.shape[1]))
    return x if without_gaps else x.contiguous()
