"""The processes that train together, and what they tell each other."""

from __future__ import annotations

from typing import Any, TypeAlias

from pytorch_lightning import LightningModule, Trainer
from torch import distributed

Group: TypeAlias = distributed.ProcessGroup | None


def group_of(trainer: Trainer) -> Group:
    """The group of all ranks; None for a process alone."""
    together = trainer.world_size > 1 and distributed.is_available()
    return distributed.group.WORLD if together and distributed.is_initialized() else None


def gathered(value: Any, group: Group) -> list[Any]:
    """What each rank calls this with, by rank, on every rank."""
    if group is None:
        return [value]
    values: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(values, value, group)
    return values


def share_buffers(module: LightningModule, group: Group) -> None:
    """Gives every rank the buffers of the first, as DDP does before a forward in training.

    After its last step the ranks have different ones: running statistics of their own batches.
    """
    if group is not None:
        for buffer in module.buffers():
            distributed.broadcast(buffer, distributed.get_global_rank(group, 0), group)
