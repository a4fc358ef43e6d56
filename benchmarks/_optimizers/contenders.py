"""The optimizers that are compared, and how each is built."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch

OURS = "lightning_opt.optimizers."
FUSED = "torch Adam, fused"

Build = Callable[[Any], Any]  # from parameters to their optimizer


class Contender(NamedTuple):
    name: str
    build: Build
    cycle: int = 30  # steps after which its work repeats itself; 30 covers Lookahead's 5 and 6
    settled: int = 0  # steps until then, at first


def of(path: str, **options: Any) -> Build:
    """The optimizer of a class path, imported only when it is built."""

    def build(params: Any) -> Any:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)(params, **options)

    return build


fused_adam = partial(torch.optim.Adam, fused=True)


def around_adam(path: str) -> Build:
    """A wrapper of the peers' kind around torch's fused Adam."""
    return lambda params: of(path)(fused_adam(params))


def heavyball(name: str, **options: Any) -> Build:
    """An optimizer of heavyball, compiled without its search for the fastest kernel.

    By default that search takes several minutes on a CPU, and finds PyTorch's own.
    """

    def build(params: Any) -> Any:
        utils: Any = import_module("heavyball.utils")
        utils.compile_mode = "default"
        return of(f"heavyball.{name}", **options)(params)

    return build


# One line an optimizer, with its own defaults.
STEP = (
    Contender(FUSED, fused_adam),
    Contender("torch Adam, plain", of("torch.optim.Adam", foreach=False)),
    Contender("torch RAdam", of("torch.optim.RAdam")),
    Contender("Yogi", of(OURS + "Yogi")),
    Contender("Yogi, compiled", of(OURS + "Yogi", compile=True)),
    Contender("pytorch_optimizer Yogi", of("pytorch_optimizer.Yogi")),
    Contender("torch_optimizer Yogi", of("torch_optimizer.Yogi")),
    Contender("Ranger", of(OURS + "Ranger")),
    Contender("Ranger, compiled", of(OURS + "Ranger", compile=True)),
    Contender("pytorch_optimizer Ranger", of("pytorch_optimizer.Ranger")),
    Contender("torch_optimizer Ranger", of("torch_optimizer.Ranger")),
    Contender("Lookahead, fused Adam", of(OURS + "Lookahead", base=fused_adam)),
    Contender(
        "pytorch_optimizer Lookahead, fused Adam", around_adam("pytorch_optimizer.Lookahead")
    ),
    Contender("timm Lookahead, fused Adam", around_adam("timm.optim.Lookahead")),
    Contender("schedulefree AdamW", of("schedulefree.AdamWScheduleFree")),
    Contender("heavyball AdamW", heavyball("AdamW")),
)
# ScalableShampoo's roots are due every 1000 steps: its figure is without them. SOAP's bases are due
# every 2.
HEAVY = (
    Contender(FUSED, fused_adam),
    Contender("Shampoo", of(OURS + "Shampoo"), 20, 320),
    Contender("pytorch_optimizer Shampoo", of("pytorch_optimizer.Shampoo"), 2),
    Contender("pytorch_optimizer ScalableShampoo", of("pytorch_optimizer.ScalableShampoo")),
    Contender("heavyball SOAP", heavyball("SOAP"), 20),
)

ELEMENTWISE = ("Yogi", "Yogi, compiled", "Ranger", "Ranger, compiled")  # ours in STEP
