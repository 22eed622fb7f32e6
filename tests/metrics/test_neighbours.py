"""Precision, recall, density and coverage against double loops and their expectations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppgen.contract import Kind
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.metrics import PrecisionRecall, precision_recall
from ppgen.testing.statistics import assert_mean


def _normal(num: int, dims: int, seed: int) -> Tensor:
    return torch.randn(num, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _naive(real: Tensor, generated: Tensor, k: int) -> dict[str, float]:
    def distance(a: Tensor, b: Tensor) -> float:
        return math.sqrt(sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)))

    def reach(x: Tensor) -> list[float]:
        return [sorted(distance(a, b) for j, b in enumerate(x) if j != i)[k - 1] for i, a in enumerate(x)]

    of_real, of_generated = reach(real), reach(generated)
    inside = [[distance(r, g) <= of_real[i] for g in generated] for i, r in enumerate(real)]
    counts = [sum(row[j] for row in inside) for j in range(len(generated))]
    return {
        "precision": sum(c > 0 for c in counts) / len(generated),
        "recall": sum(any(distance(r, g) <= of_generated[j] for j, g in enumerate(generated)) for r in real)
        / len(real),
        "density": sum(counts) / k / len(generated),
        "coverage": sum(any(row) for row in inside) / len(real),
    }


@pytest.mark.parametrize(("num", "other", "k"), [(20, 20, 3), (30, 12, 1), (15, 25, 5)])
def test_agrees_with_double_loops(num: int, other: int, k: int) -> None:
    real, generated = _normal(num, 2, 0), 1.5 * _normal(other, 2, 1) + 0.5
    found = precision_recall(real, generated, k=k)
    for name, expected in _naive(real, generated, k).items():
        estimate = getattr(found, name)
        assert estimate.kind is Kind.ESTIMATE
        assert float(estimate.value) == pytest.approx(expected, abs=1e-12), name


def test_features_are_applied() -> None:
    real, generated = _normal(20, 4, 0), _normal(20, 4, 1)
    found = precision_recall(real, generated, lambda x: x[:, :2])
    assert found == precision_recall(real[:, :2], generated[:, :2])


def test_copies_of_the_data_score_one() -> None:
    real = _normal(30, 3, 0) + 1e3
    found = precision_recall(real, real.clone(), k=2)
    assert float(found.precision.value) == float(found.recall.value) == float(found.coverage.value) == 1.0


def test_distant_samples_score_zero_with_an_error_above_zero() -> None:
    found = precision_recall(_normal(30, 2, 0), _normal(30, 2, 1) + 100)
    for estimate in (found.precision, found.recall, found.coverage):
        assert float(estimate.value) == 0.0
        assert float(estimate.std_error) > 0.0
    assert float(found.density.value) == 0.0


def test_a_lost_mode_lowers_recall_and_coverage_and_leaves_precision() -> None:
    real = torch.cat([_normal(100, 2, 0), _normal(100, 2, 1) + 20])
    found = precision_recall(real, _normal(200, 2, 2))
    assert float(found.precision.value) > 0.9
    assert float(found.recall.value) <= 0.5
    assert float(found.coverage.value) <= 0.5


def test_noise_lowers_precision_and_leaves_recall() -> None:
    found = precision_recall(_normal(200, 2, 0), 8 * _normal(200, 2, 1))
    assert float(found.precision.value) < 0.5
    assert float(found.recall.value) > 0.8


def _replicates(k: int, shift: float) -> list[PrecisionRecall]:
    return [
        precision_recall(_normal(24, 2, 2 * r), _normal(16, 2, 2 * r + 1) + shift, k=k) for r in range(400)
    ]


def _expected_coverage(num: int, other: int, k: int) -> float:
    """Naeem et al. (2020), lemma 2: no generated datum among the nearest k of num + other - 1."""
    missed = math.prod((num - i) / (num + other - i) for i in range(1, k + 1))
    return 1 - missed


def test_expectations_for_equal_distributions() -> None:
    found = _replicates(3, 0.0)
    assert_mean(torch.stack([f.density.value for f in found]), 1.0, "density")
    coverage = torch.stack([f.coverage.value for f in found])
    assert_mean(coverage, _expected_coverage(24, 16, 3), "coverage")


def test_expectations_twins_are_caught() -> None:
    off_by_one, shifted = _replicates(2, 0.0), _replicates(3, 1.0)
    with pytest.raises(AssertionError):
        assert_mean(torch.stack([f.coverage.value for f in off_by_one]), _expected_coverage(24, 16, 3))
    with pytest.raises(AssertionError):
        assert_mean(torch.stack([f.density.value for f in shifted]), 1.0)


def test_standard_errors_of_shares_are_binomial() -> None:
    found = precision_recall(_normal(100, 2, 0), _normal(200, 2, 1) + 1.5)
    for estimate, num in ((found.precision, 200), (found.recall, 100), (found.coverage, 100)):
        share = float(estimate.value)
        assert 0.2 < share < 0.95
        assert float(estimate.std_error) == pytest.approx(math.sqrt(share * (1 - share) / num), rel=0.1)


def test_bad_input() -> None:
    x = _normal(10, 2, 0)
    with pytest.raises(DataError, match="generated: neighbours up to k=3 need 4 data or more, got 3"):
        precision_recall(x, x[:3])
    with pytest.raises(ConfigError, match="k: expected a positive integer, got 0"):
        precision_recall(x, x, k=0)
    with pytest.raises(ShapeError, match=r"\(2,\) each, got \(1,\)"):
        precision_recall(x, x[:, :1])
    with pytest.raises(DataError, match="NaN or infinite"):
        precision_recall(x, x, lambda y: y * torch.nan)
    with pytest.raises(ShapeError, match="features: expected one row for each of the 10 real data"):
        precision_recall(x, x, lambda y: y[:3])
