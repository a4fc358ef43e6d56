"""Optimizers of the study that PyTorch does not have, one file a method."""

from __future__ import annotations

from .kfac import KFAC
from .lookahead import Lookahead
from .ranger import Ranger
from .shampoo import Shampoo
from .svrg import SVRG, LinearDecay
from .yogi import Yogi

__all__ = ["KFAC", "SVRG", "LinearDecay", "Lookahead", "Ranger", "Shampoo", "Yogi"]
