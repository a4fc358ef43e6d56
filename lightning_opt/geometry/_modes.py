"""What differentiating twice needs, whatever modes the caller is in."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

# What torch says, and what it means for curvature.
_ANSWERS = {
    "Checkpointing is not compatible with .grad()": (
        "the loss uses reentrant activation checkpointing, which cannot be differentiated twice: "
        "pass use_reentrant=False to torch.utils.checkpoint.checkpoint (Hugging Face: "
        "gradient_checkpointing_kwargs={'use_reentrant': False}), or switch checkpointing off."
    ),
    "Inference tensors cannot be saved for backward": (
        "a batch or a parameter was made under torch.inference_mode(), and autograd cannot use "
        "it: clone it outside of that mode, or make it under torch.no_grad()."
    ),
    "does not currently support double backward": (
        "a compiled function in the loss has no second derivative: pass the module that it was "
        "compiled from."
    ),
    "modified by an inplace operation": (
        "the loss changes a tensor in place that its derivatives need: run it on a copy."
    ),
}


@contextmanager
def differentiable_twice(device_type: str) -> Iterator[None]:
    """Gradients on, autocast off, attention by the math kernel, nothing compiled.

    All of it is put back at the end, also after an exception.

    Raises:
        RuntimeError: what torch cannot differentiate twice, and what to do about it.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # turns gradients on, too
        stack.enter_context(torch.autocast(device_type, enabled=False))
        # The fused kernels of attention have no second derivative.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:  # importing it takes seconds
            # Compiled modules have none either; run what they were compiled from.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        except RuntimeError as error:
            for sign, answer in _ANSWERS.items():
                if sign in str(error):
                    raise RuntimeError(f"No second derivative: {answer}") from error
            raise


@contextmanager
def tangents(params: Sequence[Tensor], vectors: Sequence[Tensor]) -> Iterator[None]:
    """Gives every parameter a tangent, in place, for the length of a block of forward mode.

    Whoever reads the parameters meanwhile, such as a module that knows nothing of it, computes
    derivatives in the direction of the vectors with it. The parameters' values do not change.
    """
    with warnings.catch_warnings(), forward_ad.dual_level():
        # Forward mode imports decompositions that torch still compiles with torch.jit.script.
        warnings.filterwarnings("ignore", ".*torch.jit.script.*")
        with torch.no_grad():
            for param, vector in zip(params, vectors, strict=True):
                value = param.detach().clone()
                param.copy_(forward_ad.make_dual(value, vector))  # type: ignore[no-untyped-call]
        yield


def dual_parts(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    """The value and the tangent of a tensor computed within :func:`tangents`."""
    primal, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return primal, tangent
