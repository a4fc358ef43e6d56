"""A Lanczos run on disk, from which it goes on after the process was killed.

Two files. The small one, an npz, is the state: the coefficients so far and what the run is of. It
is replaced as a whole. The basis, which is too large for that, is a raw file beside it that grows:
vectors are appended and flushed before the state counts them, so that a state is never ahead of its
vectors; what is beyond it is written over. A run without a basis has its two vectors in the state.
"""

from __future__ import annotations

import os
import re
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_opt.files import replacing

from .lanczos import Lanczos

KIND = "lightning_opt Lanczos run, version 1"


@dataclass(frozen=True)
class State:
    """What the state file holds beside vectors; ``full`` is whether there is a basis."""

    full: bool
    step: int
    active: list[int]
    scale: float
    alphas: NDArray[np.float64]
    betas: NDArray[np.float64]


class RunFile:
    """The files of one run: ``path`` and ``{path}.basis``.

    The first process alone reads and writes, whole vectors, so that a run can go on with another
    number of processes.

    Args:
        path: of the state.
        size: the number of entries of a vector.
        dtype: of the vectors.
        probes: the number of start vectors.
        seed: of the start vectors.
        start: how they are drawn.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: int,
        dtype: torch.dtype,
        probes: int,
        seed: int,
        start: str,
    ) -> None:
        self.path = Path(path)
        self.basis = self.path.with_name(self.path.name + ".basis")
        self._identity = {
            "kind": KIND,
            "size": size,
            "dtype": str(dtype),
            "probes": probes,
            "seed": seed,
            "start": start,
        }
        self._shape = (probes, size)
        self._dtype = dtype
        self._row_bytes = probes * size * dtype.itemsize
        self._rows = 0  # vectors of each probe that the basis file has
        self._arrays: dict[str, NDArray[Any]] = {}
        self._saved_at, self._pause = time.monotonic(), pause(0.0)

    def read(self) -> State | None:
        """The state of the run to go on with, or None if there is none.

        Raises:
            ValueError: the files are of another computation, or damaged.
        """
        if not self.path.exists():
            return None
        self._arrays = arrays = self._load()
        for name, value in self._identity.items():
            found = arrays[name].item() if name in arrays and arrays[name].ndim == 0 else None
            if found != value:
                raise ValueError(
                    f"{self.path} holds another computation: its {name} is {found!r}, not "
                    f"{value!r}. Name another file, or delete this one to start anew."
                )
        state = State(
            full=bool(arrays["full"]),
            step=int(arrays["step"]),
            active=arrays["active"].tolist(),
            scale=float(arrays["scale"]),
            alphas=arrays["alphas"],
            betas=arrays["betas"],
        )
        expected = (state.step + 1) * self._row_bytes if state.full else 0
        length = self.basis.stat().st_size if self.basis.exists() else 0
        if length < expected:
            raise ValueError(
                f"{self.basis} is damaged: it has {length} bytes, {self.path} counts {expected}. "
                f"Delete both to start anew."
            )
        return state

    def restore(self, run: Lanczos, state: State) -> None:
        """Brings a run that was just started to ``state``. For all processes to call together."""
        run.step, run.active, run.scale = state.step, state.active, state.scale
        run.alphas[:, : state.step], run.betas[:, : state.step] = state.alphas, state.betas
        probes, dtype = len(run.alphas), self._dtype
        if run.basis is None:
            going = len(run.active)
            run.current = run.shards.scatter(partial(self._state_rows, "current"), going, dtype)
            run.previous = run.shards.scatter(partial(self._state_rows, "previous"), going, dtype)
            return
        self._rows = state.step + 1
        before = after = run.current
        for index in range(self._rows):
            rows = run.shards.scatter(partial(self._rows_at, index), probes, dtype)
            run.basis.put(index, list(range(probes)), rows)
            before, after = after, rows
        run.previous, run.current = before[run.active], after[run.active]

    def save_if_due(self, run: Lanczos) -> None:
        """Writes the run, unless it was just now. For all processes to call together."""
        waited = time.monotonic() - self._saved_at
        if run.shards.least(int(waited >= self._pause)):
            self._save(run)
            self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Removes the files, and what a killed process left while it wrote."""
        self.path.unlink(missing_ok=True)  # first: a state without its basis would be damaged
        self.basis.unlink(missing_ok=True)
        leftover = rf"\.{re.escape(self.path.stem)}\.\d+\.tmp{re.escape(self.path.suffix)}"
        for path in self.path.parent.glob(".*.tmp*"):
            if re.fullmatch(leftover, path.name):
                path.unlink(missing_ok=True)

    def _save(self, run: Lanczos) -> None:
        vectors: dict[str, Tensor] = {}
        if run.basis is None:
            vectors["current"] = run.shards.gather(run.current)
            vectors["previous"] = run.shards.gather(run.previous)
        else:
            for index in range(self._rows, run.step + 1):
                rows = run.shards.gather(run.basis[index])
                run.shards.on_first(partial(self._append, index, rows))
            self._rows = run.step + 1
        run.shards.on_first(partial(self._write, run, vectors))

    def _append(self, index: int, rows: Tensor) -> None:
        self.basis.parent.mkdir(parents=True, exist_ok=True)
        with self.basis.open("wb" if index == 0 else "r+b") as file:
            file.seek(index * self._row_bytes)
            for row in rows:
                file.write(_raw(row).data)

    def _write(self, run: Lanczos, vectors: Mapping[str, Tensor]) -> None:
        if run.basis is not None:
            with self.basis.open("rb+") as file:
                os.fsync(file.fileno())
        started = time.monotonic()
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            arrays: dict[str, Any] = {
                **self._identity,
                "full": run.basis is not None,
                "step": run.step,
                "active": np.array(run.active),
                "scale": run.scale,
                "alphas": run.alphas[:, : run.step],
                "betas": run.betas[:, : run.step],
                **{name: _raw(rows) for name, rows in vectors.items()},
            }
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        self._pause = pause(time.monotonic() - started)

    def _load(self) -> dict[str, NDArray[Any]]:
        try:
            # Opened here, because numpy leaves a damaged file open.
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path} is damaged, or no Lanczos run ({error}). Name another file, or "
                f"delete this one to start anew."
            ) from error

    def _rows_at(self, index: int) -> Tensor:
        """Vectors number ``index`` of all probes, from the file of the basis."""
        buffer = bytearray(self._row_bytes)
        with self.basis.open("rb") as file:
            file.seek(index * self._row_bytes)
            file.readinto(buffer)
        return torch.frombuffer(buffer, dtype=self._dtype).view(self._shape)

    def _state_rows(self, name: str) -> Tensor:
        """``current`` or ``previous`` of the active probes, from the state."""
        return torch.from_numpy(self._arrays.pop(name)).view(self._dtype).view(-1, self._shape[1])


def pause(took: float) -> float:
    """Seconds until the next state is due, after one that took ``took`` to write."""
    return max(5.0, 20 * took)


def _raw(rows: Tensor) -> NDArray[np.uint8]:
    """The bytes of vectors, because numpy does not have every dtype."""
    raw: NDArray[np.uint8] = rows.cpu().contiguous().view(torch.uint8).numpy()
    return raw
