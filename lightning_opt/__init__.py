"""Plug any optimizer into any LightningModule, compare it fairly, look at the minimum it ended in.

Importing this package imports nothing heavy: torch and Lightning come with the subpackages that
need them (``optimizers``, ``callbacks``, ``datamodules``, ``tasks``, ``models``, ``geometry``).
"""

from ._version import __version__

__all__ = ["__version__"]
