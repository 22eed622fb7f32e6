"""k-means++ seeds and Lloyd steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError, ShapeError
from ppgen.ops.kmeans import kmeans, lloyd, nearest, plus_plus
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean


def clusters(num: int = 300, spread: float = 0.1) -> Tensor:
    with forked_rng(0):
        corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
        return corners.repeat(num // 4, 1) + spread * torch.randn(num, 2)


def test_nearest_is_the_loop() -> None:
    x = clusters().double()
    labels, distances = nearest(x, x[:7])
    table = torch.stack([(x - centre).square().sum(-1) for centre in x[:7]], dim=-1)
    assert torch.equal(labels, table.argmin(-1))
    torch.testing.assert_close(distances, table.amin(-1))


def test_seeds_find_separated_clusters() -> None:
    x = clusters()
    for seed in range(10):
        with forked_rng(seed):
            labels = kmeans(x, 4)[1]
        assert torch.bincount(labels, minlength=4).tolist() == [75] * 4


def test_seeds_are_data_drawn_by_squared_distance() -> None:
    # From 0, the points 1 and 3 are drawn with odds 1 : 9; with both as start, 1/3 each.
    x = torch.tensor([[0.0], [1.0], [3.0]])
    with forked_rng(1):
        pairs = torch.stack([plus_plus(x, 2, num_candidates=1)[:, 0] for _ in range(3000)])
    from_zero = pairs[pairs[:, 0] == 0][:, 1]
    far = (from_zero == 3).double()
    assert_mean(far, 0.9)
    assert_mean((pairs[:, 0] == 0).double(), 1 / 3)
    with pytest.raises(AssertionError):
        assert_mean(far, 0.75)  # what drawing by the distance itself would give


def test_lloyd_never_raises_the_distance() -> None:
    with forked_rng(2):
        x = torch.randn(500, 3, dtype=torch.float64)
        centres = plus_plus(x, 9)
    before = nearest(x, centres)[1].sum()
    for _ in range(8):
        centres, labels = lloyd(x, centres, 1)
        after = nearest(x, centres)[1].sum()
        assert after <= before + 1e-9
        before = after
    assert torch.equal(labels, nearest(x, centres)[0])


def test_coinciding_points_give_finite_seeds() -> None:
    with forked_rng(0):
        centres, labels = kmeans(torch.ones(5, 2), 3)
    assert torch.equal(centres, torch.ones(3, 2))
    assert labels.shape == (5,)


def test_seeded_draws_repeat_and_leave_the_generator() -> None:
    x = clusters(spread=3.0)
    with forked_rng(3):
        first = plus_plus(x, 5)
    with forked_rng(3):
        assert torch.equal(first, plus_plus(x, 5))


def test_bad_arguments_are_named() -> None:
    x = clusters()
    with pytest.raises(ConfigError, match="num_centres: expected from 1 to the 300 data, got 301"):
        plus_plus(x, 301)
    with pytest.raises(ConfigError, match="num_candidates"):
        plus_plus(x, 2, num_candidates=0)
    with pytest.raises(ShapeError, match="flatten"):
        plus_plus(x[None], 2)
