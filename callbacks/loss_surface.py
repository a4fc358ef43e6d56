"""The loss surface around the weights that training ended in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lightning_opt.errors import UsageError
from lightning_opt.geometry import Plane, plane
from lightning_opt.geometry import directions as geometry_directions

from ._analysis import Analysis, Mode, Problem
from ._module_loss import LossOption, Split

Directions = Literal["filter", "layer"]


class LossSurface(Analysis):
    """The loss over a plane through the trained weights, for any LightningModule.

    At the end of ``fit``, on the device, the mean training loss over a fixed set of batches is
    evaluated on a grid spanned by two random directions, orthogonal to each other and normalized to
    the weights (Li et al. 2018, arXiv:1712.09913). The loss is the module's own ``training_step``
    with logging silenced. The module, its metrics and the random state are left exactly as they
    were found. Optimizers that have evaluation weights (``optimizer.eval()``) are evaluated at
    these.

    Files, in ``trainer.log_dir`` (without a logger: ``trainer.default_root_dir``): ``{name}.npz``
    and, drawn from it, ``{name}.png``. The arrays, read with ``numpy.load``:

    ======================== ======================================================================
    ``alphas``, ``betas``    coordinates along the first and the second direction
    ``values``               ``values[i, j]`` is the loss at ``alphas[i], betas[j]``; a NaN or an
                             infinity is stored as it is
    ``directions``           how they were normalized, as given below
    ``loss``                 the loss at the weights
    ``terms``                number of terms (examples, tokens) that the loss is the mean of
    ``parameters``           number of trainable parameters
    ``epoch``, ``step``      ``trainer.current_epoch``, ``trainer.global_step``
    ``split``, ``mode``      as given below
    ``seed``                 as given below
    ======================== ======================================================================

    Under ``fast_dev_run`` a grid of 3 × 3 is evaluated on the one batch, and nothing is written.
    Under DDP every rank analyzes the batches of its own shard, and those of rank zero are written.

    Args:
        loss: ``loss(module, batch)`` or the name of a method that takes the batch, if
            ``training_step`` is not the loss to analyze. Gradients are off while it runs.
        batches: how many batches, taken once from a seeded epoch of the data loader. A batch counts
            with its number of terms: the module's ``loss_terms(batch)`` if it has one; else the
            integer ``batch["labels"]`` that are not -100; else, with a warning, its batch size.
        split: which data loader: ``"train"`` or ``"val"``.
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
        name: of the files.
        seed: of the directions, of the data loader's shuffling and of the steps.

    Attributes:
        result: the last :class:`~lightning_opt.geometry.Plane`, or None.

    Raises:
        UsageError: an option out of range; a module that optimizes manually, without ``loss=``; no
            trainable parameters; parameters split over devices (FSDP, DeepSpeed).

    Example:
        >>> import pytorch_lightning as pl
        >>> trainer = pl.Trainer(callbacks=[LossSurface(resolution=(25, 25))], logger=False)
    """

    _figure = "surface"

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
        )
        if len(resolution) != 2 or min(resolution) < 2:
            raise UsageError(f"resolution is {resolution}: it has to be two counts, at least 2.")
        if not 0 < span < float("inf"):
            raise UsageError(f"span is {span}: it has to be a positive number.")
        if directions not in ("filter", "layer"):
            raise UsageError(f"directions is {directions!r}: it has to be 'filter' or 'layer'.")
        self.resolution = resolution
        self.span = span
        self.directions = directions
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
                progress=progress,
            )
        return {**self.result.to_arrays(), "directions": self.directions}
