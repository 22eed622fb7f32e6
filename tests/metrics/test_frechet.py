"""FID against the closed form, scipy's matrix root and torchmetrics; its standard error by replication."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from ppgen.contract import Kind
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.metrics import frechet_distance, gaussian_frechet_distance
from ppgen.testing.statistics import assert_mean


def _normal(num: int, dims: int, seed: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(num, dims, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _pair(dims: int = 5) -> tuple[Tensor, Tensor]:
    a = _normal(80, dims, 0) @ _normal(dims, dims, 1) + 3
    b = _normal(60, dims, 2) @ _normal(dims, dims, 3) - 1
    return a, b


def _by_scipy(a: Tensor, b: Tensor) -> float:
    """The textbook formula with a general matrix square root."""
    x, y = a.numpy(), b.numpy()
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(cx @ cy)
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(gap + np.trace(cx) + np.trace(cy) - 2 * np.trace(root).real)


def test_agrees_with_scipy() -> None:
    a, b = _pair()
    found = frechet_distance(a, b)
    assert found.kind is Kind.ESTIMATE
    assert found.value.dtype == torch.float64
    assert float(found.value) == pytest.approx(_by_scipy(a, b), rel=1e-9)


def test_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(nn.Module):
        num_features = 12

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    a, b = (_normal(n, 12, n).reshape(n, 3, 2, 2) for n in (70, 90))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = FrechetInceptionDistance(feature=Flat()).set_dtype(torch.float64)
        peer.update(a, real=True)
        peer.update(b, real=False)
        expected = float(peer.compute())
    assert float(frechet_distance(a, b, Flat()).value) == pytest.approx(expected, rel=1e-6)


def test_closed_form_of_diagonal_gaussians() -> None:
    scale, other = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 2.0, 0.5]).double()
    mean, shifted = torch.zeros(3).double(), torch.tensor([1.0, 0.0, -2.0]).double()
    expected = 5.0 + 1.0 + 0.0 + 6.25  # squared gaps of the means and of the standard deviations
    found = gaussian_frechet_distance(mean, torch.diag(scale**2), shifted, torch.diag(other**2))
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_closed_form_of_commuting_gaussians_after_a_rotation() -> None:
    rotation = torch.linalg.qr(_normal(4, 4, 5)).Q
    first, second = torch.tensor([0.0, 1.0, 4.0, 9.0]).double(), torch.tensor([1.0, 0.0, 1.0, 4.0]).double()
    zero = torch.zeros(4).double()
    found = gaussian_frechet_distance(
        zero, rotation @ torch.diag(first) @ rotation.T, zero, rotation @ torch.diag(second) @ rotation.T
    )
    # Singular directions on either side cost a rounding error under a root.
    assert float(found) == pytest.approx(float((first.sqrt() - second.sqrt()).square().sum()), abs=1e-6)


def test_is_zero_for_the_same_data_even_with_dead_features() -> None:
    a, _ = _pair()
    a = torch.cat([a, torch.zeros(len(a), 2)], 1)
    found = float(frechet_distance(a, a.clone()).value)
    assert 0 <= found < 1e-6


def test_is_symmetric_and_invariant_under_rotation_and_shift() -> None:
    a, b = _pair()
    rotation = torch.linalg.qr(_normal(5, 5, 9)).Q
    found = float(frechet_distance(a, b).value)
    assert float(frechet_distance(b, a).value) == pytest.approx(found, rel=1e-9)
    moved = frechet_distance(a @ rotation + 1e4, b @ rotation + 1e4)
    assert float(moved.value) == pytest.approx(found, rel=1e-6)


def test_float32_data_are_computed_in_float64() -> None:
    a, b = (x.float() for x in _pair())
    assert float(frechet_distance(a, b).value) == pytest.approx(_by_scipy(a.double(), b.double()), rel=1e-9)


@pytest.fixture(scope="module")
def claims() -> tuple[Tensor, Tensor]:
    """Over replicated data: squared gaps from the mean distance, and claimed squared errors."""
    found = [
        frechet_distance(_normal(100, 2, 2 * r), 1.5 * _normal(100, 2, 2 * r + 1) + 1, num_groups=10)
        for r in range(300)
    ]
    values = torch.stack([e.value for e in found])
    gaps = (values - values.mean()) ** 2 * len(values) / (len(values) - 1)
    return gaps, torch.stack([e.std_error for e in found]) ** 2


def test_standard_error_is_the_spread_over_data_sets(claims: tuple[Tensor, Tensor]) -> None:
    gaps, squared = claims
    assert_mean(gaps - squared, 0.0, "claimed variance")


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_standard_error_twin_with_a_wrong_scale_is_caught(
    claims: tuple[Tensor, Tensor], factor: float
) -> None:
    gaps, squared = claims
    with pytest.raises(AssertionError):
        assert_mean(gaps - factor * squared, 0.0, "claimed variance")


def test_seed_moves_the_error_only() -> None:
    a, b = _pair()
    first, again, other = (frechet_distance(a, b, seed=s) for s in (0, 0, 1))
    assert first.value == again.value == other.value
    assert first.std_error == again.std_error != other.std_error


def test_refuses_too_few_data() -> None:
    a, b = _pair()
    with pytest.raises(DataError, match=r"generated: a covariance of 5 features needs 6 data or more, got 5"):
        frechet_distance(a, b[:5])
    assert torch.isfinite(frechet_distance(a[:6], b[:6]).std_error)


def test_smallest_samples_have_finite_errors() -> None:
    a, b = _normal(3, 1, 0), _normal(3, 1, 1)
    found = frechet_distance(a, b)
    assert torch.isfinite(found.value)
    assert torch.isfinite(found.std_error)


def test_refuses_nan_features() -> None:
    a, b = _pair()
    b[3, 1] = torch.nan
    with pytest.raises(DataError, match=r"1 NaN or infinite of 300 for the generated data \(1 of 60 rows\)"):
        frechet_distance(a, b)


def test_refuses_other_shapes_and_groups() -> None:
    a, b = _pair()
    with pytest.raises(ShapeError, match=r"\(5,\) each, got \(4,\)"):
        frechet_distance(a, b[:, :4])
    with pytest.raises(ConfigError, match="num_groups"):
        frechet_distance(a, b, num_groups=1)
    with pytest.raises(ShapeError, match="both Gaussians"):
        gaussian_frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))
