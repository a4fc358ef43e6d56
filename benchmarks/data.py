"""What feeding the networks costs beside their training and beside the usual pipelines.

    .venv/bin/python benchmarks/data.py [PART ...]      # `make demo` has made .venv

    images       an epoch of CIFAR-100's training batches beside torchvision's per-image pipeline
    waiting      the share of a ResNet18 training step that is spent waiting for data
    tokenize     from parquet to packed tokens, beside tokenizers' own encode_batch
    first_batch  the first batch of a cached corpus of WikiText-103's size, and its memory

Without a PART all run, for minutes. The data are random, in the true formats, in a temporary
folder.

Times are medians over repeats that alternate: every measure once, then every one once more. A ratio
is the median of the ratios within the repeats, so that a machine that slows down in between slows
both sides. Interrupting a part shows what it has measured so far and goes on to the next.
"""

from __future__ import annotations

from _command import Parts, parsed, parser_of, run
from _data.images import images
from _data.text import first_batch, tokenize
from _data.waiting import waiting
from _environment import versions

PARTS: Parts = {
    "images": images,
    "waiting": waiting,
    "tokenize": tokenize,
    "first_batch": first_batch,
}


def main() -> None:
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("--steps", type=int, default=10, help="of a training (10)")
    options = parsed(parser, PARTS)
    print(
        versions(["torch", "torchvision", "tokenizers", "datasets"]),
        f"{options.threads} threads",
        sep=", ",
    )
    run(PARTS, options)


if __name__ == "__main__":
    main()
