"""Validate, save and hand over the averaged weights of optimizers that have two sets of weights.

Lookahead evaluates its slow weights, Schedule-Free its average. Both say so by two methods:
``optimizer.eval()`` puts the weights to evaluate into the model, ``optimizer.train()`` puts those
to train back. :func:`evaluation_weights` calls them around a block, :class:`EvaluationWeights`
calls them at the right moments of a fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

from pytorch_lightning import LightningModule, Trainer
from torch.optim import Optimizer

from ._flavors import Callback


@runtime_checkable
class _Averaging(Protocol):
    def eval(self) -> None: ...

    def train(self) -> None: ...


def _averaging(optimizers: Iterable[Optimizer]) -> list[_Averaging]:
    return [optimizer for optimizer in optimizers if isinstance(optimizer, _Averaging)]


def _in_train_mode(optimizer: Any) -> bool:
    # The groups say it, as in schedulefree, which is also where Lookahead has it from; a wrapper
    # like schedulefree's says it itself. Who says nothing is taken to train.
    mode = optimizer.param_groups[0].get("train_mode", getattr(optimizer, "train_mode", True))
    return bool(mode)


@contextmanager
def evaluation_weights(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """Have the models hold the weights that are to be evaluated, for the length of a block.

    Every optimizer with ``eval()`` and ``train()`` is put into evaluation mode, and at the end,
    also after an error, back into the mode that it had. Others are left alone.

    >>> import torch
    >>> from functools import partial
    >>> from lightning_opt.optimizers import Lookahead
    >>> w = torch.nn.Parameter(torch.zeros(()))
    >>> optimizer = Lookahead([w], partial(torch.optim.SGD, lr=1.0))
    >>> w.grad = torch.tensor(-1.0)
    >>> optimizer.step()
    >>> with evaluation_weights([optimizer]):
    ...     print(w.item())
    0.0
    >>> w.item()
    1.0
    """
    switched = [optimizer for optimizer in _averaging(optimizers) if _in_train_mode(optimizer)]
    try:
        for optimizer in switched:
            optimizer.eval()
        yield
    finally:
        for optimizer in switched:
            optimizer.train()


class EvaluationWeights(Callback):
    """Use the averaged weights wherever a fit uses weights for anything but training.

    Validation, the sanity check included, sees them; checkpoints hold them, so that
    ``load_from_checkpoint`` and ``trainer.test(ckpt_path=...)`` need to know of nothing; and the
    module has them when fit ends. Training always goes on from the weights to train, which
    checkpoints hold in the optimizer's state, bitwise: resume with this callback too. With
    optimizers that do not average it does nothing. It belongs before other callbacks, so that
    they find the module in the state described here.

    >>> from pytorch_lightning import Trainer
    >>> trainer = Trainer(callbacks=[EvaluationWeights()], logger=False)
    """

    def __init__(self) -> None:
        self._save_checkpoint: Callable[..., None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # There is no hook for this. `dump_checkpoint` collects the module's weights first and
        # calls `on_save_checkpoint` last, and does not call it at all for
        # ModelCheckpoint(save_weights_only=True). All ways to a checkpoint (ModelCheckpoint at
        # the end of a batch, an epoch, validation or training, OnExceptionCheckpoint, the tuners,
        # SLURM's requeue, the user) lead through `trainer.save_checkpoint`, which has taken its
        # copies when it returns, with AsyncCheckpointIO too.
        if stage == "fit":
            self._save_checkpoint = trainer.save_checkpoint
            save = partial(_save_evaluation_weights, trainer, self._save_checkpoint)
            trainer.save_checkpoint = save  # type: ignore[method-assign]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._save_checkpoint is not None:
            trainer.save_checkpoint = self._save_checkpoint  # type: ignore[method-assign]
            self._save_checkpoint = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The optimizers have been restored by now, from a checkpoint always in evaluation mode;
        # Schedule-Free wants to be told to train even before its first step.
        _train(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Also called for the sanity check, whose optimizers may be freshly restored, and by
        # trainer.validate(), which after a fit still has that fit's optimizers.
        if trainer.state.fn == "fit":
            _evaluate(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            _train(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before on_fit_end, which comes after the model has left its device, and before
        # ModelCheckpoint's own on_train_end: Lightning moves checkpoint callbacks to the end.
        _evaluate(trainer)


def _evaluate(trainer: Trainer) -> None:
    for optimizer in _averaging(trainer.optimizers):
        if _in_train_mode(optimizer):
            optimizer.eval()


def _train(trainer: Trainer) -> None:
    for optimizer in _averaging(trainer.optimizers):
        if not _in_train_mode(optimizer):
            optimizer.train()


def _save_evaluation_weights(
    trainer: Trainer, save: Callable[..., None], *args: Any, **kwargs: Any
) -> None:
    with evaluation_weights(trainer.optimizers):
        save(*args, **kwargs)
