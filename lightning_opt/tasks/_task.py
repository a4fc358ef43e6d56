"""What the tasks share: their optimizer, a compiled network, labels drawn for the Fisher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_opt.errors import UsageError

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]
MakeLRScheduler = Callable[[Optimizer], LRScheduler]


class Task(LightningModule):
    """A network with its optimizer.

    Args:
        network: What is trained.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes a scheduler, stepped per epoch, from the optimizer.
        compile: Whether ``torch.compile`` compiles the network, in place.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer | None,
        lr_scheduler: MakeLRScheduler | None,
        compile: bool,
    ) -> None:
        super().__init__()
        self.network = network
        self._make_optimizer = optimizer
        self._make_lr_scheduler = lr_scheduler
        self._compiles = compile
        if compile:
            network.compile()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self._make_optimizer is None:
            name = type(self).__name__
            raise UsageError(
                f"{name} has no optimizer: pass optimizer=, for instance "
                f"{name}(network, optimizer=torch.optim.Adam), or --optimizer on the "
                f"command line (or a shipped one: --config adam)."
            )
        optimizer = self._make_optimizer(self.parameters())
        if self._make_lr_scheduler is None:
            return optimizer
        return [optimizer], [self._make_lr_scheduler(optimizer)]

    def on_fit_start(self) -> None:
        for optimizer in self._own_optimizers():
            # Compiled code stops at its hooks on the layers, or misses them, by the backend.
            if self._compiles and hasattr(optimizer, "describe_loss"):
                name = type(optimizer).__name__
                raise UsageError(
                    f"{name} looks at every layer, which compiled code does not show: take "
                    f"compile=False with {name}."
                )

    def _show_logits(self, logits: Tensor) -> None:
        """Lets an optimizer that takes the Fisher's labels from the model draw them.

        Args:
            logits: One row for each term of the loss.
        """
        if self.training:
            for optimizer in self._own_optimizers():
                if getattr(optimizer, "fisher", None) == "sampled":
                    optimizer.sample(logits)

    def _own_optimizers(self) -> Iterator[Any]:
        """The optimizers, and of a Lookahead the one that it is over."""
        trainer: Any = self._trainer  # None outside of a Trainer
        for optimizer in trainer.optimizers if trainer is not None else []:
            yield getattr(optimizer, "base", optimizer)
