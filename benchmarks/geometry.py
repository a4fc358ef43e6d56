"""What curvature and loss surfaces cost beside their peers, and how right they are.

    .venv/bin/python benchmarks/geometry.py [PART ...]      # `make demo` has made .venv

    step      a Lanczos step, on one batch, whose graph is kept
    many      the same on 32 batches, whose graphs are kept as far as they fit into 3 GiB
    spectrum  density, top 5 and trace with error bars, at the accuracy of the peers' three runs
    roberta   100 steps on RoBERTa with 82M parameters: time and memory
    surface   a point of a plane beside a forward pass, and loss-landscapes
    adaptive  evaluations and errors of adaptive planes
    callback  what HessianSpectrum and LossSurface add to the numerics
    enough    errors by steps, samples and images, beside an exact spectrum

Without a PART all run, for an hour or more. The network is ResNet18 for 32 × 32 images, 100
classes, 11.2M parameters, in float32, on batches of 32 images. The peers are installed into an
environment of the benchmark's own, which takes torch and all else from this one.

Times are medians over repeats that alternate: every measure once, then every one once more. A ratio
is the median of the ratios within the repeats, so that a machine that slows down in between slows
both sides. Interrupting a part shows what it has measured so far and goes on to the next.
"""

from __future__ import annotations

from pathlib import Path

from _command import Parts, parsed, parser_of, run
from _environment import default_environment, enter_environment, versions
from _geometry import peers
from _geometry.adaptive import adaptive
from _geometry.callback import callback
from _geometry.enough import enough
from _geometry.roberta import roberta
from _geometry.spectrum import spectrum
from _geometry.step import many, step
from _geometry.surface import surface

PEERS = ("PyHessian", "hessian-eigenthings", "curvlinops-for-pytorch", "loss-landscapes")

PARTS: Parts = {
    "step": step,
    "many": many,
    "spectrum": spectrum,
    "roberta": roberta,
    "surface": surface,
    "adaptive": adaptive,
    "callback": callback,
    "enough": enough,
}


def main() -> None:
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("--steps", type=int, default=10, help="Lanczos steps a run (10)")
    parser.add_argument("--batches", type=int, default=32, help="where there are many (32)")
    parser.add_argument("--seeds", type=int, default=3, help="of the small networks (3)")
    parser.add_argument("--env", type=Path, default=default_environment(), help="of the peers")
    options = parsed(parser, PARTS)
    enter_environment(options.env.resolve(), PEERS)
    peers.quiet()
    print(versions(["torch", *PEERS]), f"{options.threads} threads", sep=", ")
    run(PARTS, options)


if __name__ == "__main__":
    main()
