"""Stein directions against their definition, a fixed point, and the moments of a Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppgen.inference.structure.gradient.svgd import stein_directions

_GENERATOR = torch.Generator().manual_seed(0)
_FIRST = torch.randn(6, 2, 3, generator=_GENERATOR, dtype=torch.float64)
_SECOND = torch.randn(6, 4, generator=_GENERATOR, dtype=torch.float64)
_WIDTHS = (2.0, 7.0)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    first, second = (a[:6] - b[:6]).square().sum(), (a[6:] - b[6:]).square().sum()
    return (torch.exp(-first / _WIDTHS[0]) + torch.exp(-second / _WIDTHS[1])) / 2


def test_directions_are_the_definition() -> None:
    gradients = [_FIRST.sin(), _SECOND.cos()]
    found = stein_directions([_FIRST, _SECOND], gradients, _WIDTHS)
    y = torch.cat([_FIRST.flatten(1), _SECOND], dim=1)
    g = torch.cat([gradients[0].flatten(1), gradients[1]], dim=1)
    expected = torch.zeros_like(y)
    for i in range(6):
        for j in range(6):
            own = y[j].clone().requires_grad_()
            value = _kernel(own, y[i])
            (slope,) = torch.autograd.grad(value, own)
            expected[i] += (value.detach() * g[j] + slope) / 6
    torch.testing.assert_close(torch.cat([found[0].flatten(1), found[1]], dim=1), expected)


def test_one_particle_climbs_the_density() -> None:
    direction = stein_directions([_SECOND[:1]], [_SECOND[:1].sin()], [None])[0]
    torch.testing.assert_close(direction, _SECOND[:1].sin())


@pytest.mark.parametrize("width", [0.5, 4.0, 1e3])
def test_two_particles_end_where_the_equation_says(width: float) -> None:
    # On a standard normal, particles at a and -a are at rest where a = (1 + 4 / h) a exp(-4 a^2 / h), that is
    # a^2 = h / 4 log(1 + 4 / h), which is the variance of the target for a wide kernel.
    y = torch.tensor([[0.3], [-0.3]], dtype=torch.float64)
    for _ in range(20_000):
        direction = stein_directions([y], [-y], [width])[0]
        y = y + min(width, 30.0) * direction / 4
        if float(direction.abs().max()) < 1e-13:
            break
    expected = width / 4 * math.log1p(4 / width)
    torch.testing.assert_close(y.square().mean().item(), expected, rtol=1e-8, atol=0)


def test_a_symmetric_start_has_the_mean_of_a_gaussian_at_every_step() -> None:
    covariance = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    precision, mean = torch.linalg.inv(covariance), torch.tensor([3.0, -1.0], dtype=torch.float64)
    half = torch.randn(20, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = start = torch.cat([mean + half, mean - half])
    for _ in range(20):
        y = y + 0.3 * stein_directions([y], [-(y - mean) @ precision], [None])[0]
    torch.testing.assert_close(y.mean(0), mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(y[:20] - mean, mean - y[20:], rtol=0, atol=1e-10)
    assert float((y - start).abs().max()) > 0.1
