"""Lightning callbacks that look at the minimum an optimizer ended in.

::

    Trainer(callbacks=[HessianSpectrum(), LossSurface()])      # any LightningModule, unchanged
"""

from .evaluation_weights import EvaluationWeights, evaluation_weights
from .fisher_scale import FisherScale
from .hessian_spectrum import HessianSpectrum
from .loss_surface import LossSurface
from .svrg_snapshot import SVRGSnapshot

__all__ = [
    "EvaluationWeights",
    "FisherScale",
    "HessianSpectrum",
    "LossSurface",
    "SVRGSnapshot",
    "evaluation_weights",
]
