"""A step of masked language modeling beside that of transformers' RobertaForMaskedLM."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import RobertaForMaskedLM

from _measuring import Goal, Results, allocations, in_new_process, timed
from _tables import print_table, yes
from lightning_opt.models import Roberta
from lightning_opt.tasks import MaskedLanguageModel

OURS, THEIRS = "MaskedLanguageModel", "RobertaForMaskedLM"
SEQUENCES, TOKENS = 8, 128
FASTER, MEMORY = 1.6, 0.5
MIB = 2**20


def mlm_step(options: argparse.Namespace) -> None:
    networks = _networks()
    gradients = {name: _gradient(network, loss) for name, (network, loss) in networks.items()}
    steps = {name: _step(network, gradients[name]) for name, (network, _) in networks.items()}
    size = f"82.2M parameters, {SEQUENCES} × {TOKENS} tokens, dropout 0.1, float32"
    for title, measured in (
        (f"Forward and backward, {size}", gradients),
        (f"The same and a step of Adam, {size}", steps),
    ):
        results = Results(
            {name: lambda run=run: timed(run) for name, run in measured.items()},  # type: ignore[misc]
            options.repeats,
        )
        goals: list[Goal] = [(OURS, 1 / FASTER, THEIRS)]
        results.show(title, measured, THEIRS, goals)
    _show_memory(options.threads)


def _networks() -> dict[str, tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]]:
    """The same network twice, in training mode, each with its loss."""
    torch.manual_seed(0)
    task = MaskedLanguageModel(Roberta()).train()
    theirs = RobertaForMaskedLM(task.network.model.config).train()  # type: ignore[union-attr]
    theirs.load_state_dict(task.network.model.state_dict())  # type: ignore[union-attr]
    return {THEIRS: (theirs, lambda batch: theirs(**batch).loss), OURS: (task, task.loss)}


def _batch() -> dict[str, Tensor]:
    """15 % of the tokens are to be predicted."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50_264, (SEQUENCES, TOKENS), generator=generator)
    masked = torch.rand(ids.shape, generator=generator) < 0.15
    return {"input_ids": ids.masked_fill(masked, 50_264), "labels": ids.masked_fill(~masked, -100)}


def _gradient(
    network: nn.Module, loss: Callable[[dict[str, Tensor]], Tensor]
) -> Callable[[], None]:
    batch = _batch()

    def run() -> None:
        network.zero_grad()
        loss(batch).backward()

    return run


def _step(network: nn.Module, gradient: Callable[[], None]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def run() -> None:
        gradient()
        optimizer.step()

    return run


def _show_memory(threads: int) -> None:
    beyond = in_new_process(_memory, threads)
    ratio = beyond[OURS] / beyond[THEIRS]
    print_table(
        "Peak of a forward and backward beyond parameters and gradients",
        ["", "MiB", f"× {THEIRS}", "to reach", "reached"],
        [
            [THEIRS, f"{beyond[THEIRS] / MIB:.0f}", "1", "", ""],
            [
                OURS,
                f"{beyond[OURS] / MIB:.0f}",
                f"{ratio:.3g}",
                f"≤ {MEMORY}",
                yes(ratio <= MEMORY),
            ],
        ],
    )


def _memory(threads: int) -> dict[str, int]:
    torch.set_num_threads(threads)
    found = {}
    for name, (network, loss) in _networks().items():
        run = _gradient(network, loss)
        run()
        network.zero_grad()  # so that the gradients are allocated within what is watched
        _, peak = allocations(run=run)["run"]
        found[name] = peak - sum(p.numel() * p.element_size() for p in network.parameters())
        network.zero_grad()
    return found
