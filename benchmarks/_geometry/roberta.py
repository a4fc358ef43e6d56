"""RoBERTa with 82M parameters: a hundred Lanczos steps, and what three vectors need."""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import torch
from torch import Tensor

from _measuring import allocations, in_new_process
from _tables import print_table, yes
from lightning_opt.geometry import hessian, spectrum

STEPS = 100


def roberta(options: argparse.Namespace) -> None:
    parameters, beyond, gradient = in_new_process(_memory, options.threads)
    seconds, step, top, peak = in_new_process(_run, options.threads)
    print_table(
        "RoBERTa, 6 layers, 4 × 128 tokens, float32, three vectors",
        ["", "", "to reach", "reached"],
        [
            ["parameters", f"{parameters / 1e6:.1f}M", "", ""],
            ["peak of a gradient", f"{gradient / 2**20:.0f} MiB", "", ""],
            [
                "peak of Lanczos beyond it, graphs not kept",
                f"{beyond / 4 / parameters:.2f} × parameters",
                "≤ 6",
                yes(beyond <= 6 * 4 * parameters),
            ],
            [
                f"{STEPS} steps, graphs kept where they fit: peak of the process",
                f"{peak / 2**30:.1f} GiB",
                "≤ 16",
                yes(peak <= 16 * 2**30),
            ],
            ["the same: time", f"{seconds:.0f} s", "", ""],
            ["a step beside a gradient", f"{step:.2f}", "", ""],
            ["largest node", f"{top:.4g}", "", ""],
        ],
    )


class _Problem:
    """The network, a batch, its loss weighted by masked tokens, and the Hessian."""

    def __init__(self, threads: int, **options: Any) -> None:
        from transformers import RobertaConfig, RobertaForMaskedLM

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        config = RobertaConfig(
            vocab_size=50_265, num_hidden_layers=6, max_position_embeddings=514, type_vocab_size=1
        )
        self.model = RobertaForMaskedLM(config).eval()
        ids = torch.randint(10, 50_000, (4, 128))
        masked = torch.rand(ids.shape) < 0.15
        self.batch = {
            "input_ids": ids.masked_fill(masked, 4),
            "labels": ids.masked_fill(~masked, -100),
        }
        self.params = list(self.model.parameters())
        self.operator = hessian(self.loss, self.params, [self.batch], **options)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        return self.model(**batch).loss, int((batch["labels"] != -100).sum())

    def gradient(self) -> None:
        torch.autograd.grad(self.loss(self.batch)[0], self.params)


def _memory(threads: int) -> tuple[int, int, int]:
    problem = _Problem(threads, memory=0)
    found = allocations(
        gradient=problem.gradient,
        lanczos=lambda: spectrum(problem.operator, steps=3, reorthogonalize="none", samples=0),
    )
    gradient, lanczos = found["gradient"][1], found["lanczos"][1]
    return problem.operator.shape[0], lanczos - gradient, gradient


def _run(threads: int) -> tuple[float, float, float, int]:
    problem = _Problem(threads)
    start = time.perf_counter()
    result = spectrum(problem.operator, steps=STEPS, reorthogonalize="none", samples=0)
    seconds = time.perf_counter() - start
    problem.gradient()
    start = time.perf_counter()
    problem.gradient()
    gradient = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return seconds, seconds / STEPS / gradient, float(result.nodes[0].max()), peak
