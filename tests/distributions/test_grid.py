"""Distributions on a grid of levels, and the lean normal, against closed forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppgen.distributions.diagonal_normal import DiagonalNormal
from ppgen.distributions.discretised_logistic import DiscretisedLogistic
from ppgen.distributions.grid_categorical import GridCategorical
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to, assert_mean

LEVELS = 7
GRID = torch.linspace(0, 1, LEVELS, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0):
        yield


def logistic() -> DiscretisedLogistic:
    loc = torch.tensor([-0.5, 0.2, 0.51, 3.0], dtype=torch.float64)
    return DiscretisedLogistic(loc, torch.tensor([-1.0, -3.0, -8.0, 0.5], dtype=torch.float64), LEVELS)


def categorical() -> GridCategorical:
    return GridCategorical(torch.randn(4, LEVELS, dtype=torch.float64))


def table(distribution: dist.TorchDistribution) -> Tensor:
    """Probabilities (levels, batch)."""
    return distribution.log_prob(GRID[:, None].expand(-1, 4)).exp()


@pytest.mark.parametrize("make", [logistic, categorical])
def test_masses_sum_to_one_and_samples_follow_them(
    make: Callable[[], Any],
) -> None:
    distribution = make()
    masses = table(distribution)
    assert torch.allclose(masses.sum(0), torch.ones(4, dtype=torch.float64), atol=1e-12)
    num = 20_000
    draws = distribution.sample((num,))
    frequency = torch.stack([(draws - level).abs().lt(1e-6).double().mean(0) for level in GRID])
    often = masses * num > 10
    error = (masses * (1 - masses) / num).sqrt()
    assert_close_to(frequency[often], masses[often], error[often])
    with pytest.raises(AssertionError):  # the planted defect: levels off by one
        assert_close_to(frequency.roll(1, 0)[often], masses[often], error[often])
    assert_mean(draws, distribution.mean)


def test_the_logistic_is_the_difference_of_its_cdf_and_stable_far_out() -> None:
    distribution = logistic()
    cdf = torch.sigmoid((GRID[2] + 0.5 / 6 - distribution.loc) / distribution.log_scale.exp())
    cdf = cdf - torch.sigmoid((GRID[2] - 0.5 / 6 - distribution.loc) / distribution.log_scale.exp())
    assert torch.allclose(table(distribution)[2], cdf, atol=1e-12)
    far = DiscretisedLogistic(torch.full((1,), 50.0), torch.full((1,), -7.0), 256)
    far.loc.requires_grad_()
    value = far.log_prob(torch.tensor([0.5]))
    value.sum().backward()
    assert bool(torch.isfinite(value).all())
    assert far.loc.grad is not None
    assert bool(torch.isfinite(far.loc.grad).all())


@pytest.mark.parametrize("make", [logistic, categorical])
def test_expand_keeps_the_density(make: Callable[[], Any]) -> None:
    distribution = make()
    x = distribution.sample((3,))
    assert torch.equal(distribution.expand((3, 4)).log_prob(x), distribution.log_prob(x))


@pytest.mark.parametrize("with_scale", [True, False])
def test_the_lean_normal_is_pyros(with_scale: bool) -> None:
    loc, scale = torch.randn(5, 3), torch.rand(5, 3) + 0.1
    lean = DiagonalNormal(loc, scale if with_scale else None)
    peer = dist.Normal(loc, scale if with_scale else torch.ones(5, 3)).to_event(1)
    x = torch.randn(2, 5, 3)
    assert torch.allclose(lean.log_prob(x), peer.log_prob(x), atol=1e-5)
    assert torch.allclose(lean.entropy(), peer.entropy(), atol=1e-5)
    assert torch.equal(lean.variance, peer.variance)
    assert lean.expand((2, 5)).log_prob(x).shape == (2, 5)
    with forked_rng(1):
        ours = lean.rsample((4,))
    with forked_rng(1):
        theirs = peer.rsample((4,))
    assert torch.allclose(ours, theirs, atol=1e-6)
    with pytest.raises(ValueError, match="scale"):
        DiagonalNormal(loc, -scale, validate_args=True)


@pytest.mark.parametrize("scales", [(True, True), (True, False), (False, True), (False, False)])
def test_the_divergence_of_lean_normals_is_pyros(scales: tuple[bool, bool]) -> None:
    pairs = []
    for with_scale in scales:
        loc, scale = torch.randn(5, 3), torch.rand(5, 3) + 0.3
        peer = dist.Normal(loc, scale if with_scale else torch.ones(5, 3)).to_event(1)
        pairs.append((DiagonalNormal(loc, scale if with_scale else None), peer))
    (p, p_peer), (q, q_peer) = pairs
    divergence = torch.distributions.kl_divergence(p, q)
    assert divergence.shape == (5,)
    assert torch.allclose(divergence, torch.distributions.kl_divergence(p_peer, q_peer), atol=1e-5)
