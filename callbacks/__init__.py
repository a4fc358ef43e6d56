"""Lightning callbacks that look at the minimum an optimizer ended in.

::

    Trainer(callbacks=[HessianSpectrum(), LossSurface()])      # any LightningModule, unchanged
"""

from .evaluation_weights import EvaluationWeights, evaluation_weights
from .hessian_spectrum import HessianSpectrum
from .loss_surface import LossSurface

__all__ = ["EvaluationWeights", "HessianSpectrum", "LossSurface", "evaluation_weights"]
