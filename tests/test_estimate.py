"""The arithmetic of Estimate: kinds, standard errors, printing."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to, assert_mean


def test_of_defaults_to_no_error_and_takes_kinds_by_name() -> None:
    estimate = Estimate.of(torch.ones(3), "lower_bound")
    assert estimate.kind is Kind.LOWER_BOUND
    assert torch.equal(estimate.std_error, torch.zeros(3))


def test_of_refuses_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="guess"):
        Estimate.of(torch.ones(1), "guess")


def test_is_frozen() -> None:
    estimate = Estimate.of(torch.ones(1), Kind.EXACT)
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate.kind = Kind.ESTIMATE  # type: ignore[misc]


def test_mean_by_hand() -> None:
    mean = Estimate(torch.tensor([1.0, 2.0, 6.0]), Kind.ESTIMATE, torch.tensor([9.0, 9.0, 9.0])).mean()
    assert mean.kind is Kind.ESTIMATE
    assert float(mean.value) == pytest.approx(3.0)
    # Sample variance (4 + 1 + 9) / 2 = 7.
    assert float(mean.std_error) == pytest.approx(math.sqrt(7 / 3))


def test_mean_of_one_datum_keeps_its_monte_carlo_error() -> None:
    mean = Estimate(torch.tensor([2.0]), Kind.LOWER_BOUND, torch.tensor([0.25])).mean()
    assert (float(mean.value), float(mean.std_error)) == (2.0, 0.25)
    assert mean.kind is Kind.LOWER_BOUND
    assert mean.value.shape == mean.std_error.shape == ()


def _means(num: int, num_data: int) -> tuple[Tensor, Tensor]:
    """Means and their squared standard errors over many data sets with noise of known size."""
    with forked_rng(3):
        noise = 0.5 * torch.randn(num, num_data, dtype=torch.float64)
        values = 2 * torch.randn(num, num_data, dtype=torch.float64) + noise
    each = [Estimate(v, Kind.ESTIMATE, torch.full_like(v, 0.5)).mean() for v in values]
    return torch.stack([e.value for e in each]), torch.stack([e.std_error for e in each]) ** 2


def test_error_of_the_mean_holds_data_and_monte_carlo() -> None:
    _, squared_errors = _means(400, 20)
    assert_mean(squared_errors, (4 + 0.25) / 20, "squared standard error")


def test_error_of_the_mean_twin_without_monte_carlo_is_caught() -> None:
    _, squared_errors = _means(400, 20)
    with pytest.raises(AssertionError):
        assert_mean(squared_errors - 2 * 0.25 / 20, (4 + 0.25) / 20, "squared standard error")


def test_error_of_the_mean_is_the_spread_of_means() -> None:
    means, squared_errors = _means(2000, 20)
    spread = means.var()
    # The variance of a sample variance of normal draws.
    assert_close_to(spread, squared_errors.mean(), spread * math.sqrt(2 / (len(means) - 1)))


@pytest.mark.parametrize(
    ("kind", "flipped"),
    [
        (Kind.EXACT, Kind.EXACT),
        (Kind.LOWER_BOUND, Kind.UPPER_BOUND),
        (Kind.UPPER_BOUND, Kind.LOWER_BOUND),
        (Kind.ESTIMATE, Kind.ESTIMATE),
        (Kind.UNNORMALISED, Kind.UNNORMALISED),
    ],
)
def test_affine(kind: Kind, flipped: Kind) -> None:
    estimate = Estimate(torch.tensor([1.0, -2.0]), kind, torch.tensor([0.1, 0.2]))
    up, down = estimate.affine(2.0, 1.0), estimate.affine(-3.0)
    assert (up.kind, down.kind) == (kind, flipped)
    assert torch.equal(up.value, torch.tensor([3.0, -3.0]))
    assert torch.equal(down.value, torch.tensor([-3.0, 6.0]))
    assert torch.allclose(up.std_error, torch.tensor([0.2, 0.4]))
    assert torch.allclose(down.std_error, torch.tensor([0.3, 0.6]))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Kind.EXACT, "1.5000 ± 0.2500 (exact)"),
        (Kind.LOWER_BOUND, "≥ 1.5000 ± 0.2500 (lower_bound)"),
        (Kind.UPPER_BOUND, "≤ 1.5000 ± 0.2500 (upper_bound)"),
    ],
)
def test_prints_its_kind(kind: Kind, text: str) -> None:
    assert str(Estimate(torch.tensor(1.5), kind, torch.tensor(0.25))) == text


def test_prints_many_by_their_mean() -> None:
    text = str(Estimate.of(torch.tensor([1.0, 3.0]), Kind.EXACT))
    assert text == "exact of shape (2,), mean 2.0000 ± 1.0000 (exact)"


def test_a_shared_error_does_not_average_out() -> None:
    shared = torch.tensor(0.5)
    each = Estimate(torch.tensor([1.0, 2.0, 6.0]), Kind.UPPER_BOUND, torch.full((3,), 0.5), shared)
    mean = each.mean()
    assert float(mean.std_error) == pytest.approx(math.sqrt(7 / 3 + 0.25))
    assert mean.shared_error is shared
    turned = each.affine(-2.0)
    assert turned.shared_error is not None
    assert (turned.kind, float(turned.shared_error)) == (Kind.LOWER_BOUND, 1.0)
    # One datum's own error holds it already.
    one = Estimate(torch.tensor([2.0]), Kind.ESTIMATE, torch.tensor([0.7]), shared).mean()
    assert float(one.std_error) == pytest.approx(0.7)
