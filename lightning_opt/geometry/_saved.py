"""How much memory a graph of autograd holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def bytes_saved(build: Callable[[], object], known: Iterable[Tensor]) -> int:
    """What the graph that ``build`` makes keeps alive, apart from the tensors that are known."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        # Not the tensor itself, which may be the output of the node that saves it: a cycle.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        graph = build()
    # While the graph lives no address is used twice.
    for tensor in known:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    del graph
    return sum(sizes.values())
