"""KID against double loops and torchmetrics; unbiased, with a biased twin that must be caught."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from ppgen.contract import Kind
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.metrics import kernel_distance
from ppgen.metrics.resampling import deal, jackknife_std_error
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean


def _normal(num: int, dims: int, seed: int) -> Tensor:
    return torch.randn(num, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _naive(a: Tensor, b: Tensor, degree: int = 3, *, biased: bool = False) -> float:
    """Double loops over pairs; ``biased`` keeps the pairs of a point with itself (the V-statistic)."""

    def mean(x: Tensor, y: Tensor, same: bool) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not same or biased or i != j]
        return sum(float(x[i] @ y[j] / x.shape[1] + 1) ** degree for i, j in pairs) / len(pairs)

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


@pytest.mark.parametrize(("num", "other", "degree"), [(12, 12, 3), (25, 9, 3), (23, 41, 2), (3, 3, 1)])
def test_agrees_with_double_loops(num: int, other: int, degree: int) -> None:
    a, b = _normal(num, 4, 0), _normal(other, 4, 1) + 0.5
    found = kernel_distance(a, b, degree=degree)
    assert found.kind is Kind.ESTIMATE
    assert float(found.value) == pytest.approx(_naive(a, b, degree), rel=1e-10, abs=1e-12)


def test_chunks_add_up() -> None:
    a, b = _normal(700, 2, 0), _normal(500, 2, 1) + 1

    def within(x: Tensor) -> Tensor:
        kernel = (x @ x.T / 2 + 1) ** 3
        return (kernel.sum() - kernel.diagonal().sum()) / (len(x) * (len(x) - 1))

    expected = within(a) + within(b) - 2 * ((a @ b.T / 2 + 1) ** 3).mean()
    assert float(kernel_distance(a, b).value) == pytest.approx(float(expected), rel=1e-10)


def test_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    class Flat(nn.Module):
        num_features = 12

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    a, b = (_normal(60, 12, s).reshape(60, 3, 2, 2) for s in (0, 1))
    with warnings.catch_warnings(), forked_rng(0):
        warnings.simplefilter("ignore")
        peer = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=60)
        peer.update(a, real=True)
        peer.update(b, real=False)
        expected = float(peer.compute()[0])
    assert float(kernel_distance(a, b, Flat()).value) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_unbiased_for_equal_distributions() -> None:
    found = [kernel_distance(_normal(20, 3, 2 * r), _normal(20, 3, 2 * r + 1)).value for r in range(400)]
    assert_mean(torch.stack(found), 0.0, "kernel distance")


def test_unbiased_twin_with_own_pairs_is_caught() -> None:
    found = [_naive(_normal(10, 3, 2 * r), _normal(10, 3, 2 * r + 1), biased=True) for r in range(100)]
    with pytest.raises(AssertionError):
        assert_mean(torch.tensor(found), 0.0, "kernel distance")


def _against_population(shift: float) -> Tensor:
    return torch.stack(
        [kernel_distance(_normal(30, 1, 2 * r), _normal(20, 1, 2 * r + 1) + shift).value for r in range(400)]
    )


def test_unbiased_for_known_distributions() -> None:
    # One feature: (xy + 1)^3 = 1 + 3 m1 m1' + 3 m2 m2' + m3 m3' in moments, so the distance is
    # 3 (gap of m1)^2 + 3 (gap of m2)^2 + (gap of m3)^2. N(0, 1): 0, 1, 0; N(s, 1): s, 1 + s^2, s^3 + 3 s.
    s = 0.7
    assert_mean(_against_population(s), 3 * s**2 + 3 * s**4 + (s**3 + 3 * s) ** 2, "kernel distance")


def test_unbiased_twin_with_another_shift_is_caught() -> None:
    s = 0.7
    with pytest.raises(AssertionError):
        assert_mean(_against_population(s + 0.3), 3 * s**2 + 3 * s**4 + (s**3 + 3 * s) ** 2)


@pytest.fixture(scope="module")
def claims() -> tuple[Tensor, Tensor]:
    """Over replicated data: squared gaps from the mean distance, and claimed squared errors."""
    found = [kernel_distance(_normal(60, 2, 2 * r), _normal(60, 2, 2 * r + 1) + 1) for r in range(400)]
    values = torch.stack([e.value for e in found])
    gaps = (values - values.mean()) ** 2 * len(values) / (len(values) - 1)
    return gaps, torch.stack([e.std_error for e in found]) ** 2


def test_standard_error_is_the_spread_over_data_sets(claims: tuple[Tensor, Tensor]) -> None:
    gaps, squared = claims
    assert_mean(gaps - squared, 0.0, "claimed variance")


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_standard_error_twin_with_a_wrong_scale_is_caught(
    claims: tuple[Tensor, Tensor], factor: float
) -> None:
    gaps, squared = claims
    with pytest.raises(AssertionError):
        assert_mean(gaps - factor * squared, 0.0, "claimed variance")


def test_jackknife_of_a_mean_is_the_textbook_error() -> None:
    x = _normal(50, 1, 0)[:, 0]
    replicates = torch.stack([torch.cat([x[:i], x[i + 1 :]]).mean() for i in range(50)])
    assert float(jackknife_std_error(replicates)) == pytest.approx(float(x.std() / 50**0.5), rel=1e-9)


def test_groups_share_the_data_out() -> None:
    groups = deal(23, 5, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(groups).tolist()) == list(range(23))
    assert {len(g) for g in groups} == {4, 5}


def test_leaving_groups_out_is_the_distance_of_the_rest() -> None:
    a, b = _normal(9, 2, 0), _normal(7, 2, 1) + 1
    generator = torch.Generator().manual_seed(0)
    groups = zip(deal(9, 3, generator), deal(7, 3, generator), strict=True)

    def rest(x: Tensor, rows: Tensor) -> Tensor:
        return x[[i for i in range(len(x)) if i not in rows.tolist()]]

    replicates = torch.tensor([_naive(rest(a, i), rest(b, j)) for i, j in groups], dtype=torch.float64)
    found = kernel_distance(a, b, num_groups=3, seed=0).std_error
    assert float(found) == pytest.approx(float(jackknife_std_error(replicates)), rel=1e-9)


def test_seed_moves_the_error_only() -> None:
    a, b = _normal(50, 2, 0), _normal(50, 2, 1)
    first, again, other = (kernel_distance(a, b, seed=s) for s in (0, 0, 1))
    assert float(first.value) == float(again.value) == pytest.approx(float(other.value), abs=1e-12)
    assert first.std_error == again.std_error != other.std_error


def test_bad_input() -> None:
    a = _normal(10, 2, 0)
    with pytest.raises(DataError, match="generated: .* 3 data or more, got 2"):
        kernel_distance(a, a[:2])
    with pytest.raises(DataError, match="real: expected at least one datum"):
        kernel_distance(a[:0], a)
    with pytest.raises(ConfigError, match="degree"):
        kernel_distance(a, a, degree=0)
    with pytest.raises(ShapeError, match="generated"):
        kernel_distance(a, a[:, :1])
    bad = a.clone()
    bad[0] = torch.inf
    with pytest.raises(DataError, match=r"2 NaN or infinite of 20 for the real data"):
        kernel_distance(bad, a)
