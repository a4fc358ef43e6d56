"""K-FAC: the natural gradient, the Fisher matrix of each layer taken for a Kronecker product.

For a layer s = W ā, where ā ends with a 1 for the bias, and with g the gradient by s of one term
of the mean loss,

    A = E[ā āᵀ],    G = E[g gᵀ],    Fisher of the layer ≈ A ⊗ G
    A ← ε A + (1 − ε) A_batch, and G alike,    ε = min(1 − 1/k, factor_decay) at the k-th update

    ΔW = (G + √λ/π I)⁻¹ ∇W (A + π √λ I)⁻¹,    π² = (tr A / dim A) / (tr G / dim G)
    ν = min(1, √(κ / (η² Σ |⟨ΔW, ∇W⟩|))), the sum over all layers
    u ← μ u + ν ΔW,    θ ← θ − η u

Martens & Grosse, Optimizing Neural Networks with Kronecker-factored Approximate Curvature,
1503.05671. Convolutions: Grosse & Martens, 1602.01407. Weights shared over positions: Eschenhagen
et al., 2311.00636. The clip by κ: Ba, Grosse & Martens, ICLR 2017. Worked cases: Dangel et al.,
2507.05127.

One scale for everything: with δ = ∂L/∂s as backward gives it, L the mean of n terms, and the rows
being examples × positions × uses of the layer, A is the mean of ā āᵀ over the rows and
G = n Σ_rows δ δᵀ. Neither depends on the size of the batch, so λ and κ do not, either.

Departures from 1503.05671:

- the data's labels by default (the *empirical* Fisher), as most code has it; the paper samples
  labels from the model's own distribution, ``fisher="sampled"``;
- λ, η and μ are options; the paper adapts λ and finds η and μ from a quadratic model;
- factors and inverses at intervals, at the first steps more often; the paper's are 1;
- wide factors are cut into diagonal blocks, ``block_size``, and of a convolution only some examples
  of a batch are looked at, ``conv_examples``; with None they are the whole factor and batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from ._base import (
    BaseOptimizer,
    check_choice,
    check_range,
    check_whole,
    decay,
    descend,
    learning_rate,
)
from ._kfac_discovery import find_layers
from ._kfac_layers import Factor, Layer, along, mean_trace
from ._kfac_recorder import Recorder
from ._matmul import matmul
from ._schedule import is_due


class KFAC(BaseOptimizer):
    """K-FAC (Martens & Grosse, 1503.05671); the module's docstring has the update.

    Preconditioned are the weights of ``Linear``, ``Conv1d``, ``Conv2d``, ``Conv3d``, ``Embedding``
    and ``MultiheadAttention``, with their biases, also where layers share them or are used several
    times. All other parameters (normalization layers, transposed convolutions, ...) are trained by
    SGD on their gradients, with the learning rate, momentum and decay of their groups.
    :meth:`coverage` tells which are which.

    The layers' inputs and output gradients are seen by hooks on the model, in training mode and in
    the steps that update the factors only.

    Args:
        params: parameters, named parameters, or groups of them.
        model: the model whose layers are preconditioned; or call :meth:`attach`.
        lr: learning rate η, a number or a tensor of one element. It is an upper limit as long as
            ``kl_clip`` is active.
        momentum: μ, of the preconditioned gradients.
        damping: λ.
        factor_decay: the largest ε, the share of the old in the running averages of A and G.
        kl_clip: κ, which bounds the change of the model's distribution in a step; None for none.
        factor_every: steps from one update of the factors to the next, once that is a sixteenth of
            the steps taken; until then a sixteenth of them.
        inverse_every: steps from one inversion of the factors to the next, in the same way.
        fisher: "empirical" has the gradients of the loss; "sampled" those of labels drawn from
            the model, for which the training step calls :meth:`sample`.
        weight_sharing: "expand" if each position has terms of the loss of its own, as in language
            models, or "reduce" if the loss sees a mean over positions; in training, 2311.00636
            saw little difference.
        block_size: the widest block of a factor. Wider factors are cut into equal diagonal
            blocks, of width × block_size numbers in place of width². None for no limit.
        conv_examples: how many examples of a batch count for the factors of a convolution, evenly
            spaced; None for all.
        weight_decay: λ of an L2 penalty, whose gradient is preconditioned with the loss', or
            decoupled (see below).
        decoupled_weight_decay: θ ← θ − η · weight_decay · θ before the step, as in AdamW.
        maximize: climb instead of descend.

    ``kl_clip`` and ``fisher`` are the optimizer's, all others may differ between groups.

    Raises:
        TypeError, ValueError: an option is out of range, a parameter is complex, or the model is
            not the one with these parameters.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    >>> optimizer = KFAC(model.parameters(), model, lr=0.1)
    >>> print(optimizer.coverage())
    0.weight  (8, 4)  A 5, G 8
    0.bias    (8,)    with 0.weight
    1.weight  (8,)    SGD: weight of LayerNorm
    1.bias    (8,)    SGD: bias of LayerNorm
    2.weight  (3, 8)  A 9, G 3
    2.bias    (3,)    with 2.weight
    80.7 % of 83 parameters are preconditioned, the others trained by SGD.
    >>> model(torch.ones(2, 4)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        model: nn.Module | None = None,
        lr: float | Tensor = 0.03,
        *,
        momentum: float = 0.5,
        damping: float = 1e-3,
        factor_decay: float = 0.95,
        kl_clip: float | None = 1e-3,
        factor_every: int = 20,
        inverse_every: int = 100,
        fisher: Literal["empirical", "sampled"] = "empirical",
        weight_sharing: Literal["expand", "reduce"] = "expand",
        block_size: int | None = 1024,
        conv_examples: int | None = 32,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
    ) -> None:
        if kl_clip is not None:
            check_range("kl_clip", kl_clip, 0.0)
        check_choice("fisher", fisher, "empirical", "sampled")
        self.kl_clip = kl_clip
        self.fisher = fisher
        self._model: nn.Module | None = None
        self._layers: list[Layer] = []
        self._others: dict[Tensor, str] = {}
        self._recorder = Recorder()
        self._handles: list[RemovableHandle] = []
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "damping": damping,
            "factor_decay": factor_decay,
            "factor_every": factor_every,
            "inverse_every": inverse_every,
            "weight_sharing": weight_sharing,
            "block_size": block_size,
            "conv_examples": conv_examples,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)
        if model is not None:
            self.attach(model)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        for name in ("lr", "damping", "weight_decay"):
            check_range(name, group[name], 0.0)
        for name in ("momentum", "factor_decay"):
            check_range(name, group[name], 0.0, 1.0)
        for name in ("factor_every", "inverse_every"):
            check_whole(name, group[name])
        for name in ("block_size", "conv_examples"):
            if group[name] is not None:
                check_whole(name, group[name])
        check_choice("weight_sharing", group["weight_sharing"], "expand", "reduce")
        for name in ("kl_clip", "fisher"):
            if name in group:
                raise ValueError(
                    f"{name}={group[name]!r} is not an option of a parameter group: it is one for "
                    f"all, {self._name}(params, {name}={group[name]!r})."
                )

    # Which layers there are

    def attach(self, model: nn.Module) -> Self:
        """Take the layers of a model, in place of those taken before, and return this optimizer.

        A parameter that does not require a gradient now is not preconditioned later, either: call
        this again after freezing or unfreezing. A group that is added needs no other call.

        Raises:
            TypeError: ``model`` is not a module.
            ValueError: none of the model's parameters is in this optimizer.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model={model!r} is not a torch.nn.Module. "
                f"Options go by their names: {self._name}(params, model, lr=0.1)."
            )
        groups: dict[Tensor, dict[str, Any]] = {}
        for group in self.param_groups:
            groups.update({theta: group for theta in group["params"] if theta.requires_grad})
        if not any(theta in groups for theta in model.parameters()):
            raise ValueError(
                f"attach({type(model).__name__}): none of its parameters is in this optimizer; "
                f"pass the model that the optimizer trains."
            )
        self.detach()
        self._model = model
        self._layers, self._others = find_layers(model, groups)
        for layer in self._layers:
            state = self.state.get(layer.weight, {})
            if not layer.fits(state):  # a bias has joined, or the block size is another
                for name in ("A", "G", "A_inverse", "G_inverse", "updates"):
                    state.pop(name, None)
        self._handles = self._recorder.hook(self._layers)
        self._arm()
        return self

    def detach(self) -> None:
        """Remove the hooks from the model, and forget it. The factors stay in the state."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._layers, self._others, self._model = [], [], {}, None
        self._arm()

    def coverage(self) -> Coverage:
        """Which parameters are preconditioned, with factors of which widths, and why others not.

        Raises:
            RuntimeError: there is no model.
        """
        model = self._required_model()
        names = {theta: name for name, theta in model.named_parameters()}
        how: dict[Tensor, str] = {}
        why = dict(self._others)
        for layer in self._layers:
            state = self.state.get(layer.weight, {})
            if "step" in state and "A" not in state:
                unseen = "its module was not called in training mode"
                why.update(dict.fromkeys(layer.parameters, unseen))
                continue
            how[layer.weight] = str(layer)
            if layer.bias is not None:
                before = f"{how[layer.bias]}, " if layer.bias in how else "with "
                how[layer.bias] = before + layer.name
        rows = []
        for number, group in enumerate(self.param_groups):
            for index, theta in enumerate(group["params"]):
                name = names.get(theta, f"number {index} of group {number}")
                note = how.get(theta, f"SGD: {why.get(theta, 'not in the model')}")
                rows.append(CoverageRow(name, tuple(theta.shape), theta in how, note))
        return Coverage(tuple(rows))

    def _required_model(self) -> nn.Module:
        if self._model is None:
            raise RuntimeError(
                f"{self._name} needs the model's layers: pass model=, or call attach(model) "
                f"before the first step."
            )
        return self._model

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with options of their own, also in the middle of a run.

        Raises:
            TypeError, ValueError: an option is out of range; the group is not added.
        """
        super().add_param_group(param_group)
        self._attach_again()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, before or after :meth:`attach`."""
        super().load_state_dict(state_dict)
        self._attach_again()

    def _attach_again(self) -> None:
        if self._model is not None:
            self.attach(self._model)

    def __getstate__(self) -> dict[str, Any]:
        own = ("kl_clip", "fisher", "_model", "_layers", "_others", "_recorder", "_handles")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._arm()

    # What they show

    def describe_loss(
        self, terms: int | Tensor | None = None, factor: float | Tensor = 1.0
    ) -> None:
        """Say what the loss of the coming backward is, if it is not the mean over the examples.

        To be called before each backward, on either side of the forward. Without it, the number
        of terms is the first axis of the input of the layer that is called first. When gradients
        are accumulated over k backwards, the loss of each is taken to be divided by k.

        Args:
            terms: how many terms the loss is the mean of: the masked tokens of a language model;
                the examples, where the first axis is not theirs.
            factor: by what the mean is multiplied besides: the scale of a gradient scaler; k, where
                accumulated losses are not divided by k.

        >>> model = nn.Linear(4, 3)
        >>> optimizer = KFAC(model.parameters(), model)
        >>> loss = 1024 * model(torch.ones(8, 5, 4)).square().mean()
        >>> optimizer.describe_loss(terms=8 * 5 * 3, factor=1024)
        >>> loss.backward()
        """
        self._recorder.describe(terms, factor)

    def sample(self, logits: Tensor) -> None:
        """Draw labels from the model, for ``fisher="sampled"``, between forward and backward.

        It needs the gradients by the layers' outputs only, and changes no ``grad``. In the steps
        that do not update the factors it returns at once.

        Args:
            logits: those of the loss' terms, classes on the last axis: (examples, classes), or
                (examples, positions, classes).

        Raises:
            RuntimeError: the optimizer has the empirical Fisher.

        >>> model = nn.Linear(4, 3)
        >>> optimizer = KFAC(model.parameters(), model, fisher="sampled")
        >>> logits = model(torch.ones(2, 4))
        >>> optimizer.sample(logits)
        >>> nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
        >>> optimizer.step()
        """
        if self.fisher != "sampled":
            raise RuntimeError(
                f"sample(logits) is for {self._name}(..., fisher='sampled'); this one has "
                f"fisher={self.fisher!r}."
            )
        self._recorder.sample(logits)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and with them what the layers have shown in their backward."""
        super().zero_grad(set_to_none)
        if self.fisher == "empirical":  # a sample may have been drawn for the coming backward
            self._recorder.forget()

    def _arm(self) -> None:
        """Have recorded what the next step needs."""
        due = [layer for layer in self._layers if self._is_due(layer, "A", "factor_every")]
        self._recorder.arm(due, sampled=self.fisher == "sampled")

    def _is_due(self, layer: Layer, name: str, interval: str) -> bool:
        """Whether a layer's next step renews something of that name."""
        state = self.state.get(layer.weight, {})
        return name not in state or is_due(int(state["step"].item()) + 1, layer.group[interval])

    # The step

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again, with gradients, and returns the loss.

        Returns:
            The closure's loss, or None without one.

        Raises:
            RuntimeError: there is no model, or no sample where there should be.
            ValueError: a gradient is sparse. No parameter has been changed in either case.
        """
        self._required_model()
        return super().step(closure)

    def _update_all(self) -> None:
        if self._recorder.lacks_sample:
            raise RuntimeError(
                f"{self._name}(fisher='sampled') renews its factors in this step: call "
                f"optimizer.sample(logits) between forward and backward of every step."
            )
        self._renew()
        gradients = {
            theta: decay(theta, self._gradient(group, index), group)
            for group, index, theta in self._with_gradients()
        }
        directions = self._directions(gradients)
        for group, _, theta in self._with_gradients():
            descend(theta, directions[theta], self.state[theta], group)
        self._arm()

    def _renew(self) -> None:
        """Average what was recorded into the factors, and invert those that are due."""
        for layer, A, G in self._recorder.factors():
            if layer.weight.grad is not None:
                _average(self.state[layer.weight], A, G, layer.group["factor_decay"])
        for layer in self._layers:
            if layer.weight.grad is None:
                continue
            state = self.state[layer.weight]
            if "A" in state and self._is_due(layer, "A_inverse", "inverse_every"):
                _invert(state, layer.group["damping"])
            # Counted now, so that what is due in this step has been due since the last one.
            state.setdefault("step", torch.zeros((), dtype=torch.float32, device="cpu")).add_(1)

    def _directions(self, gradients: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """ν ΔW of the layers that have factors, and the gradients of all other parameters."""
        directions = dict(gradients)
        rates = {theta: learning_rate(g) for g in self.param_groups for theta in g["params"]}
        changes: list[tuple[Layer, Tensor]] = []
        inner_products: list[Tensor] = []
        for layer in self._layers:
            state = self.state.get(layer.weight, {})
            if layer.weight in gradients and "A_inverse" in state:
                gradient = layer.matrix(gradients)
                change = _product(state["G_inverse"], gradient, state["A_inverse"])
                changes.append((layer, change))
                pairs = zip(layer.parts(change), layer.parts(gradient), strict=True)
                products = [rates[theta] ** 2 * (d @ g) for (theta, d), (_, g) in pairs]
                inner_products.append(torch.stack(products).sum().abs())
        if self.kl_clip is not None and changes:
            total = torch.stack([each.to(inner_products[0]) for each in inner_products]).sum()
            nu = (self.kl_clip / total).sqrt().clamp(max=1.0)
            for _, change in changes:
                change.mul_(nu.to(change))
        for layer, change in changes:
            layer.write(change, directions)
        return directions


class CoverageRow(NamedTuple):
    """A parameter: its name and shape, whether it is preconditioned, and how, or why not."""

    name: str
    shape: tuple[int, ...]
    preconditioned: bool
    note: str


@dataclass(frozen=True)
class Coverage:
    """Which parameters K-FAC preconditions; it prints as a table."""

    rows: tuple[CoverageRow, ...]

    @property
    def total(self) -> int:
        """Number of all parameters, element by element."""
        return sum(prod(row.shape) for row in self.rows)

    @property
    def share(self) -> float:
        """The share of them that is preconditioned, from 0 to 1."""
        return sum(prod(row.shape) for row in self.rows if row.preconditioned) / max(self.total, 1)

    def __str__(self) -> str:
        cells = [(row.name, str(row.shape), row.note) for row in self.rows]
        first, second = (max((len(row[k]) for row in cells), default=0) for k in (0, 1))
        lines = [f"{name:{first}}  {shape:{second}}  {note}" for name, shape, note in cells]
        return "\n".join(
            [
                *lines,
                f"{100 * self.share:.1f} % of {self.total:,} parameters are preconditioned, "
                f"the others trained by SGD.",
            ]
        )


def _average(state: dict[str, Any], A: Factor, G: Factor, factor_decay: float) -> None:
    """A ← ε A + (1 − ε) A_batch, and G, unless the batch has shown nothing, or no finite thing."""
    if "A" not in state:
        state["A"] = [torch.zeros_like(block) for block in A]
        state["G"] = [torch.zeros_like(block) for block in G]
        state["updates"] = A[0].new_zeros(())
    # No branch: it would wait for the device.
    finite = torch.stack([block.sum() for block in [*A, *G]]).isfinite().all()
    sound = finite & (mean_trace(A) > 0).any()
    k = state["updates"].add_(sound)
    share = torch.clamp(1 / k, 1 - factor_decay, 1.0)
    for average, block in zip([*state["A"], *state["G"]], [*A, *G], strict=True):
        average.lerp_(torch.where(sound, block, average), share)


def _invert(state: dict[str, Any], damping: float | Tensor) -> None:
    """The damped inverses of both factors; identities before the first update that was sound."""
    root = damping**0.5
    pi = (mean_trace(state["A"]) / mean_trace(state["G"])).sqrt()
    pi = torch.where(pi.isfinite() & (pi > 0), pi, 1.0)
    for name, shift in (("A", pi * root), ("G", root / pi)):
        factor = state[name]
        last = state.get(f"{name}_inverse") or [_identity(block) for block in factor]
        state[f"{name}_inverse"] = [
            torch.where(state["updates"] > 0, _inverse(block, shift, before), before)
            for block, before in zip(factor, last, strict=True)
        ]


def _identity(block: Tensor) -> Tensor:
    ones = torch.ones_like(block)
    return ones if block.ndim == 2 else torch.diag_embed(ones[..., 0])


def _inverse(block: Tensor, shift: Tensor, last: Tensor) -> Tensor:
    """(M + shift · I)⁻¹ of each map, in float64 if float32 fails, and ``last`` where that does.

    Whether it has failed is asked for here: this is the one place of a step that waits for the
    device, in the steps that invert.
    """
    if block.ndim == 2:
        return 1 / (block + along(shift, block))
    for dtype in (block.dtype, torch.float64):
        shifted = block.to(dtype, copy=True)
        shifted.diagonal(dim1=1, dim2=2).add_(shift[:, None])
        root, info = torch.linalg.cholesky_ex(shifted)
        failed = along(info > 0, block)
        if not failed.any():
            break
    # Not cholesky_inverse: MKL takes seconds for a width of 1,000 on two threads.
    inverse = torch.cholesky_solve(_identity(shifted), root)
    return torch.where(failed, last, inverse.to(last.dtype))


def _product(left: Factor, matrix: Tensor, right: Factor) -> Tensor:
    """left · matrix · right, with both factors in blocks."""
    rows = torch.split(matrix, [block.shape[-1] for block in left], 1)
    matrix = _cat([matmul(block, part) for block, part in zip(left, rows, strict=True)], 1)
    if right[0].ndim == 2:
        return matrix * right[0][:, None]
    columns = torch.split(matrix, [block.shape[-1] for block in right], 2)
    return _cat([matmul(part, block) for part, block in zip(columns, right, strict=True)], 2)


def _cat(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)  # cat would copy the one
