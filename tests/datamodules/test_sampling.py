"""The order of examples is a function of seed and epoch."""

from __future__ import annotations

import torch

from lightning_opt.datamodules._sampling import SeededSampler


def order(seed: int, epoch: int, size: int = 50) -> list[int]:
    return list(SeededSampler(size, seed=seed, epoch=lambda: epoch))


def test_each_epoch_is_a_permutation():
    assert sorted(order(0, 5)) == list(range(50))


def test_orders_differ_by_epoch_and_by_seed():
    orders = {tuple(order(seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_global_random_state_neither_matters_nor_moves():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = order(0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert order(0, 0) == first


def test_every_pair_of_positions_is_equally_likely():
    """A permutation drawn with a bias would favor some images early in the epoch."""
    firsts = torch.tensor([order(0, epoch, size=5)[0] for epoch in range(1000)])
    counts = torch.bincount(firsts, minlength=5)
    assert ((counts - 200).abs() < 65).all()  # five standard deviations
