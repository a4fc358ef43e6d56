"""Lightning callbacks that look at the minimum an optimizer ended in, and at what it cost.

::

    Trainer(callbacks=[HessianSpectrum(), LossSurface()])      # any LightningModule, unchanged

They are accepted by both flavors of Lightning, ``pytorch_lightning`` and ``lightning.pytorch``.
"""

from .analyze import analyze
from .evaluation_weights import EvaluationWeights, evaluation_weights
from .fisher_scale import FisherScale
from .hessian_spectrum import HessianSpectrum
from .loss_line import LossLine
from .loss_surface import LossSurface
from .schedule_length import ScheduleLength
from .svrg_snapshot import SVRGSnapshot
from .training_cost import Cost, TrainingCost

__all__ = [
    "Cost",
    "EvaluationWeights",
    "FisherScale",
    "HessianSpectrum",
    "LossLine",
    "LossSurface",
    "SVRGSnapshot",
    "ScheduleLength",
    "TrainingCost",
    "analyze",
    "evaluation_weights",
]
