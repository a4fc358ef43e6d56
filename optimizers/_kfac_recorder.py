"""What K-FAC gathers from a forward and its backward: the moments of each layer that is due.

A hook on a module sees the inputs of its weights' uses, a hook on its output the gradients δ. An
attention's projections are no modules: they are seen through a ``linear`` of ours. From the sums
over passes and ranks come the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ._base import working_dtype
from ._kfac_layers import EmbeddingSite, Factor, Layer, Moments, Pass, Site, Use, combined


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
                yield layer, *(pairs[0] if len(pairs) == 1 else combined(*pairs))

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


def _is_distributed() -> bool:
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
