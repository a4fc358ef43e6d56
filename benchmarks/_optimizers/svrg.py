"""A training step with SVRG, and the memory at the peak of training with it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _measuring import Results, allocations, in_new_process
from _tables import print_table, say, yes

from .contenders import OURS, of
from .networks import resnet18, vgg11
from .training import SGD, Training, Update, sgd

GOALS = (("SVRG", 2.1, SGD),)


def svrg(options: argparse.Namespace) -> None:
    attach = {SGD: sgd, "SVRG": our_svrg}
    trainings = {name: Training(resnet18, a, options.batch) for name, a in attach.items()}
    results = Results(trainings, options.repeats)
    title = f"A training step with SVRG, batch {options.batch}, the snapshot apart"
    results.show(title, attach, SGD, GOALS)
    header = ["", "parameters", "SGD: tensors", "process", "SVRG: tensors", "process", "more"]
    title = f"Memory at the peak of training, batch {options.batch}, the snapshot included"
    rows = (svrg_memory(make, options) for make in (resnet18, vgg11) if not results.failed)
    print_table(title, [*header, "to reach", "reached"], rows)


def svrg_memory(make: Callable[[], nn.Module], options: argparse.Namespace) -> list[str]:
    size = sum(p.nbytes for p in make().parameters())
    peaks = []
    for attach in (sgd, our_svrg):
        say(f"memory: {make.__name__}, {attach.__name__}")
        peaks += [allocations(run=partial(two_steps, make, attach, options.batch))["run"][1]]
        peaks += [in_new_process(resident_peak, options.threads, make, attach, options.batch)]
    more = (peaks[2] - peaks[0]) / size
    # Two copies of the parameters, and a gradient; the rest is a batch of buffers.
    goal = ["tensors ≤ 3.05 × the parameters", yes(more <= 3.05)]
    sizes = [f"{number / 1e9:.2f} GB" for number in (size, *peaks)]
    return [make.__name__, *sizes, f"{more:.2f}", *goal]


def our_svrg(training: Training) -> Update:
    build = of(OURS + "SVRG", lr=0.01, model=training.model)
    optimizer = build(training.model.parameters())
    optimizer.snapshot([training.closure])
    return optimizer.step  # type: ignore[no-any-return]


def two_steps(make: Callable[[], nn.Module], attach: Callable[[Any], Update], batch: int) -> None:
    training = Training(make, attach, batch)
    for _ in range(2):
        training()


def resident_peak(threads: int, *arguments: Any) -> int:
    """Peak memory of this process after two training steps, in bytes (Linux only)."""
    torch.set_num_threads(threads)
    two_steps(*arguments)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
