"""What a training step of the tasks costs, beside transformers and beside a bare loop.

    .venv/bin/python benchmarks/tasks.py [PART ...]      # `make demo` has made .venv

    mlm_step     MaskedLanguageModel beside RobertaForMaskedLM, 82M parameters: time and memory
    lightning    ImageClassifier in Lightning's Trainer beside a bare loop and plain Lightning
    first_steps  ResNet18 and RoBERTa at full size: 50 steps on real data in the true formats

Without a PART all run, for minutes. But for the last part, data are random.

Times are medians over repeats that alternate: every measure once, then every one once more. A ratio
is the median of the ratios within the repeats, so that a machine that slows down in between slows
both sides. Interrupting a part shows what it has measured so far and goes on to the next.
"""

from __future__ import annotations

import os

from _command import Parts, parsed, parser_of, run
from _environment import versions
from _tasks.first_steps import first_steps
from _tasks.lightning import lightning
from _tasks.mlm_step import mlm_step

PARTS: Parts = {
    "mlm_step": mlm_step,
    "lightning": lightning,
    "first_steps": first_steps,
}


def main() -> None:
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("--steps", type=int, default=11, help="of ResNet18 in a training (11)")
    options = parsed(parser, PARTS)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler looks for a GPU, aloud
    names = ["torch", "pytorch-lightning", "transformers"]
    print(versions(names), f"{options.threads} threads", sep=", ")
    run(PARTS, options)


if __name__ == "__main__":
    main()
