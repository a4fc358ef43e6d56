"""The Hessian's spectrum at the weights that training ended in."""

from __future__ import annotations

import math
from collections.abc import Mapping

from numpy.typing import ArrayLike
from pytorch_lightning.utilities import rank_zero_warn

from lightning_opt.geometry import Spectrum, hessian, spectrum
from lightning_opt.geometry.spectrum import Reorthogonalize, check_arguments

from ._analysis import Analysis, Mode, Problem
from ._module_loss import LossOption, Split


class HessianSpectrum(Analysis):
    """Eigenvalue density, extreme eigenvalues and trace of the Hessian, for any LightningModule.

    At the end of ``fit``, on the device, the Hessian of the mean training loss over a fixed set of
    batches is analyzed by stochastic Lanczos quadrature (see :mod:`lightning_opt.geometry`). The
    loss is the module's own ``training_step`` with logging silenced. The module, its metrics and
    the random state are left exactly as they were found. Optimizers that have evaluation weights
    (``optimizer.eval()``) are evaluated at these.

    Files, in ``trainer.log_dir`` (without a logger: ``trainer.default_root_dir``): ``{name}.npz``
    and, drawn from it, ``{name}.png``. The arrays, read with ``numpy.load``:

    ======================== ======================================================================
    ``nodes``, ``weights``   the density: node k of probe p has weight ``weights[p, k]``; shape
                             (probes, steps), padded with NaN nodes of weight 0
    ``eigenvalues``          the ``top`` largest, descending, then the ``bottom`` smallest,
                             descending; empty without re-orthogonalization
    ``residuals``            a bound on the error of each eigenvalue
    ``trace``                estimate of the trace
    ``trace_stderr``         its standard error; NaN with one probe
    ``dimension``            the size of the Hessian, as ``parameters``
    ``reorthogonalized``     whether the Lanczos vectors were kept orthogonal
    ``loss``                 the loss at the weights
    ``terms``                number of terms (examples, tokens) that the loss is the mean of
    ``parameters``           number of trainable parameters
    ``epoch``, ``step``      ``trainer.current_epoch``, ``trainer.global_step``
    ``split``, ``mode``      as given below
    ``seed``                 as given below
    ======================== ======================================================================

    Where the loss or the Hessian is not finite there is no spectrum: a warning is given, ``result``
    is None, no file is written and ``fit`` goes on. Under ``fast_dev_run`` two Lanczos steps are
    taken on the one batch, and nothing is written. Under DDP every rank analyzes the batches of its
    own shard, and those of rank zero are written.

    Args:
        loss: ``loss(module, batch)`` or the name of a method that takes the batch, if
            ``training_step`` is not the loss to analyze.
        batches: how many batches, taken once from a seeded epoch of the data loader. A batch counts
            with its number of terms: the module's ``loss_terms(batch)`` if it has one; else the
            integer ``batch["labels"]`` that are not -100; else, with a warning, its batch size.
        split: which data loader: ``"train"`` or ``"val"``.
        mode: ``"eval"`` switches dropout off and has BatchNorm use its running statistics;
            ``"train"`` leaves the submodules' flags as training had them. Steps that draw random
            numbers start from the same seed every time.
        every_n_epochs: analyze also at the end of every n-th training epoch, into
            ``{name}-epoch=N.npz``, N counted from 0 as Lightning does.
        steps: Lanczos steps, each about three gradients over the batches.
        probes: random start vectors; two or more give the trace a standard error.
        top: how many of the largest eigenvalues to list.
        bottom: how many of the smallest eigenvalues to list.
        reorthogonalize: ``"auto"``, ``"full"`` or ``"none"``, see ``geometry.spectrum``.
        name: of the files.
        seed: of the start vectors, of the data loader's shuffling and of the steps.

    Attributes:
        result: the last :class:`~lightning_opt.geometry.Spectrum`, or None.

    Raises:
        UsageError: an option out of range; a module that optimizes manually, without ``loss=``; no
            trainable parameters; parameters split over devices (FSDP, DeepSpeed).

    Example:
        >>> import pytorch_lightning as pl
        >>> trainer = pl.Trainer(callbacks=[HessianSpectrum(batches=4, top=3)], logger=False)
    """

    _figure = "spectrum"

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
        top: int = 5,
        bottom: int = 5,
        reorthogonalize: Reorthogonalize = "auto",
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
        )
        check_arguments(steps, probes, top, bottom, reorthogonalize)
        self.steps = steps
        self.probes = probes
        self.top = top
        self.bottom = bottom
        self.reorthogonalize = reorthogonalize
        self.result: Spectrum | None = None

    def _analyze(self, problem: Problem) -> Mapping[str, ArrayLike] | None:
        steps = min(self.steps, 2) if problem.quick else self.steps
        operator = hessian(problem.loss, problem.params, problem.batches)
        try:
            if not math.isfinite(problem.value):
                raise FloatingPointError("The loss is not finite.")
            with problem.progress(self.probes * min(steps, operator.shape[0])) as progress:
                self.result = spectrum(
                    operator,
                    steps=steps,
                    probes=self.probes,
                    top=self.top,
                    bottom=self.bottom,
                    reorthogonalize=self.reorthogonalize,
                    seed=self.seed,
                    progress=progress,
                )
        except FloatingPointError as error:
            self.result = None
            rank_zero_warn(
                f"{type(self).__name__}: {error} There is no spectrum (the loss at the weights is "
                f"{problem.value}) and no file is written."
            )
            return None
        return self.result.to_arrays()
