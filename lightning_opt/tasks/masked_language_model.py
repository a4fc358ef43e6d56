"""Masked language modeling (Devlin et al., 1810.04805): words that were hidden are predicted.

The loss is the mean over the masked tokens of a batch, as transformers has it, and is computed from
the logits at their positions alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_opt.errors import UsageError

from ._mean_loss import MeanLoss
from ._perplexity import Perplexity
from ._task import MakeLRScheduler, MakeOptimizer, Task

Batch = Mapping[str, Tensor]

_IGNORED = -100  # the label of a position where nothing is predicted


class MaskedLanguageModel(Task):
    """Trains a network to predict masked tokens.

    Logged are ``train_loss`` (every step) and, for ``val`` and ``test``, ``{stage}_loss``, the mean
    over all masked tokens, and ``{stage}_perplexity``, its exponential, both exact over batches and
    ranks that have different numbers of them.

    In training each batch counts the same: gradients that are accumulated over several batches, or
    averaged over ranks, are means of the batches' means, however many tokens each of them masks.
    A batch that masks none has the loss 0.

    Args:
        network: Called as ``network(input_ids, attention_mask, positions)``, it gives the logits
            at the positions, as :class:`~lightning_opt.models.Roberta` does.
        optimizer: Makes the optimizer from the parameters. Left out where LightningCLI's
            ``--optimizer`` gives it.
        lr_scheduler: Makes a scheduler, stepped per epoch, from the optimizer.
        compile: Whether ``torch.compile`` compiles the network, in place. K-FAC is refused then.

    Raises:
        UsageError: before training, the data module's vocabulary, sequences or padding do not fit
            the network's; before a batch is used, it has a token that the network does not.

    Shape:
        A batch is a dict of ``input_ids`` and ``labels``, both ``(batch, length)``, the labels -100
        wherever nothing is predicted; ``attention_mask``, of the same shape, may be in it.

    >>> import torch
    >>> from lightning_opt.models import Roberta
    >>> network = Roberta(vocab_size=100, layers=2, width=32, heads=4, max_length=16)
    >>> task = MaskedLanguageModel(network, optimizer=torch.optim.Adam)
    >>> labels = torch.full((2, 16), -100)
    >>> labels[0, 3] = 7
    >>> batch = {"input_ids": torch.randint(5, 100, (2, 16)), "labels": labels}
    >>> task.loss(batch).shape, task.loss_terms(batch)
    (torch.Size([]), 1)
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: MakeOptimizer | None = None,
        lr_scheduler: MakeLRScheduler | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(network, optimizer, lr_scheduler, compile)
        self.val_loss, self.test_loss = MeanLoss(), MeanLoss()
        self.val_perplexity, self.test_perplexity = Perplexity(), Perplexity()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        logits: Tensor = self.network(input_ids, attention_mask, positions)
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy in nats over the masked tokens of the batch."""
        logits, targets = self._masked(batch)
        self._show_logits(logits)
        return F.cross_entropy(logits, targets, reduction="sum") / max(len(targets), 1)

    def loss_terms(self, batch: Batch) -> int:
        """Number of masked tokens that :meth:`loss` is the mean of."""
        return int((batch["labels"] != _IGNORED).sum())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_loss, self.val_perplexity)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_loss, self.test_perplexity)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The token ids of the batch, those that are masked replaced by the most likely ones.

        Without labels every token is replaced.
        """
        ids = batch["input_ids"]
        if "labels" not in batch:
            everywhere: Tensor = self(ids, batch.get("attention_mask")).argmax(-1)
            return everywhere
        positions = _positions(batch["labels"])
        logits = self(ids, batch.get("attention_mask"), positions)
        return ids.flatten().index_copy(0, positions, logits.argmax(-1)).view_as(ids)

    def setup(self, stage: str) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        network: Any = self.network
        self._check(data, "vocab_size", getattr(network, "vocab_size", math.inf))
        self._check(data, "block_size", getattr(network, "max_length", math.inf))
        padding = getattr(getattr(data, "tokenizer", None), "pad_token_id", None)
        if padding is not None and padding != getattr(network, "pad_token_id", padding):
            raise UsageError(
                f"{type(data).__name__}'s tokenizer has pad_token_id={padding} and "
                f"{type(network).__name__} has pad_token_id={network.pad_token_id}, which it would "
                f"not train: take the tokenizer's."
            )

    def _check(self, data: Any, name: str, limit: float) -> None:
        value = getattr(data, name, None)
        if value is not None and value > limit:
            option = {"vocab_size": "vocab_size", "block_size": "max_length"}[name]
            raise UsageError(
                f"{type(data).__name__} has {name}={value} and {type(self.network).__name__} has "
                f"{option}={limit}: give the network {option}={value}."
            )

    def _masked(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and labels of the masked tokens."""
        labels = batch["labels"]
        positions = _positions(labels)
        targets = labels.flatten()[positions]
        self._check_tokens(batch["input_ids"], targets)
        return self(batch["input_ids"], batch.get("attention_mask"), positions), targets

    def _check_tokens(self, *tokens: Tensor) -> None:
        # A GPU would end the process. It was waited for already, to count the masked tokens.
        last = getattr(self.network, "vocab_size", math.inf) - 1
        bounds = [bound for each in tokens if each.numel() for bound in each.aminmax()]
        if bounds and not (0 <= min(found := torch.stack(bounds).tolist()) <= max(found) <= last):
            raise UsageError(
                f"The tokens of a batch reach from {min(found)} to {max(found)}, and those of "
                f"{type(self.network).__name__} from 0 to {last}: give it the tokenizer's "
                f"vocab_size, and the label {_IGNORED} where nothing is to be predicted."
            )

    def _evaluate(self, batch: Batch, stage: str, mean: MeanLoss, perplexity: Perplexity) -> None:
        logits, targets = self._masked(batch)
        total = F.cross_entropy(logits, targets, reduction="sum")
        for metric in (mean, perplexity):
            metric.update(total, len(targets))
        self.log_dict({f"{stage}_loss": mean, f"{stage}_perplexity": perplexity}, prog_bar=True)


def _positions(labels: Tensor) -> Tensor:
    """Where something is predicted, in the flattened labels."""
    return (labels.flatten() != _IGNORED).nonzero().squeeze(1)
