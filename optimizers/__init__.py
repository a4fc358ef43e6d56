"""Optimizers of the study that PyTorch does not have, one file a method."""

from __future__ import annotations

from .lookahead import Lookahead
from .ranger import Ranger
from .yogi import Yogi

__all__ = ["Lookahead", "Ranger", "Yogi"]
