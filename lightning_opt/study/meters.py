"""What a study watches while a run trains: its cost, its divergence, its random state."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor


class Diverged(Exception):
    """The training loss is not finite: a result, which ends the run early."""


class StopOnDivergence(Callback):
    """Raises :class:`Diverged` once the training loss is NaN or infinite.

    On an accelerator the loss is looked at every 50 steps, since looking waits for the device.
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor) or (loss.device.type != "cpu" and trainer.global_step % 50):
            return
        if not torch.isfinite(loss).all():
            raise Diverged(f"The training loss is {loss.item()} at step {trainer.global_step}.")


class CostMeter(Callback):
    """Measures what training costs, with evaluation apart and through interruptions.

    Args:
        scheduled: ``time.time()`` when the run was given a process, to tell how long it took from
            there to the first step.
    """

    def __init__(self, scheduled: float) -> None:
        self._scheduled = scheduled
        self._step_seconds: list[float] = []
        self._startup_seconds: float | None = None
        self._step_start = 0.0
        self._optimizer_bytes = 0
        self._train_end: float | None = None
        self._analysis_seconds: float | None = None

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._step_start = time.perf_counter()
        if self._startup_seconds is None:
            self._startup_seconds = time.time() - self._scheduled

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._step_seconds.append(time.perf_counter() - self._step_start)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._train_end = time.perf_counter()
        self._optimizer_bytes = sum(
            tensor.nbytes
            for optimizer in trainer.optimizers
            for tensor in _tensors(optimizer.state_dict())
        )

    def finish(self) -> None:
        """To be called after ``fit``: what came after training was analysis."""
        if self._train_end is not None:
            self._analysis_seconds = time.perf_counter() - self._train_end

    def state_dict(self) -> dict[str, Any]:
        return {"step_seconds": torch.tensor(self._step_seconds, dtype=torch.float64)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._step_seconds = state_dict["step_seconds"].tolist()

    def cost(self, module: LightningModule) -> dict[str, float]:
        """Seconds, steps and bytes of the run so far.

        A step's seconds are forward, backward and update, the first ones of a process included in
        the sum; ``seconds_per_step`` is the median, which they do not touch.
        """
        cost = {
            "train_seconds": sum(self._step_seconds),
            "steps": len(self._step_seconds),
            "optimizer_bytes": self._optimizer_bytes,
            "peak_memory_bytes": _peak_memory_bytes(module),
            "parameters": sum(p.numel() for p in module.parameters()),
        }
        if self._step_seconds:
            cost["seconds_per_step"] = median(self._step_seconds)
        if self._startup_seconds is not None:
            cost["startup_seconds"] = self._startup_seconds
        if self._analysis_seconds is not None:
            cost["analysis_seconds"] = self._analysis_seconds
        return cost


class ResumePoint(ModelCheckpoint):
    """Writes metrics and one checkpoint after every epoch but the last, over those before.

    Lightning's ``fit`` does nothing, not even ``on_train_end``, when it resumes from a checkpoint
    of the last epoch. Without that one, a run that is interrupted while it analyzes its minimum
    trains its last epoch again and analyzes it.

    Args:
        path: Of the checkpoint.
        write_metrics: Called before each checkpoint, since a run that continues from it needs all
            metrics up to there; it drops later ones.
    """

    def __init__(self, path: Path, write_metrics: Callable[[], None]) -> None:
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            save_on_train_epoch_end=True,  # so that a run that resumes starts with an epoch
            enable_version_counter=False,
        )
        self._write_metrics = write_metrics

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.fit_loop.done:
            self._write_metrics()
            super().on_train_epoch_end(trainer, module)


class RandomState(Callback):
    """Carries the random state in the checkpoint, so that a run that continues draws the same.

    Lightning does not; dropout and augmentation would otherwise differ after an interruption.

    Args:
        run: The hash of the cell, which tells its checkpoint from a foreign one.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._resumed: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        # A checkpoint loads without unpickling: tensors and plain Python only.
        numpy: Any = np.random.get_state(legacy=False)
        numpy["state"]["key"] = numpy["state"]["key"].tolist()
        version, internal, gauss_next = random.getstate()
        return {
            "run": self._run,
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": numpy,
            "python": (version, list(internal), gauss_next),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        # After the optimizers are made, before the data loader is iterated: both may draw. Where
        # the checkpoint was written, the data loader is what draws next, too.
        if self._resumed is None:
            return
        state, self._resumed = self._resumed, None
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
        key = np.array(state["numpy"]["state"]["key"], dtype=np.uint32)
        numpy = {**state["numpy"], "state": {**state["numpy"]["state"], "key": key}}
        np.random.set_state(numpy)
        version, internal, gauss_next = state["python"]
        random.setstate((version, tuple(internal), gauss_next))


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
