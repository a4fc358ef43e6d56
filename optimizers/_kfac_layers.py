"""The layers of a model as K-FAC sees them, and the factors that their uses have.

A layer is a stack of matrices W, of shape (maps, outputs, inputs), each applied to many vectors at
once, s = W ā. Of one application, a *use*, K-FAC needs the columns ā (maps, inputs, rows) and
δ = ∂L/∂s (maps, outputs, rows), with which Σ_rows δ āᵀ is the gradient of W:

    Linear          one map; a row is an index of all axes but the last
    convolution     a map per group; a row is an output position, its ā the patch that it is made of
    attention       as Linear; a weight that holds queries, keys and values is three maps
    Embedding       s = Wᵀ e with e the one-hot vector of a word, so that Σ e eᵀ is diagonal

Where the positions of an example share a weight (Eschenhagen et al., 2311.00636), *expand* takes
each position for a row and *reduce* each example, ā averaged and δ summed over its positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._base import working_dtype
from ._matmul import matmul

Group = Mapping[str, Any]
Shape = tuple[int, int, int]
# The diagonal blocks of a matrix, each (maps, width, width), or its diagonal alone, (1, width).
Factor = list[Tensor]
Pair = tuple[Factor, Factor]


@dataclass(eq=False)
class Site:
    """A place in a model where a weight is used.

    Attributes:
        weight: the weight.
        bias: what is added to the output, if anything is.
        shape: the weight as (maps, outputs, inputs).
        bias_start: the first of the bias' elements that belong to this weight.
    """

    weight: Tensor
    bias: Tensor | None
    shape: Shape
    bias_start: int = 0

    def examples(self, x: Tensor) -> int:
        """Number of examples in an input."""
        return len(x) if x.ndim > 1 else 1

    def columns(self, use: Use, delta: Tensor) -> tuple[Tensor, Tensor]:
        """ā, without the bias' coordinate, and δ, from the gradient of the output."""
        raise NotImplementedError

    def moments(self, use: Use, delta: Tensor, scale: float | Tensor) -> Moments:
        """Σ ā āᵀ and Σ g gᵀ of a use, with g = scale · δ."""
        layer = use.layer
        a, d = self.columns(use, delta)
        if layer.bias is not None:
            a = torch.cat([a, a.new_ones(len(a), 1, a.shape[2])], 1)
        rows = torch.full((len(a), 1), float(a.shape[2]), dtype=layer.dtype, device=a.device)
        return Moments(layer.grams(a), layer.grams(d, scale), rows)


class LinearSite(Site):
    """A linear layer, or several of the same input whose weights are stacked in one."""

    def columns(self, use: Use, delta: Tensor) -> tuple[Tensor, Tensor]:
        x, delta = (_by_example(tensor, use.batch) for tensor in (use.x, delta))
        if use.layer.reduces:
            x, delta = x.mean(1), delta.sum(1)
        a = x.reshape(1, -1, self.shape[2]).mT
        d = delta.reshape(a.shape[2], -1, self.shape[1]).permute(1, 2, 0)
        return a.expand(len(d), -1, -1), d


def _by_example(tensor: Tensor, batch: int | None) -> Tensor:
    """(examples, positions, features) of a tensor; with ``batch``, its positions come first."""
    if batch is not None:
        return tensor.reshape(-1, batch, tensor.shape[-1]).transpose(0, 1)
    examples = len(tensor) if tensor.ndim > 1 else 1
    return tensor.reshape(examples, -1, tensor.shape[-1])


class ConvolutionSite(Site):
    """A convolution over one, two or three axes."""

    def __init__(self, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        shape = (module.groups, module.out_channels // module.groups, module.weight[0].numel())
        super().__init__(module.weight, module.bias, shape)
        self.module = module
        self.axes = len(module.kernel_size)

    def examples(self, x: Tensor) -> int:
        return len(x) if x.ndim == self.axes + 2 else 1

    def columns(self, use: Use, delta: Tensor) -> tuple[Tensor, Tensor]:
        x = use.x
        if x.ndim == self.axes + 1:
            x, delta = x[None], delta[None]
        x, delta = _some_examples(x, delta, use.layer.group["conv_examples"])
        maps, outputs, inputs = self.shape
        patches, d = self._patches(x), delta.reshape(len(x), maps, outputs, -1)
        if use.layer.reduces:
            positions = list(range(-self.axes, 0))
            patches, d = patches.mean(positions, keepdim=True), d.sum(-1, keepdim=True)
        d = d.permute(1, 2, 0, 3)
        return patches.reshape(maps, inputs, -1), d.reshape(maps, outputs, -1)

    def _patches(self, x: Tensor) -> Tensor:
        """The patch of each output position, (maps, channels, *kernel, examples, *positions)."""
        module, axes = self.module, self.axes
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        if any(margins := self._margins()):
            x = F.pad(x, margins, mode=mode)
        x = x.reshape(len(x), self.shape[0], -1, *x.shape[2:])
        sizes = zip(module.kernel_size, module.dilation, module.stride, strict=True)
        for axis, (size, dilation, stride) in enumerate(sizes, start=3):
            x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        return x.permute(1, 2, *range(3 + axes, 3 + 2 * axes), 0, *range(3, 3 + axes))

    def _margins(self) -> list[int]:
        """The padding before and after each axis, the last axis first, as ``F.pad`` takes it."""
        module = self.module
        margins: list[int] = []
        for axis in reversed(range(self.axes)):
            if module.padding == "same":
                total = module.dilation[axis] * (module.kernel_size[axis] - 1)
                margins += [total // 2, total - total // 2]
            else:
                margins += 2 * [0 if module.padding == "valid" else int(module.padding[axis])]
        return margins


def _some_examples(x: Tensor, delta: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    """Evenly spaced examples of a batch, with δ scaled so that Σ δ δᵀ keeps its expectation."""
    examples = len(x)
    if limit is None or examples <= limit:
        return x, delta
    chosen = torch.arange(limit, device=x.device) * examples // limit
    return x[chosen], delta[chosen] * sqrt(examples / limit)


class EmbeddingSite(Site):
    """A table of words. A position is a row for *reduce*, too: an average would not be one-hot."""

    def __init__(self, module: nn.Embedding) -> None:
        words, features = module.weight.shape
        super().__init__(module.weight, None, (1, features, words))
        self.padding = module.padding_idx

    def examples(self, x: Tensor) -> int:
        return len(x) if x.ndim else 1

    def moments(self, use: Use, delta: Tensor, scale: float | Tensor) -> Moments:
        layer = use.layer
        words = use.x.reshape(-1)
        d = delta.reshape(len(words), -1)
        seen = torch.ones(len(words), dtype=layer.dtype, device=words.device)
        if self.padding is not None:  # it trains nothing, and so is no row
            seen = (words != self.padding).to(layer.dtype)
            d = d * seen[:, None]
        if layer.bias is not None:  # that of a linear layer with the same weight
            d = F.pad(d, (0, 1))
        counts = seen.new_zeros(1, self.shape[2]).index_add_(1, words, seen[None])
        return Moments([counts], layer.grams(d.mT[None], scale), seen.sum().reshape(1, 1))


@dataclass(eq=False)
class Layer:
    """A weight that K-FAC preconditions, its bias with it, and the places that use it.

    Attributes:
        name: the weight's name in the model.
        weight: the weight.
        bias: the bias whose coordinate, a constant 1, ā has at its end; None if it has none.
        bias_start: the first of the bias' elements that belong to this weight.
        shape: the weight as (maps, outputs, inputs); of an embedding's alone, its transpose.
        group: the weight's parameter group.
        sites: the modules that use the weight, each with how.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    bias_start: int
    shape: Shape
    group: Group
    sites: list[tuple[nn.Module, Site]]

    def __str__(self) -> str:
        """The factors' widths."""
        maps, outputs, _ = self.shape
        parts = []
        for name, width in (("A", self.inputs), ("G", outputs)):
            blocks = len(self.widths(width))
            if name == "A" and self.transposed:
                parts.append(f"A {width} diagonal")
            else:
                parts.append(f"{name} {width}" + (f" in {blocks} blocks" if blocks > 1 else ""))
        return ", ".join(parts) + (f", {maps} times" if maps > 1 else "")

    @property
    def parameters(self) -> list[Tensor]:
        """The weight, and the bias if there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the factors."""
        return working_dtype(self.weight)

    @property
    def reduces(self) -> bool:
        return bool(self.group["weight_sharing"] == "reduce")

    @property
    def inputs(self) -> int:
        """Width of A, the bias' coordinate included."""
        return self.shape[2] + (self.bias is not None)

    @property
    def kinds(self) -> list[bool]:
        """Which kinds of use there are: embeddings' (True), others' (False)."""
        return sorted({isinstance(site, EmbeddingSite) for _, site in self.sites})

    @property
    def transposed(self) -> bool:
        """Whether only embeddings use the weight, so that its rows are the inputs."""
        return self.kinds == [True]

    def widths(self, total: int) -> list[int]:
        """Widths of the blocks of a factor of width ``total``: as few and as equal as can be."""
        limit = self.group["block_size"]
        number = 1 if limit is None else ceil(total / limit)
        width, wider = divmod(total, number)
        return [width + (k < wider) for k in range(number)]

    def grams(self, columns: Tensor, scale: float | Tensor | None = None) -> Factor:
        """The blocks of Σ c cᵀ over the columns c, (maps, width, rows), each times ``scale``."""
        blocks = []
        for part in torch.split(columns, self.widths(columns.shape[1]), 1):
            part = part.to(self.dtype)
            if scale is not None:  # before squaring: a half-precision gradient may be tiny
                part = part * scale
            blocks.append(matmul(part, part.mT))
        return blocks

    def block_shapes(self) -> tuple[list[Shape], list[Shape]]:
        """Shapes of the blocks of A, were it not diagonal, and of G."""
        maps, outputs, _ = self.shape
        A, G = ([(maps, w, w) for w in self.widths(total)] for total in (self.inputs, outputs))
        return A, G

    def zeros(self, embedding: bool) -> Moments:
        """Moments of no rows, of one kind of use."""
        A, G = self.block_shapes()
        diagonal = (1, self.inputs if self.transposed else self.shape[1])
        pairs = ([diagonal], G if self.transposed else A) if embedding else (A, G)
        first, second = ([self._zero(*shape) for shape in shapes] for shapes in pairs)
        return Moments(first, second, self._zero(self.shape[0], 1))

    def _zero(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.weight.device)

    def fits(self, state: Mapping[str, Any]) -> bool:
        """Whether a state's factors are of this layer's widths."""
        A, G = self.block_shapes()
        expected = [[(1, self.inputs)] if self.transposed else A, G]
        return expected == [[tuple(b.shape) for b in state.get(name, ())] for name in ("A", "G")]

    @property
    def _bias_rows(self) -> slice:
        return slice(self.bias_start, self.bias_start + self.shape[0] * self.shape[1])

    def matrix(self, tensors: Mapping[Tensor, Tensor]) -> Tensor:
        """The tensors of the weight and of its bias as one, (maps, outputs, inputs).

        A bias that has none counts as 0.
        """
        weight = tensors[self.weight]
        if self.transposed:
            return weight.mT[None]
        matrix = weight.reshape(self.shape)
        if self.bias is None:
            return matrix
        if self.bias not in tensors:
            return F.pad(matrix, (0, 1))
        return torch.cat(
            [matrix, tensors[self.bias][self._bias_rows].reshape(*self.shape[:2], 1)], 2
        )

    def parts(self, matrix: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The weight and its bias, each with its part of such a matrix, flat."""
        columns = torch.split(matrix, [self.shape[2], self.inputs - self.shape[2]], 2)
        parts = [part.reshape(-1) for part in columns]
        return list(zip(self.parameters, parts, strict=False))

    def write(self, matrix: Tensor, tensors: dict[Tensor, Tensor]) -> None:
        """Put such a matrix in the place of the tensors that :meth:`matrix` reads."""
        if self.transposed:
            tensors[self.weight] = matrix[0].mT
            return
        inputs = self.shape[2]
        tensors[self.weight] = matrix[..., :inputs].reshape(self.weight.shape)
        if self.bias in tensors:
            part = matrix[..., inputs:].reshape(-1)
            rows = self._bias_rows
            tensors[self.bias] = tensors[self.bias].slice_scatter(part, 0, rows.start, rows.stop)


class Pass:
    """A forward and its backward, with what its loss is.

    Attributes:
        batch: number of examples, as the first layer of the forward had them.
        terms: number of terms of the mean loss, where it is not the number of examples.
        factor: what the mean loss was multiplied by.
        arrived: whether a gradient has come back.
    """

    def __init__(self) -> None:
        self.batch = 1
        self.terms: int | Tensor | None = None
        self.factor: float | Tensor = 1.0
        self.arrived = False

    @property
    def number(self) -> int | Tensor:
        """Number of terms."""
        return self.batch if self.terms is None else self.terms


@dataclass(eq=False)
class Use:
    """A use of a layer, waiting for the gradient of its output.

    Attributes:
        layer: the layer.
        site: where it is used.
        x: the input.
        of: the pass.
        maps: which of the layer's maps are used.
        batch: number of examples, if positions come before them in the input.
    """

    layer: Layer
    site: Site
    x: Tensor
    of: Pass
    maps: slice = field(default_factory=lambda: slice(None))
    batch: int | None = None


@dataclass(eq=False)
class Moments:
    """Σ ā āᵀ and Σ g gᵀ over rows, and the number of rows of each map, (maps, 1)."""

    A: Factor
    G: Factor
    rows: Tensor

    def tensors(self) -> list[Tensor]:
        return [*self.A, *self.G, self.rows]

    def add(self, other: Moments, maps: slice) -> None:
        """Add what some of the maps have seen."""
        for total, part in zip(self.tensors(), other.tensors(), strict=True):
            total[maps] += part

    def means(self, terms: int | Tensor) -> Pair:
        """A, the mean over the rows, and G, the mean over the terms of the loss."""
        rows = self.rows.clamp(min=1)
        return [block / along(rows, block) for block in self.A], [block / terms for block in self.G]


def combined(linear: Pair, embedding: Pair) -> Pair:
    """One A ⊗ G for a weight that linear layers use and, transposed, embeddings.

    The weight's block of the Fisher is the sum of A ⊗ G over both kinds, whose covariance is
    neglected; an embedding has the factors in exchanged roles. Each pair is balanced, so that both
    of its factors have the same mean trace t, and the pairs are added factor by factor. The result
    is scaled to the mean trace of the sum, t₁² + t₂², from (t₁ + t₂)²: this is exact where the two
    kinds have proportional factors.
    """
    (A, G), (diagonal, small) = linear, embedding
    means = [(mean_trace(A), mean_trace(G)), (mean_trace(small), mean_trace(diagonal))]
    t = torch.stack([(a * g).sqrt() for a, g in means])
    scale = t.square().sum(0).sqrt() / t.sum(0)
    (a1, g1), (a2, g2) = (
        [torch.where(size > 0, size / mean, 0) * scale for mean in pair]
        for size, pair in zip(t, means, strict=True)
    )
    words = torch.split(diagonal[0], [block.shape[1] for block in G], 1)
    return (
        [one * a1 + other * a2 for one, other in zip(A, small, strict=True)],
        [block * g1 + torch.diag_embed(part * g2) for block, part in zip(G, words, strict=True)],
    )


def mean_trace(factor: Factor) -> Tensor:
    """tr M / dim M of each map, (maps,)."""
    diagonals = [block if block.ndim == 2 else block.diagonal(dim1=1, dim2=2) for block in factor]
    return torch.cat(diagonals, 1).mean(1)


def along(maps: Tensor, block: Tensor) -> Tensor:
    """A number for each map, in as many axes as a block has."""
    return maps.reshape(-1, *[1] * (block.ndim - 1))
