"""A Lanczos run from random vectors: from its start, or where it was killed, to its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ._basis import Basis, Reorthogonalize, home_of_basis
from ._run_file import RunFile, State
from ._shards import Shards
from .lanczos import Lanczos, Operator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Start = Literal["rademacher", "gaussian"]


def krylov(
    operator: Operator,
    *,
    steps: int,
    probes: int,
    seed: int,
    start: Start,
    reorthogonalize: Reorthogonalize,
    memory: int | None = None,
    resume: str | Path | None = None,
    group: ProcessGroup | None = None,
    progress: Callable[[], object] | None = None,
    enough: Callable[[Lanczos], bool] = lambda run: False,
) -> Lanczos:
    """Takes at most ``steps`` steps, no more than there are dimensions, or until it is ``enough``.

    The start vectors have entries of both signs (``"rademacher"``) or Gaussian ones. The other
    arguments are those of :func:`~.spectrum.spectrum`.
    """
    shards = Shards(checked_size(operator), operator.device, group)
    steps, dtype, device = min(steps, shards.size), operator.dtype, operator.device
    state, file = None, None
    if resume is not None:
        file = RunFile(resume, size=shards.size, dtype=dtype, probes=probes, seed=seed, start=start)
        state = shards.on_first(file.read)
    if state is not None:
        _check_continues(state, reorthogonalize, steps, resume)
        reorthogonalize, memory = "full" if state.full else "none", None
    home = home_of_basis(reorthogonalize, memory, probes, steps, shards, dtype, device)
    basis = None if home is None else Basis(probes, steps, shards, dtype, home)
    starts = torch.empty(probes, shards.length, dtype=dtype, device=device)
    _draw(start, starts, seed, shards)
    run = Lanczos(operator, starts, steps, shards, basis)
    tick = (lambda: None) if progress is None else progress
    if state is not None and file is not None:
        file.restore(run, state)
        if not run.repeats_itself():
            raise ValueError(
                f"{resume} holds a run with another operator: its last step comes out differently. "
                f"Name another file, or delete this one to start anew."
            )
        for _ in range(int(np.isfinite(state.alphas).sum())):
            tick()
    while run.active and run.step < steps and not enough(run):
        going = len(run.active)
        run.advance()
        for _ in range(going):
            tick()
        if file is not None and run.active and run.step < steps:
            file.save_if_due(run)
    if file is not None:
        shards.on_first(file.remove)
    return run


def checked_size(operator: Operator) -> int:
    """n, for an operator of shape (n, n).

    Raises:
        ValueError: it is not square, has no dimension or is not floating point.
    """
    shape = tuple(operator.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"The operator has shape {shape}: a spectrum needs a square one.")
    if not operator.dtype.is_floating_point:
        raise ValueError(f"The operator is {operator.dtype}: a spectrum needs floating point.")
    return shape[0]


def _check_continues(
    state: State, reorthogonalize: Reorthogonalize, steps: int, path: str | Path | None
) -> None:
    found = "full" if state.full else "none"
    if reorthogonalize not in ("auto", found):
        raise ValueError(
            f"{path} holds a run with reorthogonalize={found!r}, not {reorthogonalize!r}: name "
            f"another file, or delete this one to start anew."
        )
    if state.step >= steps:
        raise ValueError(
            f"{path} holds a run of {state.step} steps already: steps={steps} has to be more. Or "
            f"delete the file to start anew."
        )


def _draw(start: Start, vectors: Tensor, seed: int, shards: Shards) -> None:
    """Fills in slices of unit vectors, the same ones on every device."""
    generator = torch.Generator().manual_seed(seed)
    for vector in vectors:
        if start == "rademacher":
            signs = torch.randint(0, 2, (shards.size,), generator=generator, dtype=torch.int8)
            vector.copy_(signs[shards.mine]).mul_(2).sub_(1).mul_(1 / math.sqrt(shards.size))
        else:
            entries = torch.randn(shards.size, generator=generator, dtype=vector.dtype)
            vector.copy_(entries[shards.mine])
            vector.div_(math.sqrt(shards.inner([vector], [vector]).item()))
