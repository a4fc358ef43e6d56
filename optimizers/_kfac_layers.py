"""The layers of a model as K-FAC sees them, and what it gathers from a forward and its backward.

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

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ._base import working_dtype
from ._matmul import matmul

Group = Mapping[str, Any]
Shape = tuple[int, int, int]
# The diagonal blocks of a matrix, each (maps, width, width), or its diagonal alone, (1, width).
Factor = list[Tensor]
Pair = tuple[Factor, Factor]


# What a layer is, and its uses


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


# What the hooks gather


class Recorder:
    """Gathers, by hooks on the modules, the moments of the layers whose factors are due.

    A forward in training mode, with gradients enabled, leaves a hook on each output. Both moments
    are taken when the gradient comes, so that a forward that is thrown away, or only made again to
    save memory, does not count. A copy, such as the hooks of a copied model have, records nothing
    before it is armed.
    """

    def __init__(self) -> None:
        self.arm([])

    def __reduce__(self) -> tuple[type[Recorder], tuple[()]]:
        return Recorder, ()

    def arm(self, layers: Iterable[Layer], *, sampled: bool = False) -> None:
        """Forget everything, and record these layers from now on.

        Args:
            layers: the layers.
            sampled: record the gradients of :meth:`sample`, not those of backward.
        """
        self.layers = list(layers)
        self.sampled = sampled
        self.asked = False
        self.sites: dict[nn.Module, dict[Tensor, tuple[Layer, Site]]] = {}
        for layer in self.layers:
            for module, site in layer.sites:
                self.sites.setdefault(module, {})[site.weight] = (layer, site)
        self.first: nn.Module | None = None
        self.current = Pass()
        self.waiting: list[tuple[Tensor, Use]] = []
        self.attention: list[_SeesProjections | None] = []
        self.forget()

    def forget(self) -> None:
        """Forget the gradients that have come."""
        self.passes: list[Pass] = []
        self.moments: dict[tuple[Layer, bool], Moments] = {}

    def hook(self, layers: Iterable[Layer]) -> list[RemovableHandle]:
        """Register the hooks on the modules of all layers that may be recorded."""
        handles = []
        for module in {module: None for layer in layers for module, _ in layer.sites}:
            if isinstance(module, nn.MultiheadAttention):
                before = module.register_forward_pre_hook(self.before_attention, with_kwargs=True)
                # Also after an error: checkpointing ends a forward that it makes again by one.
                after = module.register_forward_hook(self.after_attention, always_call=True)
                handles += [before, after]
            else:
                handles.append(module.register_forward_hook(self.after, with_kwargs=True))
        return handles

    def _listens(self, module: nn.Module) -> bool:
        return module in self.sites and module.training and torch.is_grad_enabled()

    def after(
        self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
    ) -> None:
        # A functional call may have put another weight there.
        weight: Any = module.weight
        if self._listens(module) and weight in self.sites[module]:
            layer, site = self.sites[module][weight]
            x = args[0] if args else kwargs["input"]
            self.enter(module, site.examples(x))
            self.record(Use(layer, site, x.detach(), self.current), output)

    def before_attention(
        self, module: nn.MultiheadAttention, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        mode = None
        if self._listens(module):
            query = args[0] if args else kwargs["query"]
            batch = 1 if query.ndim == 2 else query.shape[0 if module.batch_first else 1]
            self.enter(module, batch)
            mode = _SeesProjections(self, self.sites[module], batch)
            mode.__enter__()  # type: ignore[no-untyped-call]
        self.attention.append(mode)

    def after_attention(self, *_: Any) -> None:
        if (mode := self.attention.pop()) is not None:
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def enter(self, module: nn.Module, batch: int) -> None:
        """Notice that a pass begins: the module that was the first in this step runs again."""
        if self.first is None:
            self.first = module
        if module is self.first:
            self.upcoming().batch = batch

    def upcoming(self) -> Pass:
        """The pass of which no gradient has come yet."""
        if self.current.arrived:
            self.current = Pass()
        return self.current

    def record(self, use: Use, output: Tensor) -> None:
        # A transform of torch.func has no hooks: its calls do not count.
        if not output.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(output):
            return
        if self.sampled:
            self.waiting.append((output, use))
        else:
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda delta: self.arrive(use, delta)
            )

    @torch.no_grad()
    def arrive(self, use: Use, delta: Tensor) -> None:
        """Take the moments of a use."""
        if not use.of.arrived:
            use.of.arrived = True
            self.passes.append(use.of)
        key = use.layer, isinstance(use.site, EmbeddingSite)
        if key not in self.moments:
            self.moments[key] = use.layer.zeros(embedding=key[1])
        moments = use.site.moments(use, delta, use.of.number / use.of.factor)
        self.moments[key].add(moments, use.maps)

    def describe(self, terms: int | Tensor | None, factor: float | Tensor) -> None:
        """Say what the loss of the coming backward is."""
        upcoming = self.upcoming()
        upcoming.terms, upcoming.factor = terms, factor

    @property
    def lacks_sample(self) -> bool:
        return self.sampled and bool(self.layers) and not self.asked

    def sample(self, logits: Tensor) -> None:
        """Take the gradients of sampled labels, of all that was recorded since the last sample."""
        self.asked = True
        if not self.waiting:
            return
        logits = logits.flatten(0, -2)
        labels = torch.multinomial(logits.detach().float().softmax(-1), 1).squeeze(-1)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        outputs = [output for output, _ in self.waiting]
        gradients = torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True)
        summed = Pass()
        summed.terms = len(logits)
        summed.factor = float(len(logits))  # of the mean: the gradients are of the sum
        for (_, use), delta in zip(self.waiting, gradients, strict=True):
            if delta is not None:
                use.of = summed
                self.arrive(use, delta)
        self.waiting = []

    def factors(self) -> Iterator[tuple[Layer, Factor, Factor]]:
        """A and G of each layer that was used, over all passes and all ranks.

        When gradients are accumulated over k passes, each loss is divided by k, and δ with it.
        """
        if not self.layers:
            return
        terms: int | Tensor = sum(each.number for each in self.passes)
        k = 1 if self.sampled else len(self.passes)
        for moments in self.moments.values():
            for block in moments.G:
                block *= k**2
        if _is_distributed():
            terms = self._sum_over_ranks(terms)
        for layer in self.layers:
            keys = [(layer, kind) for kind in layer.kinds if (layer, kind) in self.moments]
            pairs = [self.moments[key].means(terms) for key in keys]
            if pairs:
                yield layer, *(pairs[0] if len(pairs) == 1 else _combined(*pairs))

    def _sum_over_ranks(self, terms: int | Tensor) -> Tensor:
        """Add up the moments of all ranks, in place, and the numbers of terms."""
        weight = self.layers[0].weight
        total = torch.as_tensor(terms, dtype=working_dtype(weight), device=weight.device)
        tensors = [total]
        for layer in self.layers:  # in the same order on all ranks, whatever they have used
            for kind in layer.kinds:
                moments = self.moments.setdefault((layer, kind), layer.zeros(kind))
                tensors += moments.tensors()
        for place in {(each.device, each.dtype): None for each in tensors}:
            alike = [each for each in tensors if (each.device, each.dtype) == place]
            flat = torch.cat([each.reshape(-1) for each in alike])
            torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [each.numel() for each in alike])
            for each, part in zip(alike, parts, strict=True):
                each.copy_(part.view_as(each))
        return total


class _SeesProjections(TorchFunctionMode):
    """Records the projections inside of an ``nn.MultiheadAttention``, which are no modules.

    While it is active, ``F.multi_head_attention_forward`` runs with a ``linear`` of ours.
    """

    def __init__(
        self,
        recorder: Recorder,
        sites: Mapping[Tensor, tuple[Layer, Site]],
        batch: int,
    ) -> None:
        super().__init__()
        self.recorder, self.sites, self.batch = recorder, sites, batch

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.multi_head_attention_forward:
            func = _attention_with(self.linear)
        return func(*args, **(kwargs or {}))

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output = F.linear(x, weight, bias)
        whole = weight if weight in self.sites else weight._base
        if whole is not None and whole in self.sites:
            layer, site = self.sites[whole]
            rows = site.shape[1]
            first = (weight.storage_offset() - whole.storage_offset()) // (rows * site.shape[2])
            maps = slice(first, first + len(weight) // rows)
            use = Use(layer, site, x.detach(), self.recorder.current, maps, self.batch)
            self.recorder.record(use, output)
        return output


def _attention_with(linear: Callable[..., Tensor]) -> Callable[..., Any]:
    """PyTorch's attention with another function in the place of ``linear``.

    A mode is not told of calls inside of the function that it is given, and other threads would
    see a replacement in the module. So this is PyTorch's code in a namespace of its own.
    """
    names = {**vars(F), "linear": linear}
    for name in ("_in_projection_packed", "_in_projection", "multi_head_attention_forward"):
        theirs = getattr(F, name)
        ours = FunctionType(theirs.__code__, names, name, theirs.__defaults__, theirs.__closure__)
        ours.__kwdefaults__ = theirs.__kwdefaults__
        names[name] = ours
    return ours


def _combined(linear: Pair, embedding: Pair) -> Pair:
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


def _is_distributed() -> bool:
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


# Which layers a model has


def find_layers(
    model: nn.Module, groups: Mapping[Tensor, Group]
) -> tuple[list[Layer], dict[Tensor, str]]:
    """The layers that K-FAC preconditions, and what the model's other parameters are.

    Args:
        model: the model.
        groups: the parameters that are trained, each with its group.
    """
    uses: dict[Tensor, list[tuple[nn.Module, Site]]] = {}
    others: dict[Tensor, str] = {}
    for module in model.modules():
        sites = _sites(module)
        for site in sites:
            uses.setdefault(site.weight, []).append((module, site))
        known = {each for site in sites for each in (site.weight, site.bias)}
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in known:
                others[parameter] = f"{name} of {type(module).__name__}"
    names: dict[Tensor, str] = {theta: name for name, theta in model.named_parameters()}
    layers = []
    for weight, places in uses.items():
        sites = [site for _, site in places]
        shape = _common_shape(sites)
        if shape is None:
            others[weight] = "shared by layers that read it differently"
        elif weight in groups and weight not in others:
            bias, start = _common_bias(sites, groups)
            layers.append(Layer(names[weight], weight, bias, start, shape, groups[weight], places))
    _drop_shared_biases(layers)
    for places in uses.values():
        for _, site in places:
            if site.bias is not None:
                others.setdefault(site.bias, "bias that does not go with one preconditioned weight")
    return layers, others


def _sites(module: nn.Module) -> list[Site]:
    """The uses of a module's weights that K-FAC knows."""
    if isinstance(module, nn.MultiheadAttention) and _keeps(module, nn.MultiheadAttention):
        return _uses_in_attention(module)
    if isinstance(module, nn.Linear) and _keeps(module, nn.Linear):
        return [_linear(module)]
    if isinstance(module, nn.Embedding) and _keeps(module, nn.Embedding):
        return [] if module.scale_grad_by_freq else [EmbeddingSite(module)]
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if isinstance(module, kind) and _keeps(module, kind):
            return [ConvolutionSite(module)]
    return []


def _keeps(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module of a subclass computes what the class does."""
    return all(
        getattr(type(module), name, None) is getattr(kind, name, None)
        for name in ("forward", "_conv_forward")
    )


def _linear(module: nn.Linear) -> LinearSite:
    return LinearSite(module.weight, module.bias, (1, *module.weight.shape))


def _uses_in_attention(module: nn.MultiheadAttention) -> list[Site]:
    width = module.embed_dim
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    bias = own.get("in_proj_bias")
    sites: list[Site] = [_linear(module.out_proj)]
    if "in_proj_weight" in own:
        sites.append(LinearSite(own["in_proj_weight"], bias, (3, width, width)))
    for number, name in enumerate(("q_proj_weight", "k_proj_weight", "v_proj_weight")):
        if name in own:
            sites.append(LinearSite(own[name], bias, (1, *own[name].shape), number * width))
    return sites


def _common_shape(sites: list[Site]) -> Shape | None:
    """(maps, outputs, inputs) of a weight, if it is the same wherever the weight is used."""
    shapes = {site.shape for site in sites if not isinstance(site, EmbeddingSite)}
    if len(shapes) == 1:
        ((maps, outputs, inputs),) = shapes
        tables = {site.shape for site in sites if isinstance(site, EmbeddingSite)}
        return (maps, outputs, inputs) if tables <= {(1, inputs, outputs)} else None
    return None if shapes else sites[0].shape


def _common_bias(sites: list[Site], groups: Mapping[Tensor, Group]) -> tuple[Tensor | None, int]:
    """The bias that goes with a weight wherever one can, if it is trained."""
    biases = {(site.bias, site.bias_start) for site in sites if not isinstance(site, EmbeddingSite)}
    if len(biases) == 1:
        ((bias, start),) = biases
        if bias is not None and bias in groups:
            return bias, start
    return None, 0


def _drop_shared_biases(layers: list[Layer]) -> None:
    """A bias that goes with several weights is preconditioned with none of them."""
    owners = Counter((layer.bias, layer.bias_start) for layer in layers)
    for layer in layers:
        if owners[layer.bias, layer.bias_start] > 1:
            layer.bias = None
