r"""A matrix of curvature as a linear operator: the mean of a product over fixed batches.

With :math:`C_b` the curvature of the mean loss of batch :math:`b`, which has :math:`n_b` terms,

.. math:: C v = \frac{1}{\sum_b n_b} \sum_b n_b \, C_b v

so that C is that of the mean over all terms, however they are divided into batches.

What :math:`C_b v` costs depends on what is kept: building the graph of the first derivative is a
gradient and more, going through it once for :math:`v` about two gradients (ResNet18). As many
graphs as fit into memory are therefore built once and kept between products.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from lightning_opt.memory import available

from ._loss import checked_batches
from ._modes import differentiable_twice
from ._parameters import check_like, checked_params, flatten, unflatten
from ._saved import bytes_saved
from ._weighted_mean import WeightedMean

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse.linalg import LinearOperator

Method = Literal["auto", "kept", "reverse", "forward"]
Columns = Literal["auto", "loop", "batched"]


class BatchCurvature(ABC):
    """The curvature of one batch's mean loss at the present weights.

    Attributes:
        value: the mean loss; a tensor on its device, so that nothing waits for it.
        terms: how many terms it is the mean of. Both are known after the first product at last.
    """

    value: Tensor
    terms: float

    @abstractmethod
    def product(
        self, vectors: Sequence[Tensor], *, keep: bool, batched: bool = False
    ) -> Sequence[Tensor | None]:
        """The product with a vector, in tensors like the parameters; None for rows of zeros.

        Args:
            vectors: like the parameters; ``batched``: each with a leading axis, an entry of which
                belongs to one of several vectors.
            keep: whether another product will follow.
            batched: whether to compute the products with several vectors at once.
        """


class CurvatureOperator:
    """A symmetric matrix of shape (n, n) over the entries of all parameters; never formed.

    Made by :func:`hessian`, :func:`gauss_newton` and :func:`empirical_fisher`. ``C @ v`` takes a
    vector of n entries, a matrix of shape (n, k) whose columns are multiplied in one pass over the
    batches, or a list of tensors in the shapes of the parameters, and returns the same.

    A product belongs to the weights as they are then: graphs that were kept are built anew when a
    parameter has been changed in place, as optimizers do it (through ``.data`` it goes unnoticed).
    Whatever else the loss depends on has to stay as it is.

    Attributes:
        shape: ``(n, n)``.
        dtype: of the products: that of the parameters, at least float32.
        device: of the products: that of the parameters.
    """

    def __init__(
        self,
        curvature: Callable[[Any, bool], BatchCurvature],
        params: Sequence[Tensor],
        batches: Iterable[Any],
        *,
        method: Method,
        columns: Columns,
        memory: int | None,
        group: torch.distributed.ProcessGroup | None,
    ) -> None:
        _check_choice("method", method, Method)
        _check_choice("columns", columns, Columns)
        if memory is not None and memory < 0:
            raise ValueError(f"memory is {memory}: it has to be a number of bytes, at least 0.")
        self._curvature = curvature  # of a batch, by forward mode or not
        self._params = params
        self._batches = checked_batches(batches)
        self.device = params[0].device
        self.dtype = torch.float32
        for param in params:
            self.dtype = torch.promote_types(self.dtype, param.dtype)
        size = sum(param.numel() for param in params)
        self.shape = (size, size)
        self._forward = method == "forward"
        self._columns: Columns = "loop" if self._forward else columns
        self._memory = memory
        self._group = group
        self._kept: dict[int, BatchCurvature] = {}
        # How many graphs are kept; None until one has been measured.
        self._room = {"kept": len(self._batches), "auto": None}.get(method, 0)
        self._values: dict[int, float] = {}  # of the batches' losses
        self._versions: list[int] = []  # of the parameters that these and the graphs belong to

    @overload
    def __matmul__(self, v: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, v: Sequence[Tensor]) -> list[Tensor]: ...

    def __matmul__(self, v: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        if not isinstance(v, Tensor):
            check_like("v", v, self._params)
            return unflatten(self.of_rows(flatten(v)[None])[0], self._params)
        if v.ndim not in (1, 2) or len(v) != self.shape[0] or v.numel() == 0:
            raise ValueError(
                f"v has shape {tuple(v.shape)}: it has to be a vector of {self.shape[0]} entries, "
                f"a matrix of as many rows, or a list of tensors in the shapes of the parameters."
            )
        return self.of_rows(v[None])[0] if v.ndim == 1 else self.of_rows(v.T.contiguous()).T

    def to_scipy(self) -> LinearOperator:
        """The operator on NumPy arrays, for ``scipy.sparse.linalg``.

        >>> from scipy.sparse.linalg import eigsh
        >>> from lightning_opt.geometry import hessian
        >>> x = torch.ones(3, dtype=torch.float64, requires_grad=True)
        >>> H = hessian(lambda batch: x.prod(), [x], [None]).to_scipy()
        >>> eigsh(H, k=1, return_eigenvectors=False).round(6)
        array([2.])
        """
        from scipy.sparse.linalg import LinearOperator

        def product(v: NDArray[Any]) -> NDArray[Any]:
            columns = torch.tensor(v, dtype=self.dtype, device=self.device)
            result: NDArray[Any] = (self @ columns.reshape(len(v), -1)).cpu().numpy()
            return result.reshape(v.shape)

        return LinearOperator(
            self.shape,
            matvec=product,
            rmatvec=product,
            matmat=product,
            rmatmat=product,
            dtype=np.dtype(str(self.dtype).removeprefix("torch.")),
        )

    def of_rows(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """The products with every row of a matrix of shape (k, n), as the rows of another.

        Args:
            rows: the matrix.
            out: where they are written, of the same shape and of the operator's ``dtype``: getting
                new memory for large vectors takes longer than filling it.
        """
        self._forget_other_weights()
        with differentiable_twice(self.device.type):
            sizes = [param.numel() for param in self._params]
            vectors = [
                columns.to(param.device, param.dtype).reshape(len(rows), *param.shape)
                for columns, param in zip(
                    torch.split(rows, sizes, dim=1), self._params, strict=True
                )
            ]
            if out is None:
                out = torch.empty(rows.shape, dtype=self.dtype, device=self.device)
            total = WeightedMean(out, sizes)
            values: list[tuple[int, Tensor]] = []
            for index in range(len(self._batches)):
                batch = self._kept.get(index) or self._batch_curvature(index, values)
                self._accumulate(total, batch, vectors, keep=index in self._kept)
                values.append((index, batch.value))
        self._versions = [param._version for param in self._params]
        self._check_values(values)
        return total.mean(self._group)

    def _forget_other_weights(self) -> None:
        if self._versions != [param._version for param in self._params]:
            self._kept.clear()
            self._values.clear()

    def _batch_curvature(self, index: int, values: list[tuple[int, Tensor]]) -> BatchCurvature:
        """The curvature of a batch, kept if there is room for its graph."""
        batch = self._batches[index]
        if self._room is None:
            made: list[BatchCurvature] = []
            size = bytes_saved(lambda: made.append(self._curvature(batch, False)), self._params)
            values.append((index, made.pop().value))
            memory = available(self.device) // 2 if self._memory is None else self._memory
            self._room = memory // max(1, size)
        curvature = self._curvature(batch, self._forward)
        if len(self._kept) < self._room:
            self._kept[index] = curvature
        return curvature

    def _accumulate(
        self, total: WeightedMean, batch: BatchCurvature, vectors: list[Tensor], *, keep: bool
    ) -> None:
        """Adds the products with a batch's curvature."""
        rows = len(vectors[0])
        if rows > 1 and self._columns == "auto":
            self._columns = _faster(batch, vectors, self.device)
        if rows > 1 and self._columns == "batched":
            products = list(batch.product(vectors, keep=keep, batched=True))
            total.add(slice(0, rows), products, batch.terms)
            return
        for row in range(rows):
            further = keep or row + 1 < rows
            products = list(batch.product([vector[row] for vector in vectors], keep=further))
            total.add(slice(row, row + 1), products, batch.terms)

    def _check_values(self, values: list[tuple[int, Tensor]]) -> None:
        """Raises a ValueError where a loss is no longer what it was."""
        # One transfer from the device for all batches.
        numbers = torch.stack([value.double() for _, value in values]).tolist()
        for (index, _), now in zip(values, numbers, strict=True):
            before = self._values.setdefault(index, now)
            # More than roundoff that depends on the order of a sum.
            if abs(now - before) > 1e-3 * abs(before):
                raise ValueError(
                    f"The loss of batch {index} was {before:.6g} and is now {now:.6g} at the same "
                    f"weights, so that it has no Hessian: switch dropout and other noise off, or "
                    f"seed it anew in every call, and fix the batches."
                )


def differentiable_params(params: Iterable[Tensor]) -> list[Tensor]:
    """The parameters as a list.

    Raises:
        TypeError: one is no real floating-point tensor.
        ValueError: there are none, one requires no gradient or was made under inference mode, or
            they are on several devices.
    """
    params = checked_params(params)
    for index, param in enumerate(params):
        if param.is_inference():
            raise ValueError(
                f"params[{index}] of shape {tuple(param.shape)} was made under "
                f"torch.inference_mode(), which nothing can be differentiated with respect to: "
                f"build the module outside of it."
            )
        if not param.requires_grad:
            raise ValueError(
                f"params[{index}] of shape {tuple(param.shape)} does not require a gradient: "
                f"pass only the trainable parameters."
            )
    devices = {param.device for param in params}
    if len(devices) > 1:
        names = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(f"The parameters are on several devices ({names}), not on one.")
    return params


def _faster(batch: BatchCurvature, vectors: list[Tensor], device: torch.device) -> Columns:
    """Whether the products with several vectors are faster at once or one by one."""

    def loop() -> None:
        for row in range(len(vectors[0])):
            batch.product([vector[row] for vector in vectors], keep=True)

    def batched() -> None:
        batch.product(vectors, keep=True, batched=True)

    try:
        return "batched" if _seconds(batched, device) < _seconds(loop, device) else "loop"
    except RuntimeError:  # an operation that vmap does not know, or too little memory
        return "loop"


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        known = ", ".join(map(repr, get_args(choices)))
        raise ValueError(f"{name} is {value!r}: it has to be one of {known}.")
