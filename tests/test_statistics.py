"""The statistical assertions themselves: their rate, what they accept, and what they reject.

For each assertion there is a correct input at the size that tests use, which it must accept,
and a planted defect of a size that it must reject with overwhelming probability.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import scipy.stats
import torch
from torch import Tensor

from ppgen.ops.random import forked_rng
from ppgen.testing import statistics
from ppgen.testing.statistics import (
    FALSE_ALARM_RATE,
    assert_close_to,
    assert_mean,
    assert_same_distribution,
    critical_z,
)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with forked_rng(0):
        yield


@pytest.mark.parametrize("num_comparisons", [1, 7, 1000, 100_000])
def test_critical_z_has_the_declared_rate(num_comparisons: int) -> None:
    z = critical_z(num_comparisons)
    # 2 P(Z > z) for each comparison: together the false-alarm rate.
    assert num_comparisons * 2 * scipy.stats.norm.sf(z) == pytest.approx(FALSE_ALARM_RATE, rel=1e-6)


def test_false_alarms_come_at_the_declared_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate of 5%, of 2000 correct inputs about 5% are rejected: never more, and not none."""
    monkeypatch.setattr(statistics.critical_z, "__defaults__", (1, 0.05))
    trials = 2000

    def rejected(draws: Tensor) -> bool:
        try:
            assert_mean(draws, 0.0)
        except AssertionError:
            return True
        return False

    count = sum(rejected(torch.randn(200, 3)) for _ in range(trials))
    low, high = scipy.stats.binom.interval(1 - FALSE_ALARM_RATE, trials, 0.05)
    assert low <= count <= high


def test_close_to_accepts_what_lies_within_z_standard_errors() -> None:
    error = torch.tensor([1.0, 0.1])
    inside = 0.999 * critical_z(2) * error
    assert_close_to(torch.tensor([3.0, 4.0]) + inside, torch.tensor([3.0, 4.0]), error)


@pytest.mark.parametrize("coordinate", [0, 1])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_close_to_rejects_one_coordinate_outside(coordinate: int, sign: float) -> None:
    error = torch.tensor([1.0, 0.1])
    outside = torch.zeros(2)
    outside[coordinate] = sign * 1.001 * critical_z(2) * error[coordinate]
    with pytest.raises(AssertionError, match=f"coordinate {coordinate} of 2"):
        assert_close_to(torch.tensor([3.0, 4.0]) + outside, torch.tensor([3.0, 4.0]), error)


def test_close_to_of_an_exact_number_rejects_any_real_gap() -> None:
    assert_close_to(torch.tensor(2.0), 2.0, torch.tensor(0.0))
    with pytest.raises(AssertionError):
        assert_close_to(torch.tensor(2.0001), 2.0, torch.tensor(0.0))


def test_close_to_rejects_nan() -> None:
    with pytest.raises(AssertionError):
        assert_close_to(torch.tensor(math.nan), 0.0, torch.tensor(1.0))
    with pytest.raises(AssertionError):
        assert_close_to(torch.tensor(0.0), 0.0, torch.tensor(math.nan))


def test_mean_accepts_the_right_mean() -> None:
    assert_mean(3.0 + 2.0 * torch.randn(10_000, 4), 3.0)
    assert_mean(torch.rand(10_000, 2, 2), torch.full((2, 2), 0.5))


@pytest.mark.parametrize("shift", [-0.1, 0.1])
def test_mean_rejects_a_shift_of_a_tenth_sd(shift: float) -> None:
    # 10 standard errors of 10 000 draws, against a critical z of 5.3 for 8 coordinates.
    draws = torch.randn(10_000, 8)
    draws[:, 5] += shift
    with pytest.raises(AssertionError, match="coordinate 5 of 8"):
        assert_mean(draws, 0.0)


def test_mean_of_squares_rejects_a_scale_off_by_a_tenth() -> None:
    draws = torch.randn(10_000)
    assert_mean(draws**2, 1.0)
    with pytest.raises(AssertionError):
        assert_mean((1.1 * draws) ** 2, 1.0)


def test_mean_needs_a_hundred_draws() -> None:
    with pytest.raises(ValueError, match="got 99"):
        assert_mean(torch.randn(99), 0.0)


def test_same_distribution_accepts_two_samples_of_one() -> None:
    assert_same_distribution(torch.randn(4000, 5), torch.randn(3000, 5))
    assert_same_distribution(
        torch.bernoulli(torch.full((4000, 2, 2), 0.3)), torch.bernoulli(torch.full((4000, 2, 2), 0.3))
    )


def test_same_distribution_rejects_a_shift() -> None:
    second = torch.randn(4000, 5)
    second[:, 2] += 0.25
    with pytest.raises(AssertionError, match="Kolmogorov-Smirnov"):
        assert_same_distribution(torch.randn(4000, 5), second)


def test_same_distribution_rejects_a_wrong_scale() -> None:
    # The radius sees it: in 10 dimensions, 10% of scale is .9 standard deviations of the squared norm.
    with pytest.raises(AssertionError):
        assert_same_distribution(torch.randn(4000, 10), 1.1 * torch.randn(4000, 10))


def test_same_distribution_rejects_a_lost_correlation() -> None:
    """Coordinates alone have the same law; the projections do not."""
    common = torch.randn(4000, 1)
    correlated = 0.8 * common + 0.6 * torch.randn(4000, 4)
    with pytest.raises(AssertionError):
        assert_same_distribution(correlated, torch.randn(4000, 4))


def test_same_distribution_rejects_copies_of_one_point() -> None:
    with pytest.raises(AssertionError):
        assert_same_distribution(torch.randn(1000, 3), torch.zeros(1000, 3))


def test_same_distribution_leaves_the_generator_alone() -> None:
    first, second = torch.randn(200, 2), torch.randn(200, 2)
    before = torch.get_rng_state()
    assert_same_distribution(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("ties", [False, True])
def test_distance_is_that_of_scipy(ties: bool) -> None:
    first, second = torch.randn(300).double(), (0.2 + torch.randn(500)).double()
    if ties:
        first, second = first.round(), second.round()
    expected = scipy.stats.ks_2samp(first.numpy(), second.numpy()).statistic
    assert statistics._ks_distance(first, second) == pytest.approx(expected, abs=1e-6)


def test_bound_is_conservative(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate of 5% over all views, at most 5% of correct pairs are rejected."""
    monkeypatch.setattr(statistics, "FALSE_ALARM_RATE", 0.05)
    trials, rejected = 300, 0
    for _ in range(trials):
        try:
            assert_same_distribution(torch.randn(200, 2), torch.randn(200, 2))
        except AssertionError:
            rejected += 1
    assert rejected <= scipy.stats.binom.ppf(1 - FALSE_ALARM_RATE, trials, 0.05)
