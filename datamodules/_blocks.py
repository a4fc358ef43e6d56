"""Packing: tokens on disk as blocks of equal length, masked as their draws say.

RoBERTa's FULL-SENTENCES (Liu et al., 1907.11692, section 4.2): text goes on across the end of a
document, with a separator between. A block is what RoBERTa's tokenizer makes of one sequence,

    <s> t₁ … tₙ </s>        n = block_size − 2,

so that a network sees ``<s>`` where its checkpoint was trained to, and positions start the same.
The next block goes on with tₙ₊₁. Since ``<s>`` and ``</s>`` are added as a block is read, the
tokens on disk serve every block size.

What is left at the end of a split, less than a block, is left out: blocks need no padding.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ._masking import Masking


class MaskedBlocks(Dataset[dict[str, Tensor]]):
    """The blocks of a file of tokens, a batch a time: ``blocks[draws]``.

    Args:
        path: The file.
        count: Tokens in it.
        dtype: Type of its ids.
        block_size: Tokens in a block, with ``<s>`` and ``</s>``.
        begin, separator: Ids of ``<s>`` and ``</s>``.
        masking: Masks the blocks.
    """

    def __init__(
        self,
        path: Path,
        count: int,
        dtype: np.dtype[Any],
        *,
        block_size: int,
        begin: int,
        separator: int,
        masking: Masking,
    ) -> None:
        self._path = path
        self._dtype = dtype
        self._shape = count // (block_size - 2), block_size - 2
        self._begin, self._separator = begin, separator
        self._masking = masking

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, draws: Tensor) -> dict[str, Tensor]:
        """The batch of draws ``(batch, 2)``: indices of blocks, and the bits that mask them."""
        indices, bits = draws.numpy().T
        blocks = np.empty((len(draws), self._shape[1] + 2), dtype=self._dtype)
        blocks[:, 0], blocks[:, -1] = self._begin, self._separator
        blocks[:, 1:-1] = self._tokens[indices]
        return self._masking(blocks, bits)

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned maps the file itself; pickled, a map is all that it shows.
        return {name: value for name, value in vars(self).items() if name != "_tokens"}

    @cached_property
    def _tokens(self) -> np.ndarray:
        # Without the subclass, whose every view costs more than the copy of a batch.
        return np.asarray(np.memmap(self._path, self._dtype, mode="r", shape=self._shape))
