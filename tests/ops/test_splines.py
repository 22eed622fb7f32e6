"""Rational-quadratic splines: knots, slopes, inverses and tails, against the textbook and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppgen.ops.random import forked_rng
from ppgen.ops.splines import MIN_SHARE, MIN_SLOPE, rational_quadratic

BOUND = 3.0
NUM_BINS = 6
DIRECTIONS = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def parameters(*shape: int, scale: float = 1.5, num_bins: int = NUM_BINS, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(3 * num_bins - 1, *shape, generator=generator, dtype=torch.float64)


def knots(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, values and slopes at the K + 1 knots of each spline, by the textbook's recipe."""
    num_bins = (len(raw) + 1) // 3
    shares = raw[: 2 * num_bins].unflatten(0, (2, num_bins)).softmax(1)
    sizes = 2 * BOUND * (MIN_SHARE + (1 - num_bins * MIN_SHARE) * shares)
    x, y = (torch.cat([torch.zeros_like(s[:1]), s.cumsum(0)]) - BOUND for s in sizes)
    unit = math.log(math.exp(1 - MIN_SLOPE) - 1)
    slopes = MIN_SLOPE + (1 + (raw[2 * num_bins :] + unit).exp()).log()
    one = torch.ones_like(slopes[:1])
    return x, y, torch.cat([one, slopes, one])


def textbook(value: float, raw: Tensor) -> float:
    """Equation 4 of Durkan et al. (2019) for one number and one spline."""
    x, y, d = (k.tolist() for k in knots(raw))
    k = max(j for j in range(len(x) - 1) if x[j] <= value)
    t, s = (value - x[k]) / (x[k + 1] - x[k]), (y[k + 1] - y[k]) / (x[k + 1] - x[k])
    above = (y[k + 1] - y[k]) * (s * t**2 + d[k] * t * (1 - t))
    return y[k] + above / (s + (d[k + 1] + d[k] - 2 * s) * t * (1 - t))


def points(raw: Tensor) -> Tensor:
    """Where a spline is looked at: all over, at its knots and next to them, at the ends, and far out."""
    x = knots(raw)[0]
    near = torch.cat([x, x - 1e-9, x + 1e-9])
    far = torch.tensor([-1e6, -BOUND - 1e-9, -BOUND, BOUND, BOUND + 1e-9, 50.0], dtype=torch.float64)
    return torch.cat([torch.linspace(-4, 4, 501, dtype=torch.float64), near, far])


def test_values_are_the_textbooks() -> None:
    raw = parameters()
    x = torch.linspace(-BOUND + 1e-3, BOUND - 1e-3, 100, dtype=torch.float64)
    expected = torch.tensor([textbook(v, raw) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(rational_quadratic(x, raw[:, None].expand(-1, 100), BOUND)[0], expected)


def test_knots_are_met_with_their_slopes() -> None:
    raw = parameters()
    x, y, slope = knots(raw)
    value, log_slope = rational_quadratic(x, raw[:, None].expand(-1, len(x)), BOUND)
    torch.testing.assert_close(value, y)
    torch.testing.assert_close(log_slope, slope.log())


def test_zeros_are_the_identity() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    for inverse in (False, True):
        value, log_slope = rational_quadratic(x, x.new_zeros(23, 101), BOUND, inverse=inverse)
        torch.testing.assert_close(value, x)
        torch.testing.assert_close(log_slope, torch.zeros_like(x))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_inverse_inverts_everywhere(scale: float) -> None:
    raw = parameters(scale=scale)
    x = points(raw)
    raw = raw[:, None].expand(-1, len(x))
    y, log_slope = rational_quadratic(x, raw, BOUND)
    back, log_inverse = rational_quadratic(y, raw, BOUND, inverse=True)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(log_inverse, -log_slope, rtol=1e-7, atol=1e-7)


@DIRECTIONS
def test_slope_is_autograds_everywhere(inverse: bool) -> None:
    x = points(parameters()).requires_grad_()
    raw = parameters()[:, None].expand(-1, len(x))
    value, log_slope = rational_quadratic(x, raw, BOUND, inverse=inverse)
    (slope,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=1e-9, atol=1e-10)


@DIRECTIONS
def test_first_and_second_derivatives(inverse: bool) -> None:
    raw = parameters(4, num_bins=3).requires_grad_()
    x = torch.tensor([-3.5, -2.1, 0.4, 2.7], dtype=torch.float64, requires_grad=True)

    def spline(x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic(x, raw, BOUND, inverse=inverse)

    with forked_rng(0):  # the checks draw directions
        assert torch.autograd.gradcheck(spline, (x, raw))
        assert torch.autograd.gradgradcheck(spline, (x, raw))


@DIRECTIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tails_are_the_identity_to_the_last_bit(inverse: bool, dtype: torch.dtype) -> None:
    x = torch.tensor([-1e30, -7.123, -BOUND, BOUND, 3.3, 1e9], dtype=dtype, requires_grad=True)
    raw = parameters(6).to(dtype).requires_grad_()
    value, log_slope = rational_quadratic(x, raw, BOUND, inverse=inverse)
    assert torch.equal(value, x)
    assert torch.equal(log_slope, torch.zeros_like(x))
    by_x, by_raw = torch.autograd.grad(value.sum() + log_slope.sum(), (x, raw))
    assert torch.equal(by_x, torch.ones_like(x))
    assert torch.equal(by_raw, torch.zeros_like(raw))


@DIRECTIONS
@pytest.mark.parametrize("scale", [1.0, 5.0, 100.0])
def test_float32_is_finite_and_as_good_as_its_condition_allows(inverse: bool, scale: float) -> None:
    num = 4000
    raw = parameters(num, scale=scale, num_bins=8).float().requires_grad_()
    x = torch.linspace(-3.2, 3.2, num).requires_grad_()
    value, log_slope = rational_quadratic(x, raw, BOUND, inverse=inverse)
    gradients = torch.autograd.grad(value.sum() + log_slope.sum(), (x, raw))
    assert all(bool(torch.isfinite(t).all()) for t in (value, log_slope, *gradients))
    exact, exact_log_slope = rational_quadratic(x.double(), raw.double(), BOUND, inverse=inverse)
    # Knots are rounded in both directions; the slope carries an error across into one along.
    rounding = torch.finfo(torch.float32).eps * BOUND
    allowed = 8 * rounding * (1 + exact_log_slope.exp())
    assert bool(((value - exact).abs() <= allowed).all())


@DIRECTIONS
def test_nan_stays_nan(inverse: bool) -> None:
    x = torch.tensor([float("nan"), 0.5])
    value, _ = rational_quadratic(x, parameters(2).float(), BOUND, inverse=inverse)
    assert value.isnan().tolist() == [True, False]


def test_lower_precision_around_it_does_not_reach_the_knots() -> None:
    raw, x = parameters(5, 3).float(), torch.linspace(-2, 2, 15).view(5, 3)
    expected = rational_quadratic(x, raw, BOUND)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rational_quadratic(x, raw, BOUND)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert rational_quadratic(x, raw.bfloat16(), BOUND)[0].dtype == torch.float32


@DIRECTIONS
def test_shapes_and_devices_follow_the_input(inverse: bool) -> None:
    for shape in ((), (0,), (2, 3), (2, 1, 4)):
        x = torch.zeros(shape, device="meta")
        raw = torch.zeros(8, *shape, device="meta")
        for result in rational_quadratic(x, raw, BOUND, inverse=inverse):
            assert (result.shape, result.device.type) == (x.shape, "meta")
        here = rational_quadratic(torch.zeros(shape), torch.zeros(8, *shape), BOUND, inverse=inverse)
        assert here[0].shape == shape


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@DIRECTIONS
def test_cuda_gives_the_same_numbers(inverse: bool) -> None:
    raw, x = parameters(300), torch.linspace(-4, 4, 300, dtype=torch.float64)
    there = rational_quadratic(x.cuda(), raw.cuda(), BOUND, inverse=inverse)
    here = rational_quadratic(x, raw, BOUND, inverse=inverse)
    torch.testing.assert_close([t.cpu() for t in there], list(here))
