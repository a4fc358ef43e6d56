"""The Hessian's spectrum at the weights that training ended in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_opt.geometry import Spectrum, hessian, spectrum
from lightning_opt.geometry.operator import Method
from lightning_opt.geometry.spectrum import Reorthogonalize, check_arguments

from ._analysis import Analysis, Mode, Problem
from ._batches import Split
from ._loggers import Copies
from ._module_loss import LossOption
from ._results import save


class HessianSpectrum(Analysis):
    """Eigenvalue density, extreme eigenvalues and trace of the Hessian, for any LightningModule.

    At the end of ``fit``, on the device, the Hessian of the mean training loss over a fixed set of
    batches is analyzed by stochastic Lanczos quadrature (see :mod:`lightning_opt.geometry`). The
    loss is the module's own ``training_step`` with logging silenced. The module, its metrics and
    the random state are left exactly as they were found. Optimizers that have evaluation weights
    (``optimizer.eval()``) are evaluated at these. In a run of ``validate`` the weights are those
    that it validates, such as a checkpoint's; see also :func:`~lightning_opt.callbacks.analyze`.

    Files, in the run directory (``trainer.log_dir``; without a logger
    ``trainer.default_root_dir``): ``{name}.npz`` and, drawn from it, ``{name}.png``; copies go to
    the trainer's loggers. The arrays, read with ``numpy.load``:

    ======================== ======================================================================
    ``nodes``, ``weights``   the density: node k of probe p has weight ``weights[p, k]``; shape
                             (probes, steps), padded with NaN nodes of weight 0
    ``eigenvalues``          the ``top`` largest, descending, then the ``bottom`` smallest,
                             descending; empty without re-orthogonalization
    ``residuals``            a bound on the error of each eigenvalue
    ``trace``                estimate of the trace
    ``trace_stderr``         its standard error over the samples, or else the probes; NaN with one
    ``dimension``            the size of the Hessian, as ``parameters``
    ``reorthogonalized``     whether the Lanczos vectors were kept orthogonal
    ``loss``                 the loss at the weights
    ``terms``                number of terms (examples, tokens) that the loss is the mean of
    ``parameters``           number of trainable parameters
    ``epoch``, ``step``      ``trainer.current_epoch``, ``trainer.global_step``
    ``split``, ``mode``      as given below
    ``seed``                 as given below
    ======================== ======================================================================

    With ``every_n_epochs`` there is also ``{name}-history.npz``, with a row for each analysis of
    the run, and its figure: the largest eigenvalue over time, and 2/η, above which gradient descent
    is unstable (Cohen et al. 2021, arXiv:2103.00065):

    ======================== ======================================================================
    ``epochs``, ``steps``    when, each of shape (rows,)
    ``eigenvalues``          the ``top`` largest, shape (rows, top); NaN where there are none
    ``residuals``            of each eigenvalue
    ``trace``, ``losses``    the trace and the loss at the weights
    ``learning_rates``       the largest of the parameter groups', in the last step before
    ======================== ======================================================================

    Where the loss or the Hessian is not finite there is no spectrum: a warning is given, ``result``
    is None, no file is written and ``fit`` goes on. Under ``fast_dev_run`` two Lanczos steps and
    one sample are taken on the one batch, and nothing is written. Under DDP every rank takes
    ``batches`` of its own shard, and the Hessian is that of the mean over all of them.

    Args:
        loss: ``loss(module, batch)`` or the name of a method that takes the batch, if
            ``training_step`` is not the loss to analyze.
        batches: how many batches, taken once from a seeded epoch of the data loader. A batch counts
            with its number of terms: the module's ``loss_terms(batch)`` if it has one; else the
            integer ``batch["labels"]`` that are not -100; else, with a warning, its batch size.
        split: which data loader: ``"train"``, of a data module that has one its
            ``analysis_dataloader()``, or ``"val"``.
        mode: ``"eval"`` switches dropout off and has BatchNorm use its running statistics;
            ``"train"`` leaves the submodules' flags as training had them. Steps that draw random
            numbers start from the same seed every time.
        every_n_epochs: analyze also at the end of every n-th training epoch, into
            ``{name}-epoch=N.npz``, N counted from 0 as Lightning does.
        steps: Lanczos steps, each two to three gradients over the batches.
        probes: random start vectors; with more of them the density is less noisy.
        samples: random vectors for the trace alone, one product with the Hessian each; two or more
            give it a standard error. With 0 it comes from the probes.
        top: how many of the largest eigenvalues to list.
        bottom: how many of the smallest eigenvalues to list.
        reorthogonalize: ``"auto"``, ``"full"`` or ``"none"``, see ``geometry.spectrum``.
        method: of the products with the Hessian, see ``geometry.hessian``.
        memory: how many bytes graphs kept between the products may take, see
            ``geometry.hessian``; by default half of what is free.
        resume: a file in which the analysis at the end is kept while it lasts. One that was killed
            goes on from it, if the weights are the same.
        name: of the files.
        seed: of the start vectors, of the data loader's shuffling and of the steps.

    Attributes:
        result: the last :class:`~lightning_opt.geometry.Spectrum`, or None.

    Raises:
        UsageError: an option out of range; a module that optimizes manually, without ``loss=``; no
            trainable parameters; parameters split over devices (FSDP, DeepSpeed); a callback of the
            same name.

    Example:
        >>> import pytorch_lightning as pl
        >>> trainer = pl.Trainer(callbacks=[HessianSpectrum(batches=4, top=3)], logger=False)
    """

    _figure = "spectrum"
    _moves_weights = False

    def __init__(
        self,
        *,
        loss: LossOption = None,
        batches: int = 8,
        split: Split = "train",
        mode: Mode = "eval",
        every_n_epochs: int | None = None,
        steps: int = 100,
        probes: int = 1,
        samples: int = 5,
        top: int = 5,
        bottom: int = 5,
        reorthogonalize: Reorthogonalize = "auto",
        method: Method = "auto",
        memory: int | None = None,
        resume: str | None = None,
        name: str = "spectrum",
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
            resume=resume,
        )
        check_arguments(steps, probes, top, bottom, reorthogonalize, samples=samples)
        self.steps = steps
        self.probes = probes
        self.samples = samples
        self.top = top
        self.bottom = bottom
        self.reorthogonalize = reorthogonalize
        self.method = method
        self.memory = memory
        self.result: Spectrum | None = None
        self._history: list[dict[str, Any]] = []
        self._rates: list[float | Tensor] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.every_n_epochs is not None:
            # Here, because a scheduler has changed them by the time the training is over.
            self._rates = _learning_rates(trainer.optimizers)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.global_step == 0:  # a checkpoint, whose history this one goes on with, is next
            self._history = []

    def _state(self) -> dict[str, Any]:
        return {"history": self._history} if self._history else {}

    def _restore(self, state: dict[str, Any]) -> None:
        self._history = list(state["history"])

    def _analyze(self, problem: Problem) -> Mapping[str, ArrayLike] | None:
        steps = min(self.steps, 2) if problem.quick else self.steps
        samples = min(self.samples, 1) if problem.quick else self.samples
        self.result = None
        try:
            if not math.isfinite(problem.value):
                raise FloatingPointError("The loss is not finite.")
            operator = hessian(
                problem.loss,
                problem.params,
                problem.batches,
                method=self.method,
                memory=self.memory,
                group=problem.group,
            )
            total = samples + self.probes * min(steps, operator.shape[0])
            with problem.progress(total) as progress:
                self.result = spectrum(
                    operator,
                    steps=steps,
                    probes=self.probes,
                    samples=samples,
                    top=self.top,
                    bottom=self.bottom,
                    reorthogonalize=self.reorthogonalize,
                    seed=self.seed,
                    resume=problem.resume,
                    group=problem.group,
                    progress=progress,
                )
        except FloatingPointError as error:
            rank_zero_warn(
                f"{type(self).__name__}: {error} There is no spectrum (the loss at the weights is "
                f"{problem.value}) and no file is written."
            )
            return None
        return self.result.to_arrays()

    def _copies(self) -> Copies:
        assert self.result is not None
        scalars = {"trace": self.result.trace}
        columns = {}
        if self.result.eigenvalues.size:
            scalars["largest_eigenvalue"] = float(self.result.eigenvalues[0])
            columns = {
                "eigenvalue": self.result.eigenvalues.tolist(),
                "residual": self.result.residuals.tolist(),
            }
        return Copies(scalars, columns)

    def _save(
        self, trainer: Trainer, directory: Path, name: str, values: Mapping[str, Any]
    ) -> list[Path]:
        paths = super()._save(trainer, directory, name, values)
        if self.every_n_epochs is None or trainer.state.fn != "fit":
            return paths
        if not self._history or self._history[-1]["steps"] != values["step"]:
            self._history.append(_row(values, self.top, self._rates))
        return paths + save(
            trainer,
            directory,
            f"{self.name}-history",
            _table(self._history),
            figure="sharpness",
            copies=Copies({}),
            step=values["step"],
        )


def _learning_rates(optimizers: Iterable[Optimizer]) -> list[float | Tensor]:
    """Of every parameter group. A tensor is copied, for a scheduler changes it in place."""
    rates = (group["lr"] for optimizer in optimizers for group in optimizer.param_groups)
    return [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]


def _row(values: Mapping[str, Any], top: int, rates: list[float | Tensor]) -> dict[str, Any]:
    """One analysis in the history, as a checkpoint can hold it."""
    largest = {key: np.full(max(top, 1), np.nan) for key in ("eigenvalues", "residuals")}
    for key, row in largest.items():
        found = np.asarray(values[key])[:top]
        row[: len(found)] = found
    return {
        "epochs": int(values["epoch"]),
        "steps": int(values["step"]),
        **{key: row.tolist() for key, row in largest.items()},
        "trace": float(values["trace"]),
        "losses": float(values["loss"]),
        "learning_rates": max(map(float, rates), default=math.nan),
    }


def _table(rows: list[dict[str, Any]]) -> dict[str, ArrayLike]:
    """The arrays of the history."""
    return {key: [row[key] for row in rows] for key in rows[0]}
