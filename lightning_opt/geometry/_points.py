"""The loss and its metrics at many points of parameter space.

The points are numbered. They are evaluated in chunks, whose points are split over the processes of
a group: every process gets all values, bit for bit those that one process alone would find. What is
known is kept in a file, if there is one, and a computation that was killed does not evaluate it
again.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from lightning_opt.files import replacing

from ._loss import Loss, Metrics, evaluate_metrics, total_terms
from ._shards import Shards

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

KIND = "lightning_opt points, version 1"
PAUSE = 2.0
"""Seconds between two states in the file."""
UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, AttributeError, TypeError),
    zipfile.BadZipFile,
)
"""What ``numpy.load`` raises for files that are cut off or something else."""


class Points:
    """What is known about ``count`` points.

    Args:
        loss: see :func:`lightning_opt.geometry.plane`.
        batches: the fixed batches.
        count: how many points there are.
        place: ``place(index)`` puts the weights at a point.
        device: of the weights.
        row: how many points each process evaluates between two exchanges.
        progress: called for every point, in every process.
        group: the processes that share the work.

    Attributes:
        known: which points are known, shape (count,).
        values: the loss at each, NaN where it is not known, shape (count,).
        metrics: the name of each metric to its values, each of shape (count,).
        terms: the number of terms that the loss is the mean of.
    """

    def __init__(
        self,
        loss: Loss,
        batches: Sequence[Any],
        count: int,
        place: Callable[[int], None],
        *,
        device: torch.device,
        row: int,
        progress: Callable[[], object] | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self._loss, self._batches, self._place = loss, batches, place
        self._row = row
        self._progress = progress or (lambda: None)
        self._ranks = 1 if group is None else dist.get_world_size(group)
        self._rank = 0 if group is None else dist.get_rank(group)
        self._names: list[str] | None = None
        self._path: Path | None = None
        self._saved = time.monotonic()
        self._processes = Shards(count, device, group)
        self.on_first = self._processes.on_first
        self.known = np.zeros(count, bool)
        self.values = np.full(count, np.nan)
        self.metrics: dict[str, NDArray[np.float64]] = {}
        self.terms = 0.0

    def evaluate(self, indices: Iterable[int]) -> None:
        """Evaluates those of the points that are not known. For all processes to call together."""
        todo = [index for index in indices if not self.known[index]]
        # A killed process loses no more than a point and what the pause allows.
        size = self._ranks * (self._row if self._path is None else 1)
        for start in range(0, len(todo), size):
            self._evaluate_chunk(todo[start : start + size])
            if self._path is not None and time.monotonic() - self._saved >= PAUSE:
                self._save(self._path)

    @contextmanager
    def kept_in(self, path: str | Path | None, identity: str) -> Iterator[None]:
        """Goes on from the file, keeps it up to date, and removes it at the end.

        Args:
            path: the file; None keeps nothing.
            identity: what has to be the same for a computation to go on.

        Raises:
            ValueError: the file is of another computation, or damaged.
        """
        if path is None:
            yield
            return
        path = Path(path)
        self._identity = f"{KIND}: {len(self._batches)} batches, {len(self.known)} points, "
        self._identity += identity
        self._resume(path)
        self._path = path
        try:
            yield
        except BaseException:
            self._save(path)
            raise
        if self._rank == 0:
            path.unlink(missing_ok=True)

    def _evaluate_chunk(self, chunk: list[int]) -> None:
        share = -(-len(chunk) // self._ranks)
        mine = chunk[self._rank * share : (self._rank + 1) * share]
        rows = self._rows(mine)
        self._know_names()
        table = np.zeros((len(chunk), 1 + len(self.metrics)))
        table[self._rank * share :][: len(mine)] = rows
        # Each row is zero in all processes but one, so that the sum changes no bit.
        table = self._processes.sum(torch.from_numpy(table)).numpy()
        for _ in range(len(chunk) - len(mine)):
            self._progress()
        for column, values in zip(table.T, (self.values, *self.metrics.values()), strict=True):
            values[chunk] = column
        self.known[chunk] = True

    def _rows(self, indices: list[int]) -> NDArray[np.float64]:
        """The loss and the metrics at the points, shape (points, 1 + metrics)."""
        means, terms = [], []
        for index in indices:
            self._place(index)
            point_means, point_terms = self._at_present()
            means.append(point_means)
            terms.append(point_terms)
            self._progress()
        if not means:
            return np.zeros((0, 1))
        # One transfer from the device for all points and batches.
        table = torch.stack(means).cpu().double().numpy()
        return np.stack(
            [_weighted_mean(point, counts) for point, counts in zip(table, terms, strict=True)]
        )

    def _at_present(self) -> tuple[Tensor, list[float]]:
        """Means of shape (batches, 1 + metrics) at the present weights, and numbers of terms."""
        rows, terms = [], []
        for batch in self._batches:
            mean, count, metrics = evaluate_metrics(self._loss, batch)
            self._check_names(list(metrics))
            rows.append(_row(mean, metrics))
            terms.append(count)
        self.terms = total_terms(terms)
        return torch.stack(rows), terms

    def _check_names(self, names: list[str]) -> None:
        if self._names is None:
            self._names = names
        if names != self._names:
            raise ValueError(
                f"loss(batch) returned the metrics {names}, and {self._names} before: every batch "
                f"and every point has to have the same ones, in the same order."
            )

    def _know_names(self) -> None:
        """Tells all processes what the first knows, which has points in every chunk."""
        if not self.known.any():
            self._names, self.terms = self.on_first(lambda: (self._names, self.terms))
            self.metrics = {name: np.full(len(self.known), np.nan) for name in self._names or ()}

    def _resume(self, path: Path) -> None:
        state = self.on_first(lambda: self._read(path) if path.exists() else None)
        if state is None:
            return
        self.known, self.terms = state["known"], float(state["terms"])
        self._names = state["names"].tolist()
        self.values, *metrics = state["table"]
        self.metrics = dict(zip(self._names, metrics, strict=True))
        if self.known.any():
            self.on_first(lambda: self._check_loss(path))

    def _check_loss(self, path: Path) -> None:
        """One point again: values of two losses must not get into one surface."""
        telling = self.known & np.isfinite(self.values)
        index = int((telling if telling.any() else self.known).argmax())
        terms = self.terms
        self._place(index)
        means, counts = self._at_present()
        again = _weighted_mean(means.cpu().double().numpy(), counts)[0]
        # Not bit for bit, because some devices do not repeat themselves.
        if terms != self.terms or not np.isclose(again, self.values[index], 1e-3, equal_nan=True):
            raise ValueError(
                f"{path} holds another computation: a loss of {self.values[index]} over {terms} "
                f"terms where it is {again} over {self.terms} now. Name another file, or delete it "
                f"to start anew."
            )

    def _read(self, path: Path) -> dict[str, NDArray[Any]]:
        try:
            # Opened here, because numpy does not close what it cannot read.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                state = {name: archive[name] for name in archive.files}
                found = str(state["identity"])
        except UNREADABLE as error:
            raise ValueError(
                f"{path} is damaged or not a surface ({error}): delete it to start anew."
            ) from error
        if found != self._identity:
            raise ValueError(
                f"{path} holds another computation ({found}), not this one ({self._identity}). "
                f"Name another file, or delete it to start anew."
            )
        return state

    def _save(self, path: Path) -> None:
        if self._rank == 0 and self.known.any():
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(
                    file,
                    identity=np.array(self._identity),
                    known=self.known,
                    terms=np.array(self.terms),
                    names=np.array(list(self.metrics), dtype=str),
                    table=np.stack([self.values, *self.metrics.values()]),
                )
        self._saved = time.monotonic()


def _row(mean: Tensor, metrics: Metrics) -> Tensor:
    """The loss and the metrics of a batch, on its device, in float32 at least."""
    dtype = torch.promote_types(mean.dtype, torch.float32)
    row = [mean.to(dtype)]
    for name, value in metrics.items():
        tensor = torch.as_tensor(value, dtype=dtype, device=mean.device)
        if tensor.numel() != 1:
            raise ValueError(
                f"loss(batch) returned a tensor of shape {tuple(tensor.shape)} as the metric "
                f"{name!r}: it has to be one number, the mean over the batch."
            )
        row.append(tensor.reshape(()))
    return torch.stack(row)


def _weighted_mean(means: NDArray[np.float64], terms: list[float]) -> NDArray[np.float64]:
    """The means over the terms of all batches; a mean over no terms is NaN and says nothing."""
    weights = np.array(terms)
    counted = weights > 0
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are stored as they are
        mean: NDArray[np.float64] = weights[counted] @ means[counted] / weights.sum()
    return mean
