"""RoBERTa (Liu et al., 1907.11692) with its language-modeling head, transformers' own modules.

Masked language modeling asks for the logits of about 15 % of the positions. Everything behind the
last attention acts on each position alone, so that for the others it need not be computed at all:

    H = the last layer's input, C = its attention's output, P = the positions asked for
    logits = head(layer(C[P], H[P]))        in place of  head(layer(C, H))[P]

These are the same numbers to rounding. Of RoBERTa with 6 layers that is the projection to the
vocabulary, nearly half of the arithmetic, and nine twelfths of the last layer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import RobertaConfig, RobertaForMaskedLM
from transformers.models.roberta.modeling_roberta import RobertaLayer

from lightning_opt.errors import UsageError

_PAD = 1  # the vocabulary of every RoBERTa begins with <s>, <pad>, </s>, <unk>


class Roberta(nn.Module):
    """RoBERTa with a masked-language-modeling head, newly initialized.

    The defaults have 82.2M parameters. Feed-forward layers are four times as wide as the others.
    The input embedding and the projection to the vocabulary are one tensor.

    Args:
        vocab_size: Number of tokens.
        layers: Number of layers.
        width: Width of the hidden states.
        heads: Number of attention heads.
        max_length: The longest sequence, in tokens.
        dropout: Probability, of hidden states and of attention.
        pad_token_id: The token that fills up sequences. It has no position and is not trained.
        gradient_checkpointing: In training, keep the input of each layer only, and compute the
            rest again in the backward: less memory for about a third more time.

    Raises:
        UsageError: a size is out of range.

    Attributes:
        model: transformers' ``RobertaForMaskedLM``, with the weights. Its ``save_pretrained`` makes
            a checkpoint for :meth:`from_pretrained`, here and there.
        vocab_size, max_length, pad_token_id, gradient_checkpointing: As above.

    Shape:
        Token ids ``(batch, length)`` to logits ``(batch, length, vocab_size)``; with ``positions``
        to ``(number of positions, vocab_size)``.

    >>> import torch
    >>> network = Roberta(vocab_size=100, layers=2, width=32, heads=4, max_length=16).eval()
    >>> ids = torch.randint(5, 100, (2, 16))
    >>> logits, some = network(ids), network(ids, positions=torch.tensor([3, 20]))
    >>> logits.shape, torch.allclose(some, logits.flatten(0, 1)[[3, 20]], atol=1e-5)
    (torch.Size([2, 16, 100]), True)
    """

    def __init__(
        self,
        vocab_size: int = 50_265,
        *,
        layers: int = 6,
        width: int = 768,
        heads: int = 12,
        max_length: int = 512,
        dropout: float = 0.1,
        pad_token_id: int = _PAD,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (
            ("vocab_size", vocab_size),
            ("layers", layers),
            ("width", width),
            ("heads", heads),
            ("max_length", max_length),
        ):
            if value < 1:
                raise UsageError(f"Roberta needs {name} >= 1, got {value}.")
        if width % heads:
            raise UsageError(f"Roberta needs a width that its heads divide: {width} / {heads}.")
        if not 0 <= dropout < 1:
            raise UsageError(f"Roberta needs a dropout in [0, 1), got {dropout}.")
        if not 0 <= pad_token_id < vocab_size:
            raise UsageError(
                f"Roberta needs a pad_token_id below vocab_size={vocab_size}, got {pad_token_id}."
            )
        config = RobertaConfig(
            vocab_size=vocab_size,
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            # Positions are counted from the one after the padding's.
            max_position_embeddings=max_length + pad_token_id + 1,
            pad_token_id=pad_token_id,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self._take(RobertaForMaskedLM(config), gradient_checkpointing)

    @classmethod
    def from_pretrained(cls, checkpoint: str, *, gradient_checkpointing: bool = False) -> Roberta:
        """A Roberta with the sizes and weights of a checkpoint, in float32.

        Args:
            checkpoint: A folder that ``save_pretrained`` has written, or a name on the Hugging Face
                hub, such as ``roberta-base``. Weights are read from safetensors only, which cannot
                hold code.
            gradient_checkpointing: As above.

        Raises:
            UsageError: there is no such checkpoint, or it is not one of a RoBERTa with its
                language-modeling head.

        In a configuration it is ``class_path: lightning_opt.models.Roberta.from_pretrained``.
        """
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network._take(_load(checkpoint), gradient_checkpointing)
        return network

    def _take(self, model: RobertaForMaskedLM, gradient_checkpointing: bool) -> None:
        config: Any = model.config
        self.model = model
        self.vocab_size: int = config.vocab_size
        self.pad_token_id: int = config.pad_token_id
        self.max_length: int = config.max_position_embeddings - config.pad_token_id - 1
        model.roberta.encoder.layer[-1].__class__ = _LastLayer
        self.gradient_checkpointing = gradient_checkpointing

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits of all positions, or of some.

        Args:
            input_ids: Token ids, ``(batch, length)``.
            attention_mask: 0 at the tokens that are not to be looked at, ``(batch, length)``.
            positions: Indices into the flattened ``input_ids`` of the positions whose logits are
                wanted.

        Raises:
            ValueError: the sequences are longer than ``max_length``.
        """
        if input_ids.shape[1] > self.max_length:
            raise ValueError(
                f"Sequences of {input_ids.shape[1]} tokens are too long for this Roberta: take "
                f"max_length={input_ids.shape[1]}, or a block_size of {self.max_length}."
            )
        roberta = self.model.roberta
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        hidden = roberta.embeddings(input_ids=input_ids)
        *layers, last = roberta.encoder.layer
        for layer in layers:  # not the last: its backward comes at once
            hidden = _states(self._checkpointed(layer, hidden, mask))
        hidden = _states(last(hidden, mask, positions=positions))
        logits: Tensor = self.model.lm_head(hidden)
        return logits

    def _checkpointed(self, layer: nn.Module, *arguments: Tensor | None) -> Any:
        if self.gradient_checkpointing and self.training:
            # Reentrant checkpoints have no second derivatives, which curvature needs.
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)


class _LastLayer(RobertaLayer):  # type: ignore[no-untyped-call]
    """A layer that can leave out positions. Called as transformers does, it is transformers'."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *others: Any,
        positions: Tensor | None = None,
        **options: Any,
    ) -> Any:
        if positions is None:
            return super().forward(hidden_states, attention_mask, *others, **options)
        context = self.attention.self(hidden_states, attention_mask)[0]
        context, hidden = (each.flatten(0, 1)[positions] for each in (context, hidden_states))
        attended = self.attention.output(context, hidden)
        return self.output(self.intermediate(attended), attended)


def _states(output: Any) -> Tensor:
    """The hidden states that a layer returns; before transformers 5, first of several things."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _load(checkpoint: str) -> RobertaForMaskedLM:
    folder = Path(checkpoint).expanduser()
    if checkpoint.startswith((".", "~", os.sep)) and not folder.is_dir():
        raise UsageError(f"There is no folder {checkpoint} with a checkpoint of RoBERTa.")
    where: Any = folder if folder.is_dir() else checkpoint
    try:
        kind = RobertaConfig.get_config_dict(where)[0].get("model_type")
        if kind != "roberta":
            raise UsageError(f"{checkpoint} is a checkpoint of the kind {kind!r}, not 'roberta'.")
        load: Any = RobertaForMaskedLM.from_pretrained
        model, found = load(
            where,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except OSError as error:
        raise UsageError(
            f"No RoBERTa could be loaded from {checkpoint!r}, by safetensors: {error}\nWithout a "
            f"network, fetch it elsewhere (hf download {checkpoint}) and name the folder."
        ) from error
    if missing := sorted({*found["missing_keys"], *found["mismatched_keys"]}):
        raise UsageError(
            f"{checkpoint} lacks weights of a RoBERTa with its language-modeling head: "
            f"{', '.join(map(str, missing[:3]))}{', ...' if len(missing) > 3 else ''}."
        )
    network: RobertaForMaskedLM = model.train()  # as a new one; transformers loads for evaluation
    return network
