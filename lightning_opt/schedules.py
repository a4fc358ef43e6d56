r"""Learning rates over a whole training, without counting its steps.

:class:`WarmupCosine` rises linearly over the first :math:`W` of :math:`T` steps and falls to zero
along half a cosine (Loshchilov & Hutter, 1608.03983, without restarts; Goyal et al., 1706.02677,
for the warm-up). With :math:`t` counted from 0,

.. math::
    \eta_t = \eta \cdot \begin{cases}
        (t + 1) / (W + 1) & t < W \\
        \tfrac{1}{2} \left(1 + \cos\left(\pi \frac{t - W}{T - W}\right)\right) & t \ge W
    \end{cases}

It is a function of t alone, so that a resumed run goes on where it was.
"""

from __future__ import annotations

from math import cos, pi
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear warm-up, then half a cosine to zero; the module's docstring has the formula.

    The command line tells it how long training takes, so that nobody has to count steps: with
    ``lr_interval: step`` in steps, otherwise in epochs. Steps beyond the last have a rate of 0.

    Args:
        optimizer: Whose rates it changes; those that it finds are the highest.
        warmup: The share of the steps that the rate rises over, in [0, 1).
        total_steps: Number of steps; to be given by :meth:`plan` if left out.

    Raises:
        ValueError: ``warmup`` or ``total_steps`` is out of range.
        RuntimeError: it is to step without having been told how many steps there are.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = WarmupCosine(optimizer, warmup=0.2, total_steps=10)
    >>> def rate_of_a_step():
    ...     rate = optimizer.param_groups[0]["lr"]
    ...     optimizer.step()
    ...     schedule.step()
    ...     return round(rate, 3)
    >>> [rate_of_a_step() for step in range(10)]
    [0.333, 0.667, 1.0, 0.962, 0.854, 0.691, 0.5, 0.309, 0.146, 0.038]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0.05,
        total_steps: int | None = None,
    ) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"WarmupCosine needs warmup in [0, 1), got {warmup}.")
        self.warmup = warmup
        self.total_steps = None if total_steps is None else _checked(total_steps)
        super().__init__(optimizer)

    def plan(self, total_steps: int) -> None:
        """Says how many steps there are, and sets the rates of the present one.

        Raises:
            ValueError: there are none.
        """
        self.total_steps = _checked(total_steps)
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = rates

    def get_lr(self) -> list[float | Tensor]:
        if self.total_steps is None:
            if self.last_epoch == 0:  # PyTorch asks for them before anyone can have told
                return list(self.base_lrs)
            raise RuntimeError(
                "WarmupCosine does not know how many steps there are: pass total_steps=, or call "
                "plan(total_steps) before the first one, as the command line does."
            )
        factor = self._factor(self.last_epoch, self.total_steps)
        return [rate * factor for rate in self.base_lrs]

    def _factor(self, t: int, T: int) -> float:
        W = round(self.warmup * T)
        if t < W:
            return (t + 1) / (W + 1)
        return (1 + cos(pi * min((t - W) / (T - W), 1.0))) / 2

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is; how it goes on from there is the new one's to say."""
        own = ("warmup", "total_steps")
        return {key: value for key, value in super().state_dict().items() if key not in own}


def _checked(total_steps: int) -> int:
    if total_steps < 1:
        raise ValueError(f"WarmupCosine needs total_steps >= 1, got {total_steps}.")
    return total_steps
