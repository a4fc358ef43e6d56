"""Full Hessians by ``torch.func`` (forward over reverse), and matrices with known spectra."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call


def full_hessian(module: nn.Module, loss: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> Tensor:
    """The matrix (n, n), over the trainable parameters in the module's order.

    ``loss(network)`` computes the loss from a function that is the module with given weights.
    """
    trainable = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    fixed = {
        name: tensor.detach()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if name not in trainable
    }

    def of_weights(flat: Tensor) -> Tensor:
        pieces = torch.split(flat, [p.numel() for p in trainable.values()])
        weights: Mapping[str, Tensor] = {
            name: piece.view_as(p)
            for piece, (name, p) in zip(pieces, trainable.items(), strict=True)
        }
        # Clones, because the transforms refuse writes into captured buffers (BatchNorm's).
        buffers = {name: tensor.clone() for name, tensor in fixed.items()}
        return loss(lambda x: functional_call(module, {**weights, **buffers}, (x,)))

    flat = torch.cat([p.reshape(-1) for p in trainable.values()])
    gradient = torch.func.grad(of_weights)
    # Column by column: torch.func.hessian, which is the same under vmap, is wrong by some percent
    # through BatchNorm in training mode (torch 2.14, against central differences).
    with warnings.catch_warnings():
        # Forward mode imports decompositions that torch still compiles with torch.jit.script.
        warnings.filterwarnings("ignore", ".*torch.jit.script.*")
        columns = [
            torch.func.jvp(gradient, (flat,), (axis,))[1]
            for axis in torch.eye(len(flat), dtype=flat.dtype)
        ]
    return torch.stack(columns, dim=1)


def full_jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """The derivatives of every output, shape (examples, outputs, n), one reverse pass each."""
    params = list(module.parameters())
    outputs = module(x)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(z, params, retain_graph=True)])
        for z in outputs.reshape(-1)
    ]
    return torch.stack(rows).reshape(*outputs.shape, -1)


def rotated(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues whose eigenvectors are not the axes."""
    n = len(eigenvalues)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (q * eigenvalues.double()) @ q.T
