"""The Hellinger distance by depth: of Gaussians, where it is known, and of what a network makes of two sets."""

import numpy as np
import pytest
import torch

from unetseg.data.dataset import Batch
from unetseg.evaluation.hellinger import measure


def drawn(mean, spread, pictures=10, seed=0, side=100):
    """Return batches of Gaussian pictures of one channel for each mean."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(pictures, len(mean), side, side, generator=generator, dtype=torch.float64)
    images = noise * torch.tensor(spread).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    none = torch.zeros(pictures, side, side)
    halves = zip(images.split(6), none.split(6), torch.arange(pictures).split(6), strict=True)
    return [Batch(*parts) for parts in halves]


def of_gaussians(mean, spread, other_mean, other_spread):
    """The distance of two Gaussians, in closed form."""
    squares = spread**2 + other_spread**2
    height = np.sqrt(2 * spread * other_spread / squares) * np.exp(-((mean - other_mean) ** 2) / (4 * squares))
    return np.sqrt(1 - height)


def features(images):
    return {"first": images[:, :1], "both": images, "dead": torch.full_like(images, 5.0)}


def test_the_distance_of_gaussians_is_the_closed_form():
    found = measure(features, drawn([0.0, 2.0], [1.0, 1.0]), drawn([1.0, 2.0], [1.5, 3.0], seed=1), [""] * 10)
    table = found.set_index("depth")
    known = [of_gaussians(0, 1, 1, 1.5), of_gaussians(2, 1, 2, 3)]
    assert table.hellinger["first"] == pytest.approx(known[0], rel=0.02)
    assert table.hellinger["both"] == pytest.approx(np.mean(known), rel=0.02), "the mean over the channels"
    assert table.hellinger["dead"] == 0
    assert table.channels.to_dict() == {"first": 1, "both": 2, "dead": 2}
    assert (table.within < 0.02).all(), "halves of one set are alike"
    assert (table.hellinger_low <= table.hellinger).all()
    assert table.hellinger_high["first"] - table.hellinger["first"] < 0.01


def test_sets_that_share_no_value_are_1_apart_and_equal_ones_0():
    far, near = drawn([100.0], [1.0]), drawn([0.0], [1.0])
    assert measure(features, near, far, [""] * 10).hellinger[0] == pytest.approx(1)
    assert measure(features, near, near, [""] * 10).hellinger[0] == 0


def test_the_counts_are_those_of_numpy_and_the_interval_leaves_out_one_block_in_turn():
    near, far = drawn([0.0], [1.0], side=9), drawn([0.5], [2.0], seed=1, side=9)
    first, second = (np.concatenate([batch.images[:, 0] for batch in own]) for own in (near, far))
    means = [np.mean([np.mean(own**power) for own in (first, second)]) for power in (1, 2)]
    spread = np.sqrt(means[1] - means[0] ** 2)
    edges = np.linspace(means[0] - 4 * spread, means[0] + 4 * spread, 65)

    def distance(other):
        shares = [np.histogram(own.clip(edges[0], edges[-1]), edges)[0] / own.size for own in (first, other)]
        return np.sqrt(1 - np.sqrt(shares[0] * shares[1]).sum())

    row = measure(features, near, far, [""] * 10).iloc[0]
    assert row.hellinger == pytest.approx(distance(second))
    without = [distance(np.delete(second, left, 0)) for left in range(10)]
    spread = np.sqrt(9 / 10 * np.square(np.array(without) - np.mean(without)).sum())
    assert row.hellinger_high - row.hellinger == pytest.approx(2.262157 * spread, rel=1e-5)  # t of 9 degrees of freedom
