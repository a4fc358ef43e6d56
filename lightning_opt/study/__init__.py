"""The fair comparison: a study file's cells, each run to a directory of its own.

Nothing here imports torch, except :mod:`.worker` and what only it uses.
"""

from .grid import Cell, Study, load_study
from .scheduler import run_study

__all__ = ["Cell", "Study", "load_study", "run_study"]
