"""The training loss of the amortized forms on the digits, and with all work at every step."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from importlib import import_module
from statistics import mean, stdev

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from _tables import print_table, reason, say, yes

from .contenders import OURS, of

# The amortized defaults, and what makes them do all work at every step.
DIGITS: Mapping[str, Mapping[str, int]] = {
    "Shampoo": {"statistics_every": 1, "root_every": 1},
    "KFAC": {"factor_every": 1, "inverse_every": 1},
}


def digits(options: argparse.Namespace) -> None:
    header = ["training loss", "default", "all work at every step", "difference"]
    title = (
        f"Digits, 17 steps an epoch, means over {options.seeds} seeds (± standard error of pairs)"
    )
    rows = (row for name in DIGITS for row in digits_rows(name, options.seeds))
    print_table(title, [*header, "to reach", "reached"], rows)


def digits_rows(name: str, seeds: int) -> Iterator[list[str]]:
    say(f"digits: {name}")
    try:
        default = [digits_losses(name, {}, seed) for seed in range(seeds)]
        full = [digits_losses(name, DIGITS[name], seed) for seed in range(seeds)]
    except Exception as error:  # as everywhere: what fails leaves a row that says so
        yield [name, f"none: {reason(error)}", "", "", "", ""]
        return
    for when in full[0]:
        ours, theirs = [run[when] for run in default], [run[when] for run in full]
        unit = mean(theirs) / 100
        more = (mean(ours) - mean(theirs)) / unit
        spread = stdev(a - b for a, b in zip(ours, theirs, strict=True)) / seeds**0.5 / unit
        losses = [f"{mean(ours):.4g}", f"{mean(theirs):.4g}", f"{more:+.2f} ± {spread:.2f} %"]
        noise = ", within the noise" if abs(more - 2) < 2 * spread else ""
        yield [f"{name}, {when}", *losses, "≤ +2 %", yes(more <= 2) + noise]


def digits_losses(name: str, options: Mapping[str, int], seed: int) -> dict[str, float]:
    """Training losses of a run of ten epochs on the digits."""
    torch.manual_seed(seed)
    data = import_module("lightning_opt.datamodules").Digits()
    data.setup("fit")
    loader = data.train_dataloader()
    model: nn.Module = import_module("lightning_opt.models").ShallowCNN()
    extra = {"model": model} if name == "KFAC" else {}
    optimizer = of(OURS + name, **extra, **options)(model.parameters())
    steps, found = [], {}
    for epoch in range(10):
        loader.sampler.sampler.epoch = epoch
        for images, labels in loader:
            model.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps.append(loss.item())
        if epoch in (0, 2, 9):
            images, labels = loader.dataset.tensors
            with torch.no_grad():
                found[f"epoch {epoch + 1}"] = cross_entropy(model(images), labels).item()
    return {**found, "mean of all steps": mean(steps)}
