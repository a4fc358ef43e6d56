"""The loss surface around the weights that training ended in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from pytorch_lightning import Trainer

from lightning_opt.errors import UsageError
from lightning_opt.geometry import Plane, plane
from lightning_opt.geometry import directions as geometry_directions

from ._analysis import Analysis, Mode, Problem
from ._batches import Split
from ._loggers import Copies
from ._module_loss import LossOption

Directions = Literal["filter", "layer"]
BatchNorm = Literal["kept", "estimated"]


class LossSurface(Analysis):
    """The loss over a plane through the trained weights, for any LightningModule.

    At the end of ``fit``, on the device, the mean training loss over a fixed set of batches is
    evaluated on a grid spanned by two random directions, orthogonal to each other and normalized to
    the weights (Li et al. 2018, arXiv:1712.09913). The loss is the module's own ``training_step``
    with logging silenced. The module, its metrics and the random state are left exactly as they
    were found. Optimizers that have evaluation weights (``optimizer.eval()``) are evaluated at
    these. In a run of ``validate`` the weights are those that it validates, such as a checkpoint's;
    see also :func:`~lightning_opt.callbacks.analyze`.

    Files, in the run directory (``trainer.log_dir``; without a logger
    ``trainer.default_root_dir``): ``{name}.npz`` and, drawn from it, ``{name}.png``; copies go to
    the trainer's loggers. The arrays, read with ``numpy.load``:

    ======================== ======================================================================
    ``alphas``, ``betas``    coordinates along the first and the second direction
    ``values``               ``values[i, j]`` is the loss at ``alphas[i], betas[j]``; a NaN or an
                             infinity is stored as it is
    ``metric_NAME``          of every metric asked for, like ``values``
    ``directions``           how they were normalized, as given below
    ``evaluated``            where; elsewhere values are interpolated (see ``tolerance``)
    ``tolerance``, ``clip``  as given below; ``clip`` is infinite where all are evaluated
    ``batchnorm``            as given below
    ``loss``                 the loss at the weights
    ``terms``                number of terms (examples, tokens) that the loss is the mean of
    ``parameters``           number of trainable parameters
    ``epoch``, ``step``      ``trainer.current_epoch``, ``trainer.global_step``
    ``split``, ``mode``      as given below
    ``seed``                 as given below
    ======================== ======================================================================

    Under ``fast_dev_run`` a grid of 3 × 3 is evaluated on the one batch, and nothing is written.
    Under DDP every rank takes ``batches`` of its own shard, all ranks get the batches of all, and
    they share the points out. A step that communicates with other ranks would wait forever.

    Args:
        loss: ``loss(module, batch)`` or the name of a method that takes the batch, if
            ``training_step`` is not the loss to analyze. Gradients are off while it runs,
            unless it needs them itself, for a penalty on them.
        batches: how many batches, taken once from a seeded epoch of the data loader. A batch counts
            with its number of terms: the module's ``loss_terms(batch)`` if it has one; else the
            integer ``batch["labels"]`` that are not -100; else, with a warning, its batch size.
        split: which data loader: ``"train"``, of a data module that has one its
            ``analysis_dataloader()``, or ``"val"``.
        mode: ``"eval"`` switches dropout off and keeps BatchNorm's running statistics;
            ``"train"`` leaves the submodules' flags as training had them, so that BatchNorm uses
            each batch's own. Steps that draw random numbers start from the same seed every time.
        every_n_epochs: evaluate also at the end of every n-th training epoch, into
            ``{name}-epoch=N.npz``, N counted from 0 as Lightning does.
        resolution: how many points along the first and the second direction.
        span: the grid reaches from -span to span in both directions; at 1, every filter has changed
            by as much as its own norm.
        directions: ``"filter"`` normalizes every output filter, ``"layer"`` every tensor; both
            leave biases and normalization layers where they are.
        tolerance: 0 evaluates every point; 0.01 evaluates points where the surface bends, and
            interpolates the others with an error of about 1 % of the drawn range, see
            ``geometry.plane``.
        clip: the highest loss that matters, for a ``tolerance``; by default half of the plane lies
            below it.
        batchnorm: running statistics are ``"kept"``, or ``"estimated"`` again at every point from
            the batches. The choice changes the picture.
        metrics: names that the step logs through ``self.log``, as numbers, tensors or torchmetrics.
            Each is the mean of its values for single batches, weighted as the loss is: exact for
            means such as an accuracy, an approximation for others.
        interactive: write ``{name}.html``, too: the surface in three dimensions, to turn and to
            read values from, a page of 5 MB that needs no network.
        resume: a file in which the analysis at the end is kept while it lasts. One that was killed
            goes on from it, if the weights are the same.
        name: of the files.
        seed: of the directions, of the data loader's shuffling and of the steps.

    Attributes:
        result: the last :class:`~lightning_opt.geometry.Plane`, or None.

    Raises:
        UsageError: an option out of range; a module that optimizes manually, without ``loss=``; no
            trainable parameters; parameters split over devices (FSDP, DeepSpeed); a callback of the
            same name; after the first batch, a metric that the step does not log.

    Example:
        >>> import pytorch_lightning as pl
        >>> trainer = pl.Trainer(callbacks=[LossSurface(resolution=(25, 25))], logger=False)
    """

    _figure = "surface"
    _moves_weights = True

    def __init__(
        self,
        *,
        loss: LossOption = None,
        batches: int = 8,
        split: Split = "train",
        mode: Mode = "eval",
        every_n_epochs: int | None = None,
        resolution: tuple[int, int] = (51, 51),
        span: float = 1.0,
        directions: Directions = "filter",
        tolerance: float = 0.0,
        clip: float | None = None,
        batchnorm: BatchNorm = "kept",
        metrics: Sequence[str] = (),
        interactive: bool = False,
        resume: str | None = None,
        name: str = "surface",
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
        if len(resolution) != 2 or min(resolution) < 2:
            raise UsageError(f"resolution is {resolution}: it has to be two counts, at least 2.")
        if not 0 < span < float("inf"):
            raise UsageError(f"span is {span}: it has to be a positive number.")
        if directions not in ("filter", "layer"):
            raise UsageError(f"directions is {directions!r}: it has to be 'filter' or 'layer'.")
        if batchnorm not in get_args(BatchNorm):
            raise UsageError(f"batchnorm is {batchnorm!r}: it has to be 'kept' or 'estimated'.")
        if not 0 <= tolerance < 1:
            raise UsageError(f"tolerance is {tolerance}: it has to be in [0, 1), such as 0.01.")
        if clip is not None and tolerance == 0:
            raise UsageError(f"clip is {clip}, which is for a tolerance, and that is 0.")
        self.resolution = resolution
        self.span = span
        self.directions = directions
        self.tolerance = tolerance
        self.clip = clip
        self.batchnorm = batchnorm
        self.interactive = interactive
        self.result: Plane | None = None

    def _analyze(self, problem: Problem) -> Mapping[str, ArrayLike]:
        rows, columns = (3, 3) if problem.quick else self.resolution
        axes = geometry_directions.random(problem.params, normalize=self.directions, seed=self.seed)
        with problem.progress(rows * columns) as progress:
            self.result = plane(
                problem.loss,
                problem.params,
                problem.batches,
                axes,
                alphas=np.linspace(-self.span, self.span, rows),
                betas=np.linspace(-self.span, self.span, columns),
                batchnorm=self.batchnorm,
                model=problem.module,
                tolerance=self.tolerance,
                clip=self.clip,
                resume=problem.resume,
                group=problem.group,
                progress=progress,
            )
        return {**self.result.to_arrays(), "directions": self.directions}

    def _save(
        self, trainer: Trainer, directory: Path, name: str, values: Mapping[str, Any]
    ) -> list[Path]:
        paths = super()._save(trainer, directory, name, values)
        if self.interactive:
            import lightning_opt.figures as figures  # here, because plotly takes long to import

            page = figures.surface_3d({key: np.asarray(value) for key, value in values.items()})
            paths.append(figures.save(page, directory / f"{name}.html"))
        return paths

    def _copies(self) -> Copies:
        assert self.result is not None
        finite = self.result.values[np.isfinite(self.result.values)]
        return Copies({"lowest": finite.min(), "highest": finite.max()} if finite.size else {})
