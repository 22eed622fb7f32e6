"""Gaussians in bulk, against scipy and the plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from ppgen.ops.gaussian import Diagonal, Full, Tied, conditional, floored_tril
from ppgen.ops.random import forked_rng

NUM, DIM = 4, 3


def components(structure: str, spread: float = 1.0) -> tuple[Diagonal | Full | Tied, Tensor, Tensor]:
    """Gaussians of a structure, their means ``(K, D)`` and covariances ``(K, D, D)``, float64."""
    with forked_rng(0):
        locs = spread * torch.randn(NUM, DIM, dtype=torch.float64)
        trils = torch.randn(NUM, DIM, DIM, dtype=torch.float64).tril(-1) / 2
        scales = torch.rand(NUM, DIM, dtype=torch.float64) + 0.5
    if structure == "diagonal":
        return Diagonal(locs, scales), locs, torch.diag_embed(scales.square())
    trils = trils + torch.diag_embed(scales)
    if structure == "tied":
        return Tied(locs, trils[:1]), locs, (trils @ trils.mT)[:1].expand(NUM, -1, -1)
    return Full(locs, trils), locs, trils @ trils.mT


def data(num: int = 50) -> Tensor:
    with forked_rng(1):
        return 2 * torch.randn(num, DIM, dtype=torch.float64)


@pytest.mark.parametrize("structure", ["diagonal", "full", "tied"])
@pytest.mark.parametrize("spread", [1.0, 1e7])
def test_log_density_is_scipys(structure: str, spread: float) -> None:
    # Means 1e7 standard deviations apart do not fit the expanded square: differences come first.
    gaussians, locs, covariances = components(structure, spread)
    x = torch.cat([data(), locs + 0.3])
    ours = gaussians.log_density(x)
    theirs = np.stack(
        [
            multivariate_normal(m, c).logpdf(x.numpy())
            for m, c in zip(locs.numpy(), covariances.numpy(), strict=True)
        ],
        -1,
    )
    near = theirs > -1e3
    assert near.any()
    np.testing.assert_allclose(ours.numpy()[near], theirs[near], rtol=1e-6 if spread > 1 else 1e-10)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6)


def test_float32_falls_back_to_differences() -> None:
    locs = torch.tensor([[1000.0], [1010.0]])
    gaussians = Diagonal(locs, torch.full((2, 1), 0.01))
    assert not gaussians.expands
    x = torch.tensor([[1000.0], [1009.875]])
    exact = -0.5 * ((x.double() - locs.double().T) / 0.01) ** 2 - np.log(0.01) - 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(gaussians.log_density(x).double(), exact, rtol=1e-5, atol=1e-4)
    wrong = Diagonal(locs, torch.full((2, 1), 0.01))
    wrong.expands = True
    assert not torch.allclose(wrong.log_density(x).double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("structure", ["diagonal", "full", "tied"])
@pytest.mark.parametrize("spread", [1.0, 1e7])
def test_moments_are_the_weighted_sums(structure: str, spread: float) -> None:
    gaussians, locs, _ = components(structure, spread)
    x = data(5000) + locs[torch.arange(5000) % NUM]
    seen: list[Tensor] = []

    def assign(log_density: Tensor) -> Tensor:
        seen.append(log_density.softmax(0))
        return seen[-1]

    moments = gaussians.moments(x, assign)
    weights = torch.cat(seen, dim=1)
    torch.testing.assert_close(weights, gaussians.log_density(x).softmax(-1).T, rtol=1e-6, atol=1e-9)
    mass = weights.sum(-1)
    means = weights @ x / mass[:, None]
    residuals = x - means[:, None]
    spreads = torch.einsum("kn,kni,knj->kij", weights, residuals, residuals) / mass[:, None, None]
    if structure == "diagonal":
        spreads = spreads.diagonal(dim1=-2, dim2=-1)
    if structure == "tied":
        spreads = (mass[:, None, None] * spreads).sum(0, keepdim=True) / mass.sum()
    torch.testing.assert_close(moments.mass, mass)
    torch.testing.assert_close(moments.means, means)
    torch.testing.assert_close(moments.covariances, spreads, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("structure", ["diagonal", "full", "tied"])
def test_score_is_the_gradient(structure: str) -> None:
    gaussians, _, _ = components(structure)
    x = data().requires_grad_()
    weights = torch.rand(len(x), NUM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((weights * gaussians.log_density(x)).sum(), x)
    torch.testing.assert_close(gaussians.score(x.detach(), weights), gradient)


def test_floored_tril_is_the_likeliest_with_that_floor() -> None:
    with forked_rng(3):
        points = torch.randn(200, 3, dtype=torch.float64) * torch.tensor(
            [1.0, 1.0, 0.01], dtype=torch.float64
        )
        points[:, 2] += points[:, 0]
        noise = torch.randn(500, 3, 3, dtype=torch.float64)
    sample = points.T @ points / len(points)
    floor = 0.05
    (best,), collapsed = floored_tril(sample[None], floor)
    assert collapsed.all()

    def log_likelihood(tril: Tensor) -> Tensor:
        whitened = torch.linalg.solve_triangular(tril, torch.linalg.cholesky(sample), upper=False)
        return -tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * whitened.square().sum((-2, -1))

    values, vectors = torch.linalg.eigh(best @ best.T + 0.02 * (noise + noise.mT))
    allowed = (vectors * values.clamp_min(floor)[:, None]) @ vectors.mT
    others = torch.linalg.cholesky(allowed)
    assert (log_likelihood(others) <= log_likelihood(best)).all()
    assert torch.linalg.eigvalsh(best @ best.T).min() >= floor * (1 - 1e-9)


def test_a_floor_leaves_larger_variances_alone() -> None:
    _, _, covariances = components("full")
    trils, collapsed = floored_tril(covariances, 1e-6)
    torch.testing.assert_close(trils, torch.linalg.cholesky(covariances))
    assert not collapsed.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pivot_of_rounding_error_does_not_blow_up_its_column(dtype: torch.dtype) -> None:
    # The second coordinate is the first but for rounding error, of which the third has some as well.
    noise = 4 * torch.finfo(dtype).eps
    sample = torch.tensor([[0.25, 0.25, 0.1], [0.25, 0.25, 0.1], [0.1, 0.1, 0.5]], dtype=dtype)
    sample[1, 1] += noise
    sample[1, 2] += 0.1 * noise**0.5
    sample[2, 1] += 0.1 * noise**0.5
    tril, collapsed = floored_tril(sample[None], 1e-5)
    assert collapsed.all()
    torch.testing.assert_close(tril[0] @ tril[0].T, sample, rtol=0, atol=2e-5)


def test_singular_matrices_get_a_factor() -> None:
    ones = torch.ones(1, 4, 4)
    tril, collapsed = floored_tril(torch.cat([ones, 0 * ones, torch.eye(4)[None]]), 1e-6)
    assert collapsed.tolist() == [True, True, False]
    assert torch.isfinite(tril).all()
    torch.testing.assert_close(tril[0] @ tril[0].T, ones[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(tril[2], torch.eye(4))


def test_conditional_is_a_ratio_of_densities() -> None:
    _, locs, covariances = components("full")
    x, given = data(6), torch.tensor([True, False, True])
    found = conditional(locs, covariances, given, x)
    for k in range(NUM):
        joint = multivariate_normal(locs[k].numpy(), covariances[k].numpy())
        part = multivariate_normal(locs[k, given].numpy(), covariances[k][given][:, given].numpy())
        evidence = part.logpdf(x[:, given].numpy())
        np.testing.assert_allclose(found.log_evidence[:, k].numpy(), evidence, rtol=1e-10)
        left = -0.5 * ((x[:, ~given] - found.means[:, k]) / found.trils[k, 0, 0]).square()[:, 0]
        left = left - found.trils[k, 0, 0].log() - 0.5 * np.log(2 * np.pi)
        np.testing.assert_allclose(left.numpy() + evidence, joint.logpdf(x.numpy()), rtol=1e-9)
