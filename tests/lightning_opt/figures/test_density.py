"""The smoothed density against what it must be of nodes and weights that are known."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_opt.figures import density

GRID = np.linspace(-5, 15, 8001)
STEP = GRID[1] - GRID[0]


def test_it_integrates_to_one_over_every_probe():
    random = np.random.default_rng(0)
    nodes = random.uniform(0, 10, (3, 20))
    weights = random.dirichlet(np.ones(20), 3)
    assert np.sum(density(nodes, weights, GRID, 0.2)) * STEP == pytest.approx(1, abs=1e-9)


def test_each_node_keeps_its_place_its_weight_and_the_width():
    nodes, weights = np.array([[0.0, 4.0, 9.0]]), np.array([[0.7, 0.2, 0.1]])
    heights = density(nodes, weights, GRID, 0.1)
    for node, weight in zip(nodes[0], weights[0], strict=True):
        near = np.abs(GRID - node) < 1
        mass = heights[near].sum() * STEP
        center = (GRID[near] * heights[near]).sum() * STEP / mass
        variance = ((GRID[near] - node) ** 2 * heights[near]).sum() * STEP / mass
        assert mass == pytest.approx(weight, abs=1e-9)
        assert center == pytest.approx(node, abs=1e-9)
        assert variance == pytest.approx(0.1**2, rel=1e-6)


def test_probes_are_averaged_and_padding_counts_for_nothing():
    nodes = np.array([[0.0, 4.0], [8.0, np.nan]])
    weights = np.array([[0.5, 0.5], [1.0, 0.0]])
    heights = density(nodes, weights, GRID, 0.1)
    assert heights.sum() * STEP == pytest.approx(1, abs=1e-9)
    assert heights[np.abs(GRID - 8) < 1].sum() * STEP == pytest.approx(0.5, abs=1e-9)


def test_a_width_of_zero_is_refused():
    with pytest.raises(ValueError, match="width"):
        density(np.zeros((1, 1)), np.ones((1, 1)), GRID, 0.0)
