"""What training costs: time, passes and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lightning_opt.errors import UsageError

from ._loggers import Copies
from ._results import Named, announce, run_directory, save

Moment: TypeAlias = "float | torch.cuda.Event"


@dataclass(frozen=True)
class Cost:
    """What training cost so far, of one process.

    Attributes:
        step_seconds: of every optimizer step: forward, backward, update, and what other callbacks
            do before and in it; without loading the data; shape (steps,).
        warm: whether each step counts as warmed up, shape (steps,).
        seconds_per_step: the median of the warm steps; of all, if none is; NaN without steps.
        train_seconds: the sum of all steps.
        warmup_seconds: the part of it that is not warm.
        evaluation_seconds: of validation in the course of training.
        forward_backward_passes: how often a loss was differentiated.
        optimizer_bytes: of the optimizers' states at the end of training.
        peak_memory_bytes: of the device since training started; on a CPU, of the process since it
            started (0 on Windows).
        parameters: of the module, trainable or not.
    """

    step_seconds: NDArray[np.float64]
    warm: NDArray[np.bool_]
    evaluation_seconds: float
    forward_backward_passes: int
    optimizer_bytes: int
    peak_memory_bytes: int
    parameters: int

    @property
    def seconds_per_step(self) -> float:
        steady = self.step_seconds[self.warm]
        steady = steady if steady.size else self.step_seconds
        return float(np.median(steady)) if steady.size else float("nan")

    @property
    def train_seconds(self) -> float:
        return float(self.step_seconds.sum())

    @property
    def warmup_seconds(self) -> float:
        return float(self.step_seconds[~self.warm].sum())

    def scalars(self) -> dict[str, float]:
        """Everything that is one number."""
        names = ["seconds_per_step", "train_seconds", "warmup_seconds"]
        names += [field.name for field in fields(self)[2:]]
        return {"steps": len(self.step_seconds), **{name: getattr(self, name) for name in names}}

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """All of it as arrays, ready for ``numpy.savez``."""
        arrays: dict[str, Any] = {"step_seconds": self.step_seconds, "warm": self.warm}
        return {name: np.asarray(value) for name, value in {**arrays, **self.scalars()}.items()}


class TrainingCost(Named):
    """Measures what training costs, with evaluation, warm-up and analysis apart.

    It moves to the front of the trainer's callbacks, so that a step's time has what other callbacks
    add to the step (such as SVRG's snapshots), and that what they do at the end of training is no
    part of the cost. On CUDA the times of steps are taken on the device, by events between which
    nothing waits; the device is waited for at the borders of validation and of epochs only.
    Measurements go on through interruptions: they are in checkpoints.

    Files, in the run directory (``trainer.log_dir``; without a logger
    ``trainer.default_root_dir``): ``{name}.npz``, with the attributes of :class:`Cost` as arrays,
    and ``steps``, ``step`` and ``epoch``. Its numbers go to the trainer's loggers. Under DDP they
    are those of the first process. ``fast_dev_run`` writes nothing.

    Args:
        warmup: how many steps of every process are no measure of the others.
        name: of the file.

    Attributes:
        result: the :class:`Cost` so far, or None before there is any.

    Raises:
        UsageError: ``warmup`` is negative; a callback of the same name.

    A pass that manual optimization starts by ``loss.backward()`` is not counted:
    ``self.manual_backward(loss)`` is.

    Example:
        >>> import pytorch_lightning as pl
        >>> trainer = pl.Trainer(callbacks=[TrainingCost(warmup=10)], logger=False)
    """

    def __init__(self, *, warmup: int = 3, name: str = "cost") -> None:
        super().__init__(name)
        if warmup < 0:
            raise UsageError(f"warmup is {warmup}: it has to be at least 0.")
        self.warmup = warmup
        self.result: Cost | None = None
        self._forget()

    def _forget(self) -> None:
        self._seconds: list[float] = []
        self._warm: list[bool] = []
        self._evaluation_seconds = 0.0
        self._passes = 0
        self._cold = self.warmup  # steps until this process is warm
        self._steps: list[list[tuple[Moment, Moment]]] = []  # batches of steps not read yet
        self._batches: list[tuple[Moment, Moment]] = []  # of the step that goes on
        self._started: Moment = 0.0
        self._step = 0
        self._backward: Callable[..., Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        super().setup(trainer, pl_module, stage)
        self._forget()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        # Those before move back by one, the next one keeps its place: the iteration goes on.
        callbacks.remove(self)
        callbacks.insert(0, self)
        # A hook would miss passes that are hidden from callbacks, as SVRG's second one is.
        self._backward = trainer.strategy.backward
        trainer.strategy.backward = partial(self._count, self._backward)  # type: ignore[method-assign]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._backward is not None:
            vars(trainer.strategy).pop("backward", None)  # another one may have been first
            self._backward = None

    def _count(self, backward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._passes += 1
        return backward(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._started = _now(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self._batches.append((self._started, _now(pl_module)))
        if trainer.global_step > self._step:  # else gradients are accumulated
            self._step = trainer.global_step
            self._steps.append(self._batches)
            self._batches = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(pl_module)
        self._evaluation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        _wait_for(pl_module)
        self._evaluation_seconds += time.perf_counter() - self._evaluation_started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._update(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(trainer, pl_module)
        directory = run_directory(trainer)  # on every rank
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        assert self.result is not None
        values: dict[str, ArrayLike] = {
            **self.result.to_arrays(),
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
        }
        copies = Copies(self.result.scalars())
        step = trainer.global_step
        announce(
            self,
            save(trainer, directory, self.name, values, figure=None, copies=copies, step=step),
        )

    def _state(self) -> dict[str, Any]:
        return {
            "step_seconds": torch.tensor(self._seconds, dtype=torch.float64),
            "warm": torch.tensor(self._warm, dtype=torch.bool),
            "evaluation_seconds": self._evaluation_seconds,
            "forward_backward_passes": self._passes,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._seconds = state["step_seconds"].tolist()
        self._warm = state["warm"].tolist()
        self._evaluation_seconds = state["evaluation_seconds"]
        self._passes = state["forward_backward_passes"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._read(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def _read(self, module: LightningModule) -> None:
        """Turns the moments of past steps into seconds; waits for the device."""
        _wait_for(module)
        steps, self._steps = self._steps, []
        for batches in steps:
            self._seconds.append(sum(_seconds(start, end) for start, end in batches))
            self._warm.append(self._cold <= 0)
            self._cold -= 1

    def _update(self, trainer: Trainer, module: LightningModule) -> None:
        self._read(module)
        self.result = Cost(
            step_seconds=np.array(self._seconds),
            warm=np.array(self._warm, dtype=bool),
            evaluation_seconds=self._evaluation_seconds,
            forward_backward_passes=self._passes,
            optimizer_bytes=sum(
                tensor.nbytes
                for optimizer in trainer.optimizers
                for tensor in _tensors(optimizer.state_dict())
            ),
            peak_memory_bytes=_peak_memory_bytes(module),
            parameters=sum(param.numel() for param in module.parameters()),
        )


def _now(module: LightningModule) -> Moment:
    """This moment in the work of the module's device."""
    if module.device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(module.device))
    return event


def _seconds(start: Moment, end: Moment) -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return float(start.elapsed_time(end)) / 1000
    return end - start  # type: ignore[operator]


def _wait_for(module: LightningModule) -> None:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _peak_memory_bytes(module: LightningModule) -> int:
    if module.device.type == "cuda":
        return torch.cuda.max_memory_allocated(module.device)
    if sys.platform == "win32":
        return 0  # the standard library cannot tell
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # kilobytes elsewhere
