"""Results as files of the run directory: what every callback that has any shares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from lightning_opt.errors import UsageError
from lightning_opt.files import replacing

from ._flavors import Callback, is_a
from ._loggers import Copies, copy_to


class Named(Callback):
    """A callback whose files, and whose state in checkpoints, have the name ``name``."""

    def __init__(self, name: str) -> None:
        if not name or Path(name).name != name:
            raise UsageError(f"name is {name!r}: it has to be the name of a file, without folders.")
        self.name = name

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for other in callbacks:
            if other is not self and isinstance(other, Named) and other.name == self.name:
                kinds = " and ".join(dict.fromkeys((type(self).__name__, type(other).__name__)))
                raise UsageError(
                    f"Two callbacks ({kinds}) have name={self.name!r} and would write the same "
                    f"files: give one of them another name=."
                )

    # Not `state_dict`, for which Lightning refuses two of the same key, in words of its own.

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if state := self._state():
            checkpoint["callbacks"][self.state_key] = state

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if state := checkpoint.get("callbacks", {}).get(self.state_key):
            self._restore(state)

    def _state(self) -> dict[str, Any]:
        """What a run that goes on needs: tensors and plain Python, as checkpoints load safely."""
        return {}

    def _restore(self, state: dict[str, Any]) -> None:
        """Takes what :meth:`_state` gave."""


def run_directory(trainer: Trainer) -> Path:
    """Where the run has its files. For every rank to call, since it is told by the first.

    The logger's ``log_dir``, as ``trainer.log_dir`` has it; without a logger
    ``trainer.default_root_dir``. Of other loggers than Lightning's own two it is the folder of the
    run in their ``save_dir``, which runs share, as ModelCheckpoint has it.
    """
    directory = _directory(trainer) if trainer.is_global_zero else None
    return Path(str(trainer.strategy.broadcast(directory)))


def _directory(trainer: Trainer) -> str:
    logger: Any = trainer.logger
    if logger is None:
        return str(trainer.default_root_dir)
    if is_a(logger, "CSVLogger", "TensorBoardLogger"):
        return str(logger.log_dir)
    name, version = logger.name, logger.version
    version = f"version_{version}" if isinstance(version, int) else version
    parts = (str(part) for part in (name, version) if part is not None)
    return str(Path(logger.save_dir or trainer.default_root_dir, *parts))


def save(
    trainer: Trainer,
    directory: Path,
    name: str,
    values: Mapping[str, ArrayLike],
    *,
    figure: str | None,
    copies: Copies,
    step: int,
) -> list[Path]:
    """Writes ``{name}.npz`` and its picture, and copies to the loggers. For rank zero to call.

    Args:
        values: the arrays.
        figure: the function of ``lightning_opt.figures`` that draws them; None for no picture.
        copies: what loggers get beside the picture.
        step: how many training steps the result comes after.

    Returns:
        The files.
    """
    arrays = {key: np.asarray(value) for key, value in values.items()}
    paths = [directory / f"{name}.npz"]
    with replacing(paths[0]) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
    drawn, picture = None, None
    if figure is not None:
        import lightning_opt.figures as figures  # here, because matplotlib takes long to import

        drawn = getattr(figures, figure)(arrays)
        picture = figures.save(drawn, directory / f"{name}.png")
        paths.append(picture)
    # An epoch is one name in a logger, with its course over the steps.
    title = name.partition("-epoch=")[0]
    copy_to(trainer.loggers, title, copies, step=max(step - 1, 0), figure=drawn, picture=picture)
    return paths


def announce(callback: Callback, paths: list[Path]) -> None:
    """Says in one line where the files are, if there are any."""
    if not paths:
        return
    directory = paths[0].parent
    names = ", ".join(path.name for path in paths)
    rank_zero_info(f"{type(callback).__name__}: {names} in {directory}")
