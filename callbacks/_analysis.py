"""What the analysis callbacks share: when they run, on which loss, and where results go."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from numpy.typing import ArrayLike
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from tqdm import tqdm

from lightning_opt.errors import UsageError

from ._batches import (
    Batch,
    Split,
    batches_of_all_ranks,
    has_training_data,
    take_batches,
    total_terms,
)
from ._flavors import SPLITTING, is_a
from ._loggers import Copies
from ._module_loss import LossOption, ModuleLoss, check_loss, unknown_metric
from ._ranks import Group, gathered, group_of, share_buffers
from ._results import Named, announce, run_directory, save
from ._untouched import gradients_aside, untouched
from .evaluation_weights import evaluation_weights

Mode = Literal["eval", "train"]


@dataclass(frozen=True)
class Problem:
    """The loss to analyze.

    Attributes:
        module: the module.
        loss: of a batch.
        params: the trainable parameters.
        batches: the fixed batches: of this rank, or for an analysis that moves the weights of all.
        value: the loss at the present weights, over the batches of all ranks.
        terms: how many terms it is the mean of.
        group: the ranks that analyze it together; None for a process alone.
        resume: the file to keep the state of the analysis in.
        quick: whether this is only a trial of the code (``fast_dev_run``).
        progress: shows a bar of so many steps and yields what to call after each.
    """

    module: LightningModule
    loss: ModuleLoss
    params: list[nn.Parameter]
    batches: list[Batch]
    value: float
    terms: float
    group: Group
    resume: str | None
    quick: bool
    progress: Callable[[int], AbstractContextManager[Callable[[], object] | None]]


class Analysis(Named):
    """Runs :meth:`_analyze` at the end of training, and writes its arrays and their figure.

    The hook is ``on_train_end``, the last one with the module on its device: ``on_fit_end`` runs
    after teardown has moved it to the CPU. In a run of ``validate`` it is ``on_validation_end``.
    """

    _figure: ClassVar[str]
    """The function of ``lightning_opt.figures`` that draws the arrays."""
    _moves_weights: ClassVar[bool]
    """Whether it moves the weights, and puts them back, rather than differentiate the loss."""

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
        resume: str | None,
        metrics: Sequence[str] = (),
    ) -> None:
        super().__init__(name)
        for option, value in (("batches", batches), ("every_n_epochs", every_n_epochs)):
            if value is not None and value < 1:
                raise UsageError(f"{option} is {value}: it has to be at least 1.")
        for option, choice, choices in (("split", split, Split), ("mode", mode, Mode)):
            if choice not in get_args(choices):
                known = " or ".join(map(repr, get_args(choices)))
                raise UsageError(f"{option} is {choice!r}: it has to be {known}.")
        if isinstance(metrics, str):
            raise UsageError(f"metrics is {metrics!r}: it has to be a list of names.")
        self.loss = loss
        self.batches = batches
        self.split = split
        self.mode = mode
        self.every_n_epochs = every_n_epochs
        self.seed = seed
        self.resume = resume
        self.metrics = tuple(metrics)
        self._taken: list[Batch] | None = None
        self._unchecked: set[str] = set()
        self._loaded: tuple[int, int] | None = None

    @abstractmethod
    def _analyze(self, problem: Problem) -> Mapping[str, ArrayLike] | None:
        """Sets ``result`` and returns the arrays to write, or None if there is nothing to write."""

    @abstractmethod
    def _copies(self) -> Copies:
        """What loggers get of ``result``."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage not in ("fit", "validate"):
            return
        super().setup(trainer, pl_module, stage)
        self._loaded = None
        check_loss(pl_module, self.loss)
        if is_a(trainer.strategy, *SPLITTING):
            raise UsageError(
                f"{type(self).__name__} needs whole parameters on every device, and "
                f"{type(trainer.strategy).__name__} may split them: train on one device, or with "
                f"DDP."
            )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._loaded = (checkpoint["epoch"], checkpoint["global_step"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Later than setup, because configure_model may have built the layers in between.
        self._check(trainer, pl_module)
        if self.split == "val" and not trainer.enable_validation:
            raise UsageError(
                f"{type(self).__name__}(split='val') needs a validation_step and a validation data "
                f"loader: add them, or use split='train'."
            )
        # Where the loss is another one there is no telling before it is evaluated.
        self._unchecked = set(self.metrics) if self.loss is None else set()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "validate":
            return
        self._check(trainer, pl_module)
        if self.split == "train" and not has_training_data(trainer):
            raise UsageError(
                f"{type(self).__name__}(split='train') needs the training data, and this run of "
                f"validate has none: give the trainer the datamodule, or use split='val'."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        if not self._unchecked or outputs is None:
            return
        results = trainer._results
        logged = {result.meta.name for result in (results or {}).values()}
        for name in self._unchecked - logged:
            raise unknown_metric(f"{type(pl_module).__name__}.training_step", name, logged)
        self._unchecked = set()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0:
            self._run(trainer, pl_module, f"{self.name}-epoch={epoch}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        announce(self, self._run(trainer, pl_module, self.name))
        self._taken = None  # they hold memory of the device

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self.on_train_end(trainer, pl_module)

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        """Refuses, before any work, what can be seen now only."""
        self._taken = None
        kind = type(self).__name__
        if not any(param.requires_grad for param in module.parameters()):
            raise UsageError(f"{kind}: {type(module).__name__} has no trainable parameters.")
        if self.mode == "train" and trainer.world_size > 1:
            for name, layer in module.named_modules():
                if isinstance(layer, nn.SyncBatchNorm):
                    raise UsageError(
                        f"{kind}(mode='train'): {name} is a SyncBatchNorm, whose ranks would wait "
                        f"for each other at different weights: use mode='eval'."
                    )

    def _run(self, trainer: Trainer, module: LightningModule, name: str) -> list[Path]:
        """Analyzes the module as it is; the files that this process wrote."""
        # On every rank, because it is broadcast, and before the loggers that know it are silenced.
        directory = run_directory(trainer)
        # A run of validate is in inference mode, whose tensors nothing can be computed back from.
        with torch.inference_mode(False), self._conditions(trainer, module):
            # Every epoch has another one.
            resume = self.resume if name == self.name else None
            problem = self._problem(trainer, module, resume)
            arrays = self._analyze(problem)
        if arrays is None or _is_trial(trainer) or not trainer.is_global_zero:
            return []
        values = {**self._provenance(trainer, problem), **arrays}
        return self._save(trainer, directory, name, values)

    def _save(
        self, trainer: Trainer, directory: Path, name: str, values: Mapping[str, Any]
    ) -> list[Path]:
        return save(
            trainer,
            directory,
            name,
            values,
            figure=self._figure,
            copies=self._copies(),
            step=values["step"],
        )

    @contextmanager
    def _conditions(self, trainer: Trainer, module: LightningModule) -> Iterator[None]:
        """The weights, modes and precision of the loss; afterwards all is as it was."""
        params = [param for param in module.parameters() if param.requires_grad]
        with ExitStack() as stack:
            # Copies of weights that the analysis itself puts back would only take room.
            spared = params if self._moves_weights else ()
            stack.enter_context(untouched(trainer, module, except_for=spared))
            stack.enter_context(gradients_aside(params))
            stack.enter_context(evaluation_weights(trainer.optimizers))
            # The plugin sets the default dtype; its autocast would add noise to small differences.
            stack.enter_context(trainer.precision_plugin.train_step_context())
            stack.enter_context(torch.autocast(module.device.type, enabled=False))
            if any(isinstance(submodule, nn.RNNBase) for submodule in module.modules()):
                # cuDNN's recurrent networks have no backward in eval mode, and never a second one.
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            if self.mode == "eval":
                module.eval()
            elif trainer.state.fn == "validate":
                module.train()
            share_buffers(module, group_of(trainer))
            yield

    def _problem(self, trainer: Trainer, module: LightningModule, resume: str | None) -> Problem:
        group = group_of(trainer)
        if self._taken is None:
            self._taken = take_batches(trainer, module, self.split, self.batches, self.seed)
            if self._moves_weights:
                self._taken = batches_of_all_ranks(module, self._taken, group)
        loss = ModuleLoss(module, self.loss, self.seed, self.metrics)
        value = loss.at_rest(self._taken, differentiable=not self._moves_weights)
        terms = total_terms(self._taken)
        if not self._moves_weights:
            value, terms = sum(gathered(value, group)), sum(gathered(terms, group))
        return Problem(
            module=module,
            loss=loss,
            params=[param for param in module.parameters() if param.requires_grad],
            batches=self._taken,
            value=value / terms,
            terms=terms,
            group=group,
            resume=resume,
            quick=_is_trial(trainer),
            progress=lambda total: _progress(trainer, total, type(self).__name__),
        )

    def _provenance(self, trainer: Trainer, problem: Problem) -> dict[str, ArrayLike]:
        """What any analysis stores beside its results."""
        epoch, step = trainer.current_epoch, trainer.global_step
        if self._loaded is not None and (step == 0 or trainer.state.fn == "validate"):
            epoch, step = self._loaded  # the trainer itself has not trained these weights
        return {
            "loss": problem.value,
            "terms": problem.terms,
            "parameters": sum(param.numel() for param in problem.params),
            "epoch": epoch,
            "step": step,
            "split": self.split,
            "mode": self.mode,
            "seed": self.seed,
        }


def _is_trial(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


@contextmanager
def _progress(
    trainer: Trainer, total: int, description: str
) -> Iterator[Callable[[], object] | None]:
    """A bar beside the trainer's, where that one is shown, and gone afterwards."""
    trainers_bar: Any = trainer.progress_bar_callback
    if trainers_bar is None or not getattr(trainers_bar, "is_enabled", True):
        yield None
        return
    with tqdm(total=total, desc=description, leave=False) as bar:
        yield bar.update
