"""``python -m lightning_opt`` is ``lightning-opt``."""

import sys

from .cli import main

sys.exit(main())
