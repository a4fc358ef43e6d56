"""One callback for both flavors of Lightning: ``pytorch_lightning`` and ``lightning.pytorch``.

They are two copies of one code, whose classes know nothing of each other: a Trainer, and even more
a LightningCLI that reads a YAML file, accepts what inherits from its own ``Callback``. So all
callbacks here inherit from both, where both are installed, and ask for the classes of other things
by name. What is no class of Lightning's (torch, torchmetrics, the rank) is shared by the two.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pytorch_lightning import Callback as _Callback

if TYPE_CHECKING:
    from pytorch_lightning import Callback as Callback
    from pytorch_lightning import LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback as _OtherCallback
    except ModuleNotFoundError:
        Callback = _Callback
    else:

        class Callback(_Callback, _OtherCallback):
            """A callback of both flavors."""


SPLITTING = ("DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy")
"""The strategies that may split a parameter over devices."""


def is_a(value: object, *names: str) -> bool:
    """Whether a class of one of these names is among the classes of ``value``, in either flavor.

    >>> is_a(True, "int"), is_a(1.0, "int", "str")
    (True, False)
    """
    return any(kind.__name__ in names for kind in type(value).__mro__)


def overrides(module: LightningModule, method: str) -> bool:
    """Whether a module has a ``method`` of its own in place of LightningModule's."""
    lightning = next(kind for kind in type(module).__mro__ if kind.__name__ == "LightningModule")
    return getattr(type(module), method) is not getattr(lightning, method)


def trainer_class(module: LightningModule) -> type[Trainer]:
    """The Trainer of the flavor that ``module`` is of."""
    bases = {kind.__module__.partition(".")[0] for kind in type(module).__mro__}
    flavor = "lightning.pytorch" if "lightning" in bases else "pytorch_lightning"
    trainer: type[Trainer] = importlib.import_module(flavor).Trainer
    return trainer
