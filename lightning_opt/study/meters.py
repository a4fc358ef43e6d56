"""What a study watches while a run trains: its cost, its divergence, its random state."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_opt.callbacks import TrainingCost


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


class RunCost(TrainingCost):
    """What training costs, with the time before its first step and after its last one.

    The numbers are for the run's record alone: a file would repeat them, and ``metrics.csv`` holds
    what is the same whenever the run is repeated.

    Args:
        scheduled: ``time.time()`` when the run was given a process.
    """

    def __init__(self, scheduled: float) -> None:
        # Another name than that of a TrainingCost of the study's file.
        super().__init__(name="run-cost")
        self._scheduled = scheduled
        self._around: dict[str, float] = {}
        self._train_end: float | None = None

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        if not self._around:
            self._around["startup_seconds"] = time.time() - self._scheduled
        super().on_train_batch_start(*args, **kwargs)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_end = time.perf_counter()

    def finish(self) -> None:
        """To be called after ``fit``: what came after training was analysis."""
        if self._train_end is not None:
            self._around["analysis_seconds"] = time.perf_counter() - self._train_end

    def scalars(self) -> dict[str, float]:
        """Seconds, steps and bytes of the run so far, by name."""
        return {**(self.result.scalars() if self.result else {}), **self._around}


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
