"""Shampoo: a preconditioner for every axis of a tensor.

With G the gradient, a tensor of shape n₁ × … × n_k, and G₍ᵢ₎ its unfolding along axis i, a matrix
of nᵢ rows whose columns are the fibers of that axis,

    Lᵢ ← β Lᵢ + G₍ᵢ₎ G₍ᵢ₎ᵀ                                      for every i, from the same G
    P  ← G ×₁ (L₁ + εI)^(−1/2k) ×₂ … ×_k (L_k + εI)^(−1/2k)
    u  ← μ u + s P
    θ  ← θ − η u

A matrix has the exponent −1/4 on either side, a vector −1/2; a number is a vector of one element.
Gupta, Koren & Singer, Shampoo: Preconditioned Stochastic Tensor Optimization, 1802.09568,
algorithms 1 and 2, are β = 1, μ = 0, s = 1 and a new root at every step. Their L₀ = εI is here
added when the root is taken, which is the same for β = 1.

The practical form is that of Anil, Gupta, Koren, Regan & Singer, 2002.09018, and of Shi et al.,
2309.06497:

*Axes are merged.* Axes of length 1 are dropped, and neighbors other than the first are merged from
the right as long as their product does not exceed the block size: a 512 × 512 × 3 × 3 kernel is
512 × 512 × 9, and 64 × 3 × 3 × 3 is 64 × 27. A matrix stays a matrix.

*Blocks.* An axis longer than the block size is cut into equal blocks, and each block of the tensor
is preconditioned as a tensor of its own.

*Roots are amortized*: taken again every ``root_every`` steps, early in a run more often.

*Grafting.* The step's length, one for the whole tensor, is that of another method, s = ‖D‖/‖P‖:

    SGD      D = g
    AdaGrad  D = g / (√v + 1e-8),    v ← β v + g²
    RMSprop  D = g / (√v̂ + 1e-8),    v̂ = v / (1 + β + … + βᵗ⁻¹)

Then only P's direction counts, which must not depend on the gradient's scale: ε is multiplied by
the largest eigenvalue of each Lᵢ. Without grafting it is absolute, as in the paper.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.nn.functional import pad
from torch.optim.optimizer import ParamsT

from ._base import (
    BaseOptimizer,
    _describe,
    check_choice,
    check_range,
    check_whole,
    decay,
    descend,
)
from ._blocks import blocks as cached_blocks
from ._blocks import flat
from ._matmul import matmul
from ._schedule import is_due

_GRAFTING = ("rmsprop", "adagrad", "sgd", None)
_GRAFTING_EPS = 1e-8

# Rows of a statistic that are updated at once. Of a symmetric matrix the lower triangle is enough,
# and strips of this many rows, each up to the diagonal, save up to half of the arithmetic.
_STRIP = 128

# Elements of blocks that are worked on at once on the CPU. Larger temporary tensors are given back
# to the system and asked for again, page by page, in every step.
_PART = 2**19


class Shampoo(BaseOptimizer):
    """Shampoo (Gupta et al., 1802.09568) in its practical form; see the module's docstring.

    The paper's own form is ``Shampoo(params, lr=0.1, momentum=0, grafting=None, root_every=1,
    block_size=None, merge_dims=False)``. The default learning rate is one for RMSprop grafting;
    with the others it is that of SGD or AdaGrad with the same momentum, say 0.1 and 0.01.

    State: besides a counter, u (unless μ = 0) and v (with AdaGrad and RMSprop) of the parameter's
    size, and for every axis of every block of size b₁ × … × b_k two bᵢ × bᵢ matrices, Lᵢ and its
    root. A matrix longer than the block size both ways so has 4 numbers per parameter in them, a
    kernel of 512 × 512 × 3 × 3 has 4/9, ResNet18 in all 0.92. Of Lᵢ the lower triangle is kept, and
    what is above the diagonal has no meaning. The state has the parameter's precision, but at least
    float32.

    Weight decay that is not decoupled is part of the gradient, also of G in the statistics. A
    gradient that is not finite, or whose squares are not, counts as zero in Lᵢ and v, which outlive
    it; in θ and u it is as visible as under any optimizer of PyTorch.

    A step waits for the device where roots are taken and nowhere else.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: learning rate η, a number or a tensor of one element.
        momentum: μ, in [0, 1).
        eps: ε, relative to the largest eigenvalue with grafting, absolute without.
        weight_decay: λ, decoupled or an L2 penalty (see below).
        decoupled_weight_decay: θ ← θ − ηλθ before the step, as in AdamW, in place of g ← g + λθ.
        statistics_decay: β, in [0, 1]; 1 sums what smaller values forget.
        statistics_every: steps from one update of the statistics to the next, more often at first
            like ``root_every``.
        root_every: steps from one root to the next, once that is a sixteenth of the steps taken;
            until then a sixteenth of them.
        block_size: the most rows that a statistic has; None does not cut anything.
        merge_dims: merge short axes.
        grafting: whose step's length to take: ``"rmsprop"``, ``"adagrad"``, ``"sgd"``, or None.
        maximize: climb instead of descend.

    Raises:
        TypeError, ValueError: an option is out of range, or a parameter is complex.

    Warns:
        RuntimeWarning: no root of a statistic could be found in either precision, so that the last
            one is kept.

    >>> w = torch.nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    >>> optimizer = Shampoo([w], lr=0.1, grafting=None)
    >>> w.square().sum().backward()
    >>> optimizer.step()  # L = R = diag(36, 4): P = diag(6/√36, 2/√4)
    >>> w.detach()
    tensor([[2.9000, 0.0000],
            [0.0000, 0.9000]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        momentum: float = 0.9,
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        statistics_decay: float = 1.0,
        statistics_every: int = 1,
        root_every: int = 20,
        block_size: int | None = 256,
        merge_dims: bool = True,
        grafting: Literal["rmsprop", "adagrad", "sgd"] | None = "rmsprop",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "statistics_decay": statistics_decay,
            "statistics_every": statistics_every,
            "root_every": root_every,
            "block_size": block_size,
            "merge_dims": merge_dims,
            "grafting": grafting,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        for name in ("lr", "eps", "weight_decay"):
            check_range(name, group[name], 0.0)
        check_range("momentum", group["momentum"], 0.0, 1.0)
        check_range("statistics_decay", group["statistics_decay"], 0.0, 1.0, closed=True)
        for name in ("statistics_every", "root_every"):
            check_whole(name, group[name])
        if group["block_size"] is not None:
            check_whole("block_size", group["block_size"])
        check_choice("grafting", group["grafting"], *_GRAFTING)

    def _update(
        self, theta: Tensor, g: Tensor, state: dict[str, Any], group: Mapping[str, Any]
    ) -> None:
        if theta.numel() == 0:
            return
        blocks = _blocks(theta.shape, group["block_size"], group["merge_dims"])
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["statistics"] = [g.new_zeros(blocks.number, n, n) for n in blocks.sizes]
            state["roots"] = [torch.eye(n).to(g).repeat(blocks.number, 1, 1) for n in blocks.sizes]
        state["step"] += 1
        t = int(state["step"].item())

        g = decay(theta, g, group)
        finite = torch.linalg.vector_norm(g).square().isfinite()
        padded = blocks.padded(g)
        statistics_due = is_due(t, group["statistics_every"])
        roots_due = is_due(t, group["root_every"])
        P = torch.empty_like(padded)
        norms: list[Tensor] = []
        for (part, view), (_, direction) in zip(blocks.parts(padded), blocks.parts(P), strict=True):
            G = blocks.flat(view)
            statistics = [L[part] for L in state["statistics"]]
            roots = [root[part] for root in state["roots"]]
            if statistics_due:
                _accumulate(statistics, G, group["statistics_decay"], finite)
            if roots_due:
                self._renew(roots, statistics, theta, group)
            product = _precondition(G, roots).view(view.shape)
            norms.append(torch.linalg.vector_norm(product))
            direction.copy_(product)
        P = blocks.unpadded(P).reshape(theta.shape)
        s = None
        if group["grafting"] is not None:
            norm = torch.linalg.vector_norm(torch.stack(norms))
            tiny = torch.finfo(norm.dtype).tiny
            s = _grafted_norm(_zero_unless(finite, g), t, state, group) / norm.clamp(min=tiny)
        descend(theta, P, state, group, s)

    def _renew(
        self,
        roots: Sequence[Tensor],
        statistics: Sequence[Tensor],
        theta: Tensor,
        group: Mapping[str, Any],
    ) -> None:
        relative = group["grafting"] is not None
        for root, L in zip(roots, statistics, strict=True):
            found = _inverse_root(L, 2 * len(roots), group["eps"], relative=relative)
            if found is not None:
                root.copy_(found)
                continue
            index = next(i for i, p in enumerate(group["params"]) if p is theta)
            warnings.warn(
                f"{self._name} found no root of a {L.shape[-1]} × {L.shape[-1]} statistic of "
                f"{_describe(group, index)}, in float64 either, and keeps the last one. "
                f"Is the training diverging? Lower lr, or clip the gradients.",
                RuntimeWarning,
                stacklevel=2,
            )


def _grafted_norm(g: Tensor, t: int, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
    """‖D‖, D the grafted method's step from g before its learning rate and momentum."""
    if group["grafting"] == "sgd":
        norm: Tensor = torch.linalg.vector_norm(g)
        return norm
    beta = group["statistics_decay"]
    if "v" not in state:
        state["v"] = torch.zeros_like(g)
    weight = 1.0
    if group["grafting"] == "rmsprop":
        weight = t if beta == 1 else (1 - beta**t) / (1 - beta)
    # With v̂ = v / weight, without a pass over memory for v̂.
    eps = _GRAFTING_EPS * math.sqrt(weight)
    lengths: list[Tensor] = []
    for part, v in cached_blocks(*flat(g, state["v"])):
        _scaled(v, beta).addcmul_(part, part)
        lengths.append(torch.linalg.vector_norm(part / v.sqrt().add_(eps)))
    length: Tensor = torch.linalg.vector_norm(torch.stack(lengths)) * math.sqrt(weight)
    return length


def _scaled(x: Tensor, beta: float) -> Tensor:
    """β x, in place; for β = 1 without a pass over memory."""
    return x if beta == 1 else x.mul_(beta)


def _zero_unless(finite: Tensor, x: Tensor) -> Tensor:
    """x where it is ``finite``, a tensor without axes, else zeros."""
    return x if _may_look(finite) and finite else torch.where(finite, x, 0)


def _may_look(x: Tensor) -> bool:
    """Whether to read x is free; elsewhere than on the CPU the step would wait for the device."""
    return x.is_cpu


def _accumulate(statistics: Sequence[Tensor], G: Tensor, beta: float, finite: Tensor) -> None:
    """Lᵢ ← β Lᵢ + G₍ᵢ₎ G₍ᵢ₎ᵀ on and below the diagonal, for every axis of the blocks G.

    Where it is not ``finite``, G counts as zero.
    """
    for axis, L in enumerate(statistics, start=1):
        n = L.shape[-1]
        unfolding = G.movedim(axis, 1).reshape(len(G), n, -1).contiguous()
        for start in range(0, n, _STRIP):
            stop = min(start + _STRIP, n)
            product = matmul(unfolding[:, start:stop], unfolding[:, :stop].mT)
            _scaled(L[:, start:stop, :stop], beta).add_(_zero_unless(finite, product))


def _precondition(G: Tensor, roots: Sequence[Tensor]) -> Tensor:
    """G ×₁ R₁ ×₂ … ×_k R_k for the blocks G, whose first axis counts them.

    Each product takes the last axis and gives it back as the first, so that the next one is the
    last, and all are in their places in the end.
    """
    shape = G.shape
    for root in reversed(roots):
        G = matmul(root, G.reshape(len(G), -1, root.shape[-1]).mT)
    return G.reshape(shape)


def _inverse_root(L: Tensor, p: int, eps: float, *, relative: bool) -> Tensor | None:
    """(L + εI)^(−1/p) of symmetric matrices (…, n, n), or None where it cannot be computed.

    A relative ε is a share of a matrix's largest eigenvalue. A matrix of zeros, which has none, is
    one that has not seen a gradient yet, and its root then is I. Eigenvalues that are negative by
    rounding count as zero.
    """
    for dtype in (L.dtype, torch.float64):
        try:
            eigenvalues, Q = torch.linalg.eigh(L.to(dtype))
        except LinAlgError:
            continue
        eigenvalues = eigenvalues.clamp(min=0)
        if relative:
            largest = eigenvalues[..., -1:]
            eigenvalues = torch.where(largest > 0, eigenvalues + eps * largest, 1)
        else:
            eigenvalues = eigenvalues + eps
        root = matmul(Q * eigenvalues.pow(-1 / p).unsqueeze(-2), Q.mT)
        if root.isfinite().all():
            return root.to(L.dtype)
    return None


class _Blocks:
    """How tensors of a shape are cut into blocks of one shape, and put together again.

    Where an axis does not divide evenly, zeros fill its last block. They add zeros to the
    statistics, whose roots therefore do not mix them with anything.
    """

    def __init__(self, shape: Sequence[int], block_size: int | None, merge_dims: bool) -> None:
        self.shape = _merged(shape, block_size or math.inf) if merge_dims else [*shape] or [1]
        counts = [max(1, math.ceil(n / (block_size or math.inf))) for n in self.shape]
        lengths = [math.ceil(n / count) for n, count in zip(self.shape, counts, strict=True)]
        self.padding = [
            count * length - n for n, count, length in zip(self.shape, counts, lengths, strict=True)
        ]
        k = len(self.shape)
        self.cut = [n for pair in zip(counts, lengths, strict=True) for n in pair]
        self.order = [*range(0, 2 * k, 2), *range(1, 2 * k, 2)]
        self.number = math.prod(counts)
        self.sizes = lengths

    def padded(self, tensor: Tensor) -> Tensor:
        """The tensor in the shape after merging, and where needed filled up with zeros."""
        tensor = tensor.reshape(self.shape)
        if any(self.padding):
            tensor = pad(tensor, [n for padding in reversed(self.padding) for n in (0, padding)])
        return tensor

    def unpadded(self, tensor: Tensor) -> Tensor:
        """The tensor, of the shape after merging, that has been :meth:`padded`."""
        return tensor[tuple(slice(n) for n in self.shape)]

    def parts(self, padded: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The blocks as views (*counts, *sizes), some at a time, and their places among all."""
        start = 0
        for part in self._parts(padded.view(self.cut).permute(self.order)):
            number = math.prod(part.shape[: len(self.sizes)])
            yield slice(start, start + number), part
            start += number

    def _parts(self, blocks: Tensor) -> Iterator[Tensor]:
        counts = blocks.shape[: len(self.sizes)]
        axis = next((axis for axis, count in enumerate(counts) if count > 1), None)
        if axis is None or blocks.numel() <= _PART or not blocks.is_cpu:
            yield blocks
        else:
            rows = max(1, _PART * counts[axis] // blocks.numel())
            for part in torch.split(blocks, rows, axis):
                yield from self._parts(part)

    def flat(self, blocks: Tensor) -> Tensor:
        """Blocks (*counts, *sizes) as one tensor (number, *sizes) without gaps."""
        return blocks.reshape(-1, *self.sizes).contiguous()


_blocks = lru_cache(maxsize=None)(_Blocks)


def _merged(shape: Sequence[int], limit: float) -> list[int]:
    """The shape without axes of length 1, neighbors merged up to ``limit``, the first one never."""
    first, *rest = [n for n in shape if n != 1] or [1]
    merged: list[int] = []
    for n in reversed(rest):
        if merged and merged[0] * n <= limit:
            merged[0] *= n
        else:
            merged.insert(0, n)
    return [first, *merged]
