"""What the benchmarks' command lines have in common: parts to choose from, repeats, threads."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping

import torch

from _tables import say

Parts = Mapping[str, Callable[[argparse.Namespace], None]]


def parser_of(documentation: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="all, unless given")
    parser.add_argument(
        "--repeats", type=int, default=repeats, help=f"alternating repeats ({repeats})"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="(all cores)")
    return parser


def parsed(parser: argparse.ArgumentParser, parts: Iterable[str]) -> argparse.Namespace:
    """The options, with threads set; ends the process where a part does not exist."""
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(parts)}")
    torch.set_num_threads(options.threads)
    return options


def run(parts: Parts, options: argparse.Namespace) -> None:
    """Runs the parts that were asked for; an interruption goes on to the next."""
    for part in options.parts or parts:
        try:
            parts[part](options)
        except KeyboardInterrupt:
            say(f"{part}: interrupted")
