"""RoBERTa's masking (Liu et al., 1907.11692; Devlin et al., 1810.04805), as a function of bits.

Each token is chosen with probability p, 0.15 in the paper, independently of all others, and the
network predicts the chosen ones: 80 % of them are replaced by ``<mask>``, 10 % by a token drawn
uniformly from the vocabulary, and 10 % stay as they are. Special tokens are neither chosen nor
drawn. In a block of which no token is chosen, the one that came closest is, so that every block has
a term in the loss; of blocks of 128 tokens, that is one in 10⁹.

The randomness of a block is one integer b below 2⁶², that of its draw. Token t takes the words

    w₁ = mix(mix(b) + (2t + 1)·γ),    w₂ = mix(mix(b) + (2t + 2)·γ)    modulo 2⁶⁴

with the finalizer and the increment γ of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): counters,
where a generator with a state would have to run once a block. The upper half of w₁ chooses the
token, its lower half what becomes of it, and the upper half of w₂ is the token drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORED = -100  # the label of what is not predicted: PyTorch's and transformers' own

Words = npt.NDArray[np.uint64]

_HALF = 2**32
_GAMMA = 0x9E3779B97F4A7C15


class Masking:
    """Makes a batch of masked language modeling from blocks of tokens.

    Args:
        mask: Id of ``<mask>``.
        special: Ids that are neither predicted nor drawn.
        vocab_size: Ids are below it.
        probability: Share of the tokens that are predicted.

    >>> masking = Masking(mask=6, special=[0, 2, 6], vocab_size=7, probability=0.5)
    >>> batch = masking(np.array([[0, 3, 4, 5, 2]]), bits=np.array([42]))
    >>> sorted(batch), batch["input_ids"].shape, batch["labels"][0, 0].item()
    (['input_ids', 'labels'], torch.Size([1, 5]), -100)
    """

    def __init__(
        self, *, mask: int, special: Sequence[int], vocab_size: int, probability: float
    ) -> None:
        self._mask = mask
        self._special = np.zeros(vocab_size, dtype=bool)
        self._special[list(special)] = True
        self._ordinary = np.flatnonzero(~self._special)
        self._below = np.uint32(round(probability * _HALF))

    def __call__(self, blocks: np.ndarray, bits: np.ndarray) -> dict[str, Tensor]:
        """Masks each block as its bits say.

        Args:
            blocks: ``(batch, tokens)`` of ids; they stay as they are.
            bits: ``(batch,)`` of integers of at least 0.

        Returns:
            ``input_ids`` and ``labels``, each ``(batch, tokens)`` in int64. Labels are
            :data:`IGNORED` where nothing is predicted.
        """
        first, second = _words(bits, blocks.shape[1])
        chosen = self._chosen(blocks, _upper(first))
        kind, drawn = _lower(first), self._drawn(_upper(second))
        inputs = blocks.astype(np.int64)
        labels = np.where(chosen, inputs, IGNORED)
        inputs[chosen & (kind < 0.8 * _HALF)] = self._mask
        random = chosen & (kind >= 0.8 * _HALF) & (kind < 0.9 * _HALF)
        inputs[random] = drawn[random]
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}

    def _chosen(self, blocks: np.ndarray, random: Words) -> np.ndarray:
        # Special tokens come last of all, whatever their random number.
        order = np.where(self._special[blocks], np.uint64(_HALF), random)
        first = order.min(axis=1, keepdims=True)
        chosen: np.ndarray = (order < self._below) | ((order == first) & (first < _HALF))
        return chosen

    def _drawn(self, random: Words) -> np.ndarray:
        # ⌊n·u⌋ of 32 bits favors no token by more than n / 2³².
        count = np.uint64(len(self._ordinary))
        drawn: np.ndarray = self._ordinary[(random * count) >> np.uint64(32)]
        return drawn


def _words(bits: np.ndarray, tokens: int) -> tuple[Words, Words]:
    """Two 64-bit words for each token, ``(batch, tokens)`` each."""
    steps = np.arange(1, 2 * tokens + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    words = _mix(_mix(bits.astype(np.uint64))[:, None] + steps)
    return words[:, ::2], words[:, 1::2]


def _mix(x: Words) -> Words:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = x ^ (x >> np.uint64(31))
    return mixed


def _upper(words: Words) -> Words:
    upper: Words = words >> np.uint64(32)
    return upper


def _lower(words: Words) -> Words:
    lower: Words = words & np.uint64(_HALF - 1)
    return lower
