"""Copies of a result in whatever loggers a trainer has.

The run directory is where results are; these are copies, for those who look there. A logger is
known by the name of its class, since each flavor of Lightning has its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._flavors import is_a

if TYPE_CHECKING:
    from lightning_opt.figures import Figure


@dataclass(frozen=True)
class Copies:
    """What a result has for loggers.

    Attributes:
        scalars: by name.
        columns: of a table, each a list of numbers by its name; may be none.
    """

    scalars: Mapping[str, float]
    columns: Mapping[str, Sequence[float]] = field(default_factory=dict)


def copy_to(
    loggers: Sequence[Any],
    name: str,
    copies: Copies,
    *,
    step: int,
    figure: Figure | None = None,
    picture: Path | None = None,
) -> None:
    """Writes to each logger what it has a place for, below ``name/``. For rank zero to call.

    Any logger gets the scalars; W&B has them in the run's summary, too, by itself, and gets the
    picture and the table; TensorBoard gets the figure.

    Args:
        step: the training step that the result belongs to.
        figure: the figure.
        picture: the file it was saved in.
    """
    scalars = {f"{name}/{key}": float(value) for key, value in copies.scalars.items()}
    for logger in loggers:
        if scalars:
            logger.log_metrics(scalars, step=step)
        if is_a(logger, "WandbLogger"):
            if copies.columns:
                rows = [list(row) for row in zip(*copies.columns.values(), strict=True)]
                logger.log_table(f"{name}/table", columns=list(copies.columns), data=rows)
            if picture is not None:
                logger.log_image(f"{name}/figure", [str(picture)])
        elif is_a(logger, "TensorBoardLogger") and figure is not None:
            logger.experiment.add_figure(f"{name}/figure", figure, global_step=step, close=False)
        logger.save()
