"""How long training takes, for schedulers that depend on it."""

from __future__ import annotations

from pytorch_lightning import LightningModule, Trainer

from lightning_opt.errors import UsageError

from ._flavors import Callback


class ScheduleLength(Callback):
    """Calls ``plan(total_steps)`` of schedulers whose ``total_steps`` is None.

    Such as :class:`~lightning_opt.schedules.WarmupCosine`. The total is that of the optimizer's
    steps for a scheduler that Lightning steps with each of them, else that of epochs. The command
    line adds this callback by itself.

    It is known at ``on_train_start`` and not before: ``trainer.estimated_stepping_batches`` loads
    the training data, and if ``configure_optimizers`` asks for it, Lightning does so before it has
    restored the place in the epoch that a checkpoint was taken at, which is then lost.

    Raises:
        UsageError: training has no end that is known at its start.

    >>> import pytorch_lightning as pl
    >>> trainer = pl.Trainer(callbacks=[ScheduleLength()], logger=False)
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if getattr(scheduler, "total_steps", 0) is None and hasattr(scheduler, "plan"):
                scheduler.plan(_length(trainer, config.interval, type(scheduler).__name__))


def _length(trainer: Trainer, interval: str, scheduler: str) -> int:
    if interval == "step":
        total = trainer.estimated_stepping_batches
        option = "max_epochs or --trainer.max_steps"
    else:
        total = trainer.max_epochs if trainer.max_epochs is not None else -1
        option = "max_epochs"
    if not 0 < total < float("inf"):
        raise UsageError(
            f"{scheduler} needs to know how long training takes, and this one has no end: give "
            f"--trainer.{option}, or the scheduler's total_steps."
        )
    return int(total)
