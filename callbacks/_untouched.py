"""Leaving a module and everything around it as it was found, whatever runs in between."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Undo: TypeAlias = Callable[[], None]


@contextmanager
def untouched(
    trainer: Trainer, module: LightningModule, *, except_for: Iterable[Tensor] = ()
) -> Iterator[None]:
    """Silences logging inside, and afterwards puts everything back, also after an exception.

    That is: weights, gradients, ``requires_grad``, buffers, train/eval flags, torchmetrics' states,
    every attribute of every submodule, down through lists, dicts, sets, deques, tensors and NumPy
    arrays; the random state of Python, NumPy and torch on all devices; the trainer's loggers. What
    hides inside an object of any other class is out of reach. Tensors in ``except_for`` are left to
    the caller: no copy is made of them.
    """
    with ExitStack() as stack:
        stack.callback(restore_random_state, random_state())
        stack.callback(_remember(module, except_for))
        stack.callback(_silence(trainer, module))
        yield


@contextmanager
def gradients_aside(params: Iterable[Tensor]) -> Iterator[None]:
    """Leaves the parameters without gradients inside, and gives them back those that they had."""
    held = [(param, param.grad, param.requires_grad) for param in params]
    for param, _, _ in held:
        param.grad = None
    try:
        yield
    finally:
        for param, gradient, requires_grad in held:
            param.requires_grad_(requires_grad)
            param.grad = gradient


def random_state() -> tuple[Any, ...]:
    """The state of the global random generators: Python, NumPy, torch, CUDA devices, MPS."""
    return (
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
        # Asking for the state of devices that are not in use would initialize them.
        torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
        torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    )


def restore_random_state(state: tuple[Any, ...]) -> None:
    """Sets the global random generators back to what :func:`random_state` gave."""
    python, numpy, cpu, cuda, mps = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
    if mps is not None:
        torch.mps.set_rng_state(mps)


def seed_all(seed: int) -> None:
    """Seeds the global random generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _silence(trainer: Trainer, module: LightningModule) -> Undo:
    """Makes ``self.log`` do nothing and the loggers write nothing."""
    # Lightning raises on self.log in some hooks, and in others mixes the value into the epoch's
    # metrics. log_dict goes through it. It goes with the rest of what is added to the module.
    module.__dict__["log"] = _nothing
    loggers, should_stop = trainer.loggers, trainer.should_stop
    trainer.loggers = [DummyLogger() for _ in loggers]

    def undo() -> None:
        trainer.loggers, trainer.should_stop = loggers, should_stop

    return undo


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stands in for ``LightningModule.log``."""


def _remember(module: nn.Module, except_for: Iterable[Tensor]) -> Undo:
    """Takes down everything that is reachable from ``module``, by reference and by content."""
    undos: list[Undo] = []
    _collect(module, {id(tensor): tensor for tensor in except_for}, undos)

    def undo() -> None:
        for restore in undos:
            restore()

    return undo


def _collect(value: Any, seen: dict[int, Any], undos: list[Undo]) -> None:
    """Appends what restores ``value``, and all that it holds, to ``undos``."""
    if id(value) in seen:
        return
    if isinstance(value, nn.Module):
        seen[id(value)] = value
        _collect(value.__dict__, seen, undos)
    elif isinstance(value, (dict, list, set, deque, tuple)):
        seen[id(value)] = value  # kept alive: an id is only unique as long as its object lives
        if not isinstance(value, tuple):
            undos.append(_restorer(value))
        for item in tuple(value.values() if isinstance(value, dict) else value):
            _collect(item, seen, undos)
    elif isinstance(value, Tensor) and not is_lazy(value):
        seen[id(value)] = value
        # Inference tensors refuse any change, so there is nothing to put back.
        if not value.is_inference():
            undos.append(_tensor_restorer(value))
    elif isinstance(value, np.ndarray) and value.flags.writeable:
        seen[id(value)] = value
        undos.append(_array_restorer(value))


def _restorer(container: Any) -> Undo:
    """Restores which objects a dict, list, set or deque holds, in which order."""
    mapping = isinstance(container, dict)
    content = list(container.items()) if mapping else list(container)

    def undo() -> None:
        now = list(container.items()) if mapping else list(container)
        if _same(now, content):  # the usual case: subclasses may have side effects when written to
            return
        container.clear()
        if isinstance(container, (dict, set)):
            container.update(content)
        else:
            container.extend(content)

    return undo


def _same(now: list[Any], before: list[Any]) -> bool:
    """Whether two lists of objects, or of pairs (key, object), hold the very same objects."""
    if len(now) != len(before):
        return False
    for new, old in zip(now, before, strict=True):
        pair = isinstance(new, tuple) and isinstance(old, tuple) and len(new) == len(old) == 2
        if new is not old and not (pair and new[0] is old[0] and new[1] is old[1]):
            return False
    return True


def _tensor_restorer(tensor: Tensor) -> Undo:
    """Restores the content of a tensor, its gradient and whether it requires one.

    Meanwhile a leaf has no gradient, so that the one it had needs no copy.
    """
    content = tensor.detach().clone()
    requires_grad, gradient = tensor.requires_grad, tensor.grad if tensor.is_leaf else None
    if gradient is not None:
        tensor.grad = None

    def undo() -> None:
        # Past autograd's bookkeeping: a graph that was kept must not see this as a change.
        tensor.data.copy_(content)
        if tensor.is_leaf:
            tensor.requires_grad_(requires_grad)
            tensor.grad = gradient

    return undo


def _array_restorer(array: np.ndarray[Any, Any]) -> Undo:
    content = array.copy()

    def undo() -> None:
        array[...] = content

    return undo
