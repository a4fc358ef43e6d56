"""What an optimizer's state holds, and what a step allocates beyond it."""

from __future__ import annotations

import argparse

from _measuring import allocations
from _tables import print_table, reason, say, yes

from .alone import Steps
from .contenders import ELEMENTWISE, HEAVY, STEP, Contender

LEAN = (*ELEMENTWISE, "Lookahead, fused Adam")  # at most 5 % of the parameters beyond the state


def memory(options: argparse.Namespace) -> None:
    header = ["bytes, of the parameters'", "state", "a step beyond it", "to reach", "reached"]
    print_table("Memory of a step", header, (memory_row(c) for c in (*STEP, *HEAVY[1:])))


def memory_row(contender: Contender) -> list[str]:
    say(f"memory: {contender.name}")
    steps = Steps(contender._replace(settled=0))  # the first steps allocate what later ones do
    try:
        found = allocations(network=steps.fill, state=steps, step=steps)
    except Exception as error:  # a peer may fail in any way
        return [contender.name, f"none: {reason(error)}", "", "", ""]
    percent = 100 / sum(p.nbytes for p in steps.params)
    state, extra = percent * found["state"][0], percent * found["step"][1]
    goal = ["≤ 5 %", yes(extra <= 5)] if contender.name in LEAN else ["", ""]
    return [contender.name, f"{state:.1f} %", f"{extra:.2f} %", *goal]
