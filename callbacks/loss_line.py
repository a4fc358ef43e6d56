"""The loss along the straight line from where training started to where it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_opt.errors import UsageError
from lightning_opt.geometry import Line, directions, line

from ._analysis import Analysis, Mode, Problem
from ._batches import Split
from ._loggers import Copies
from ._module_loss import LossOption
from ._untouched import seed_all
from .loss_surface import BatchNorm

Start: TypeAlias = Literal["initial", "new"] | Callable[[], nn.Module]


class LossLine(Analysis):
    r"""The loss on the line through the initial and the trained weights, for any LightningModule.

    At the end of ``fit``, on the device, the mean training loss over a fixed set of batches,

    .. math:: f(a) = L(a \, \theta^* + (1 - a) \, \theta_1),

    is evaluated at equally spaced :math:`a` (Goodfellow et al. 2015, arXiv:1412.6544). The loss is
    the module's own ``training_step`` with logging silenced. The module, its metrics and the random
    state are left exactly as they were found. Optimizers that have evaluation weights
    (``optimizer.eval()``) are evaluated at these. In a run of ``validate`` the trained weights are
    those that it validates, and the initial ones what its checkpoint has of this callback's.

    Files, in the run directory (``trainer.log_dir``; without a logger
    ``trainer.default_root_dir``): ``{name}.npz`` and, drawn from it, ``{name}.png``; copies go to
    the trainer's loggers. The arrays, read with ``numpy.load``:

    ======================== ======================================================================
    ``coefficients``         a: 0 is the start, 1 the trained weights
    ``values``               the loss at each; a NaN or an infinity is stored as it is
    ``metric_NAME``          of every metric asked for, like ``values``
    ``start``                as given below
    ``batchnorm``            as given below
    ``loss``                 the loss at the trained weights
    ``terms``                number of terms (examples, tokens) that the loss is the mean of
    ``parameters``           number of trainable parameters
    ``epoch``, ``step``      ``trainer.current_epoch``, ``trainer.global_step``
    ``split``, ``mode``      as given below
    ``seed``                 as given below
    ======================== ======================================================================

    Under ``fast_dev_run`` three points are evaluated on the one batch, and nothing is written.
    Under DDP every rank takes ``batches`` of its own shard, all ranks get the batches of all, and
    they share the points out. A step that communicates with other ranks would wait forever.

    Args:
        start: :math:`\theta_1`: ``"initial"`` for the weights at the start of this fit, which are
            kept in host memory and in checkpoints; ``"new"`` for a newly initialized network, by
            the ``reset_parameters`` of its layers; or a function that makes a module with the same
            parameters.
        perturbation: Gaussian noise on ``start``, relative to the root mean square of each tensor.
        reach: the first and the last coefficient.
        resolution: how many points.
        loss: as in :class:`LossSurface`, and so are the following.
        batches: how many batches, taken once from a seeded epoch of the data loader.
        split: which data loader: ``"train"``, of a data module that has one its
            ``analysis_dataloader()``, or ``"val"``.
        mode: ``"eval"`` or ``"train"``.
        every_n_epochs: evaluate also at the end of every n-th training epoch.
        batchnorm: running statistics are ``"kept"``, or ``"estimated"`` again at every point.
        metrics: names that the step logs through ``self.log``.
        resume: a file in which the analysis at the end is kept while it lasts. One that was killed
            goes on from it, if the weights are the same.
        name: of the files.
        seed: of the new weights, of the data loader's shuffling and of the steps.

    Attributes:
        result: the last :class:`~lightning_opt.geometry.Line`, or None.

    Raises:
        UsageError: as :class:`LossSurface`; parameters of layers without ``reset_parameters``.

    Example:
        >>> import pytorch_lightning as pl
        >>> trainer = pl.Trainer(callbacks=[LossLine(reach=(0.0, 1.5))], logger=False)
    """

    _figure = "line"
    _moves_weights = True

    def __init__(
        self,
        *,
        start: Start = "initial",
        perturbation: float = 0.0,
        reach: tuple[float, float] = (-0.25, 1.25),
        resolution: int = 61,
        loss: LossOption = None,
        batches: int = 8,
        split: Split = "train",
        mode: Mode = "eval",
        every_n_epochs: int | None = None,
        batchnorm: BatchNorm = "kept",
        metrics: Sequence[str] = (),
        resume: str | None = None,
        name: str = "line",
        seed: int = 0,
    ) -> None:
        super().__init__(
            loss=loss,
            batches=batches,
            split=split,
            mode=mode,
            every_n_epochs=every_n_epochs,
            name=name,
            seed=seed,
            metrics=metrics,
            resume=resume,
        )
        if start not in ("initial", "new") and not callable(start):
            raise UsageError(f"start is {start!r}: it has to be 'initial', 'new' or a function.")
        if not 0 <= perturbation < float("inf"):
            raise UsageError(f"perturbation is {perturbation}: it has to be at least 0.")
        if len(reach) != 2 or not -float("inf") < reach[0] < reach[1] < float("inf"):
            raise UsageError(f"reach is {reach}: it has to be two numbers, the lower one first.")
        if resolution < 2:
            raise UsageError(f"resolution is {resolution}: it has to be at least 2.")
        if batchnorm not in get_args(BatchNorm):
            raise UsageError(f"batchnorm is {batchnorm!r}: it has to be 'kept' or 'estimated'.")
        self.start = start
        self.perturbation = perturbation
        self.reach = reach
        self.resolution = resolution
        self.batchnorm = batchnorm
        self.result: Line | None = None
        self._initial: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.global_step == 0:  # a checkpoint, with those of the run that goes on, is next
            self._initial = {}

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        super()._check(trainer, module)
        if self.start == "new":
            _check_resettable(module)
        if self.start == "initial" and trainer.state.fn == "validate" and not self._initial:
            raise _no_initial_weights()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.start == "initial" and not self._initial:
            # A copy, on the CPU too.
            self._initial = {
                name: param.detach().to("cpu", copy=True)
                for name, param in pl_module.named_parameters()
                if param.requires_grad
            }

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.start == "initial" and trainer.global_step == 0 and self._loaded is None:
            raise _no_initial_weights()
        super().on_train_end(trainer, pl_module)

    def _state(self) -> dict[str, Any]:
        return {"initial": self._initial} if self._initial else {}

    def _restore(self, state: dict[str, Any]) -> None:
        self._initial = dict(state["initial"])

    def _analyze(self, problem: Problem) -> Mapping[str, ArrayLike]:
        points = 3 if problem.quick else self.resolution
        start = self._start(problem)
        with problem.progress(points) as progress:
            self.result = line(
                problem.loss,
                problem.params,
                problem.batches,
                start,
                problem.params,
                np.linspace(*self.reach, points),
                batchnorm=self.batchnorm,
                model=problem.module,
                resume=problem.resume,
                group=problem.group,
                progress=progress,
            )
        start_name = self.start if isinstance(self.start, str) else "function"
        return {**self.result.to_arrays(), "start": start_name}

    def _copies(self) -> Copies:
        assert self.result is not None
        finite = self.result.values[np.isfinite(self.result.values)]
        return Copies({"lowest": finite.min(), "highest": finite.max()} if finite.size else {})

    def _start(self, problem: Problem) -> list[Tensor]:
        """The weights at coefficient 0."""
        seed_all(self.seed)
        names = [name for name, param in problem.module.named_parameters() if param.requires_grad]
        if self.start == "initial":
            weights = self._initial
        elif self.start == "new":
            with _reset(problem.module, problem.params):
                weights = {
                    name: param.detach().clone()
                    for name, param in problem.module.named_parameters()
                }
        else:
            weights = dict(self.start().named_parameters())
        held = [name for name in names if name not in weights]
        if held:
            rank_zero_warn(
                f"LossLine: the start has no {held[0]!r} (and {len(held) - 1} others), "
                f"which became trainable later: along the line they stay as they are."
            )
        params = dict(zip(names, problem.params, strict=True))
        start = [weights.get(name, params[name]).detach().cpu() for name in names]
        return directions.perturbed(start, scale=self.perturbation, seed=self.seed)


def _no_initial_weights() -> UsageError:
    return UsageError(
        "LossLine(start='initial') needs the weights that training started from, and there is "
        "neither training here nor a checkpoint with them: use start='new'."
    )


@contextmanager
def _reset(module: nn.Module, params: Sequence[Tensor]) -> Iterator[None]:
    """Newly initialized weights inside, the same on every device; the old ones afterwards."""
    old = [(param, param.detach().clone()) for param in params]
    try:
        for layer in module.modules():
            if _resettable(layer):
                layer.reset_parameters()  # type: ignore[operator]
        yield
    finally:
        for param, content in old:
            param.data.copy_(content)


def _resettable(layer: Any) -> bool:
    return callable(getattr(layer, "reset_parameters", None))


def _check_resettable(module: nn.Module) -> None:
    reset = {
        id(param)
        for layer in module.modules()
        if _resettable(layer)
        for param in layer.parameters()
    }
    for name, param in module.named_parameters():
        if param.requires_grad and id(param) not in reset:
            raise UsageError(
                f"LossLine(start='new'): the layer of {name!r} has no reset_parameters method: add "
                f"one, use start='initial', or pass a function that makes a new module."
            )
