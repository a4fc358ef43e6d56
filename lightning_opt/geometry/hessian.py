r"""The Hessian of a mean loss as a linear operator, by double backward (Pearlmutter 1994).

With :math:`\bar L(\theta) = \sum_b n_b L_b(\theta) / \sum_b n_b`, where batch :math:`b` has
:math:`n_b` terms,

.. math:: H v = \frac{1}{\sum_b n_b} \sum_b n_b \nabla_\theta \langle \nabla_\theta L_b, v \rangle
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ._loss import Loss, checked_batches, evaluate, total_terms
from ._parameters import check_like, checked_params, flatten, unflatten


class Hessian:
    """The Hessian of the mean loss over fixed batches; made by :func:`hessian`.

    Attributes:
        shape: ``(n, n)``, n being the number of entries of all parameters.
        dtype: of the vectors that ``H @ v`` returns: that of the parameters, at least float32.
        device: of the vectors: that of the parameters.
    """

    def __init__(self, loss: Loss, params: Iterable[Tensor], batches: Iterable[Any]) -> None:
        self._loss = loss
        self._params = checked_params(params)
        self._batches = checked_batches(batches)
        for index, param in enumerate(self._params):
            if not param.requires_grad:
                raise ValueError(
                    f"params[{index}] of shape {tuple(param.shape)} does not require a gradient: "
                    f"pass only the trainable parameters."
                )
        devices = {param.device for param in self._params}
        if len(devices) > 1:
            names = ", ".join(sorted(str(device) for device in devices))
            raise ValueError(f"The parameters are on several devices ({names}), not on one.")
        self.device = devices.pop()
        self.dtype = torch.float32
        for param in self._params:
            self.dtype = torch.promote_types(self.dtype, param.dtype)
        size = sum(param.numel() for param in self._params)
        self.shape = (size, size)

    @overload
    def __matmul__(self, v: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, v: Sequence[Tensor]) -> list[Tensor]: ...

    def __matmul__(self, v: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        if not isinstance(v, Tensor):
            check_like("v", v, self._params)
            return unflatten(self._product(flatten(v)), self._params)
        if v.shape != self.shape[:1]:
            raise ValueError(
                f"H @ v: v has shape {tuple(v.shape)}, it has to be a vector of {self.shape[0]} "
                f"entries, or a list of tensors in the shapes of the parameters."
            )
        return self._product(v)

    def _product(self, v: Tensor) -> Tensor:
        with _differentiable_twice(self.device.type):
            vectors = [
                piece.to(param.device, param.dtype)
                for piece, param in zip(unflatten(v, self._params), self._params, strict=True)
            ]
            out = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
            pieces = unflatten(out, self._params)
            counts = []
            for batch in self._batches:
                mean, terms = evaluate(self._loss, batch)
                counts.append(terms)
                if terms > 0:  # a mean over no terms is NaN and says nothing
                    self._accumulate(pieces, mean, terms, vectors)
            return out.div_(total_terms(counts))

    def _accumulate(
        self, out: list[Tensor], mean: Tensor, terms: float, vectors: list[Tensor]
    ) -> None:
        """Adds ``terms`` times the product of the Hessian of ``mean`` to ``out``."""
        if not mean.requires_grad:
            raise ValueError(
                "The loss has no graph to differentiate: it was detached, computed under "
                "torch.no_grad(), or does not depend on any parameter that requires a gradient."
            )
        gradients = torch.autograd.grad(mean, self._params, create_graph=True, allow_unused=True)
        # A parameter that is unused has no gradient, one that the loss is linear in has a constant
        # one: their rows of the Hessian are zero.
        curved = [
            (gradient, vector)
            for gradient, vector in zip(gradients, vectors, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not curved:
            return
        outputs, weights = zip(*curved, strict=True)
        products = torch.autograd.grad(outputs, self._params, weights, allow_unused=True)
        for total, product in zip(out, products, strict=True):
            if product is not None:
                total.add_(product, alpha=terms)


@contextmanager
def _differentiable_twice(device_type: str) -> Iterator[None]:
    """What a double backward needs, whatever the caller's own modes."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # turns gradients on, too
        stack.enter_context(torch.autocast(device_type, enabled=False))
        # The fused kernels of attention have no second derivative.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:  # importing it takes seconds: only where it is in use
            # Neither have compiled functions.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def hessian(loss: Loss, params: Iterable[Tensor], batches: Iterable[Any]) -> Hessian:
    """The Hessian of the mean loss with respect to ``params``, without ever forming it.

    A product costs about three gradients over all batches. Gradients (``param.grad``) are neither
    used nor changed. Parameters that the loss does not use have zero rows. Fused attention runs on
    its math kernel, compiled functions run eagerly and autocast is off while a product is computed.

    Args:
        loss: ``loss(batch)``, the mean loss of a batch as a tensor, or the pair
            ``(mean loss, number of terms)``. It has to be deterministic.
        params: the tensors to differentiate with respect to, each requiring a gradient.
        batches: what ``loss`` is called with; kept in memory.

    Returns:
        An operator with ``H @ v``, for a vector of n entries (gives a vector) or a list of tensors
        in the shapes of ``params`` (gives such a list), and ``H.shape``.

    Raises:
        TypeError: a parameter is no real floating-point tensor; the loss is no tensor.
        ValueError: no parameters, no batches, a parameter without ``requires_grad``; at a product:
            a loss that is not one number or that has no graph, a vector of another shape.

    Example:
        L = x³/6 + x·y at (x, y) = (2, 5) has the Hessian [[x, 1], [1, 0]].

        >>> import torch
        >>> theta = torch.tensor([2.0, 5.0], requires_grad=True)
        >>> H = hessian(lambda batch: theta[0] ** 3 / 6 + theta[0] * theta[1], [theta], [None])
        >>> H.shape
        (2, 2)
        >>> H @ torch.tensor([1.0, 0.0])
        tensor([2., 1.])
    """
    return Hessian(loss, params, batches)
