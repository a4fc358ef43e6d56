"""What the analysis callbacks share: when they run, on which loss, and where results go."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import ArrayLike
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from tqdm import tqdm

from lightning_opt.errors import UsageError
from lightning_opt.files import replacing

from ._module_loss import Batch, LossOption, ModuleLoss, Split, check_loss, take_batches
from ._untouched import untouched
from .evaluation_weights import evaluation_weights

Mode = Literal["eval", "train"]


@dataclass(frozen=True)
class Problem:
    """The loss to analyze.

    Attributes:
        loss: of a batch.
        params: the trainable parameters.
        batches: the fixed batches.
        value: the loss at the present weights.
        quick: whether this is only a trial of the code (``fast_dev_run``).
        progress: shows a bar of so many steps and yields what to call after each.
    """

    loss: ModuleLoss
    params: list[nn.Parameter]
    batches: list[Batch]
    value: float
    quick: bool
    progress: Callable[[int], AbstractContextManager[Callable[[], object] | None]]


class Analysis(pl.Callback):
    """Runs :meth:`_analyze` at the end of training, and writes its arrays and their figure.

    The hook is ``on_train_end``, the last one with the module on its device: ``on_fit_end`` runs
    after teardown has moved it to the CPU.
    """

    _figure: ClassVar[str]
    """The function of ``lightning_opt.figures`` that draws the arrays."""

    def __init__(
        self,
        *,
        loss: LossOption,
        batches: int,
        split: Split,
        mode: Mode,
        every_n_epochs: int | None,
        name: str,
        seed: int,
    ) -> None:
        for option, value in (("batches", batches), ("every_n_epochs", every_n_epochs)):
            if value is not None and value < 1:
                raise UsageError(f"{option} is {value}: it has to be at least 1.")
        for option, choice, choices in (("split", split, Split), ("mode", mode, Mode)):
            if choice not in get_args(choices):
                known = " or ".join(map(repr, get_args(choices)))
                raise UsageError(f"{option} is {choice!r}: it has to be {known}.")
        self.loss = loss
        self.batches = batches
        self.split = split
        self.mode = mode
        self.every_n_epochs = every_n_epochs
        self.name = name
        self.seed = seed
        self._taken: list[Batch] | None = None

    @abstractmethod
    def _analyze(self, problem: Problem) -> Mapping[str, ArrayLike] | None:
        """Sets ``result`` and returns the arrays to write, or None if there is nothing to write."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        check_loss(pl_module, self.loss)
        if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
            raise UsageError(
                f"{type(self).__name__} needs whole parameters on every device, and "
                f"{type(trainer.strategy).__name__} may split them: train on one device, or with "
                f"DDP."
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Later than setup, because configure_model may have built the layers in between.
        self._taken = None
        if not any(param.requires_grad for param in pl_module.parameters()):
            raise UsageError(
                f"{type(self).__name__}: {type(pl_module).__name__} has no trainable parameters."
            )
        if self.split == "val" and not trainer.enable_validation:
            raise UsageError(
                f"{type(self).__name__}(split='val') needs a validation_step and a validation data "
                f"loader: add them, or use split='train'."
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        if self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0:
            self._run(trainer, pl_module, f"{self.name}-epoch={epoch}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._run(trainer, pl_module, self.name)
        self._taken = None  # they hold memory of the device

    def _run(self, trainer: pl.Trainer, module: pl.LightningModule, name: str) -> None:
        # On every rank, because it is broadcast, and before the loggers that know it are silenced.
        directory = Path(trainer.log_dir or trainer.default_root_dir)
        with untouched(trainer, module), self._conditions(trainer, module):
            problem = self._problem(trainer, module)
            arrays = self._analyze(problem)
        if arrays is None or _is_trial(trainer) or not trainer.is_global_zero:
            return
        self._write(directory, name, {**self._provenance(trainer, problem), **arrays})

    @contextmanager
    def _conditions(self, trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
        """The weights, modes and precision that the loss is evaluated with."""
        with ExitStack() as stack:
            stack.enter_context(evaluation_weights(trainer.optimizers))
            # The plugin sets the default dtype; its autocast would add noise to small differences.
            stack.enter_context(trainer.precision_plugin.train_step_context())
            stack.enter_context(torch.autocast(module.device.type, enabled=False))
            if any(isinstance(submodule, nn.RNNBase) for submodule in module.modules()):
                # cuDNN's recurrent networks have no backward in eval mode, and never a second one.
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            if self.mode == "eval":
                module.eval()
            yield

    def _problem(self, trainer: pl.Trainer, module: pl.LightningModule) -> Problem:
        if self._taken is None:
            self._taken = take_batches(trainer, module, self.split, self.batches, self.seed)
        loss = ModuleLoss(module, self.loss, self.seed)
        return Problem(
            loss=loss,
            params=[param for param in module.parameters() if param.requires_grad],
            batches=self._taken,
            value=loss.at_rest(self._taken),
            quick=_is_trial(trainer),
            progress=lambda total: _progress(trainer, total, type(self).__name__),
        )

    def _provenance(self, trainer: pl.Trainer, problem: Problem) -> dict[str, ArrayLike]:
        """What any analysis stores beside its results."""
        return {
            "loss": problem.value,
            "terms": sum(batch.terms for batch in problem.batches),
            "parameters": sum(param.numel() for param in problem.params),
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "split": self.split,
            "mode": self.mode,
            "seed": self.seed,
        }

    def _write(self, directory: Path, name: str, values: Mapping[str, ArrayLike]) -> None:
        import lightning_opt.figures as figures  # here, because matplotlib takes long to import

        arrays = {key: np.asarray(value) for key, value in values.items()}
        with replacing(directory / f"{name}.npz") as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]
        figures.save(getattr(figures, self._figure)(arrays), directory / f"{name}.png")


def _is_trial(trainer: pl.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


@contextmanager
def _progress(
    trainer: pl.Trainer, total: int, description: str
) -> Iterator[Callable[[], object] | None]:
    """A bar beside the trainer's, where that one is shown, and gone afterwards."""
    trainers_bar: Any = trainer.progress_bar_callback
    if trainers_bar is None or not getattr(trainers_bar, "is_enabled", True):
        yield None
        return
    with tqdm(total=total, desc=description, leave=False) as bar:
        yield bar.update
