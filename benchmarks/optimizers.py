"""What the optimizers cost beside their peers: time, memory, and what amortizing costs in loss.

    .venv/bin/python benchmarks/optimizers.py [PART ...]      # `make demo` has made .venv

    step     a step alone, gradients there; what the first steps cost, compiling cold and cached
    memory   the state, and what a step allocates beyond it
    shampoo  a training step with amortized roots; the step alone beside peers set alike
    kfac     a training step with amortized factors and inverses, beside kfac-pytorch
    svrg     a training step, and memory on ResNet18 and VGG11
    digits   training loss of the amortized forms and of those that do all work at every step

Without a PART all run, for hours. The network is ResNet18 for 32 × 32 images, 100 classes, 11.2M
parameters, in float32. The peers are installed into an environment of the benchmark's own, which
takes torch and all else from this one.

Times are medians over repeats that alternate: every measure once, then every one once more, a step
of milliseconds in a new process each time. A ratio is the median of the ratios within the repeats,
so that a machine that slows down in between slows both sides. What is amortized is measured once
its intervals are as long as asked for. Interrupting a part shows what it has measured so far and
goes on to the next.
"""

from __future__ import annotations

from pathlib import Path

from _command import Parts, parsed, parser_of, run
from _environment import default_environment, enter_environment, versions
from _optimizers.digits import digits
from _optimizers.kfac import kfac
from _optimizers.memory import memory
from _optimizers.shampoo import shampoo
from _optimizers.step import step
from _optimizers.svrg import svrg

PEERS = ("pytorch_optimizer", "torch-optimizer", "timm", "heavyball", "schedulefree")
KFAC_PYTORCH = "git+https://github.com/gpauloski/kfac_pytorch"  # not on PyPI

PARTS: Parts = {
    "step": step,
    "memory": memory,
    "shampoo": shampoo,
    "kfac": kfac,
    "svrg": svrg,
    "digits": digits,
}


def main() -> None:
    parser = parser_of(__doc__, repeats=7)
    parser.add_argument("--batch", type=int, default=128, help="images a training step (128)")
    parser.add_argument("--seeds", type=int, default=5, help="of the digits, at least 2 (5)")
    parser.add_argument("--env", type=Path, default=default_environment(), help="of the peers")
    parser.add_argument("--kfac-pytorch", default=KFAC_PYTORCH, help="where pip finds it")
    options = parsed(parser, PARTS)
    enter_environment(options.env.resolve(), [*PEERS, options.kfac_pytorch])
    print(versions(["torch", *PEERS, "kfac_pytorch"]), f"{options.threads} threads", sep=", ")
    run(PARTS, options)


if __name__ == "__main__":
    main()
