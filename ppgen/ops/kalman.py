r"""Linear-Gaussian chains: Kalman filter, Rauch-Tung-Striebel smoother, draws of paths; NaN is missing.

.. math::

    z_1 \sim N(m_0, P_0), \quad z_t = A z_{t-1} + N(0, Q), \quad x_t = C z_t + d + N(0, \mathrm{diag}(r))

for N sequences of T steps at once. A missing coordinate has no part in its step, by an innovation of zero
with variance one. Where nothing is missing, covariances do not depend on the data and are worked out once for
all sequences: their first dimension M is 1, else N. Covariances are updated in Joseph's form, which keeps
them positive definite in float32.

References: Kalman 1960; Rauch, Tung & Striebel 1965; Anderson & Moore, *Optimal filtering*, 1979.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearGaussian:
    """Parameters of a chain of L latent and D observed coordinates.

    Attributes:
        initial_loc: m_0, (L,).
        initial_covariance: P_0, (L, L).
        transition: A, (L, L).
        transition_covariance: Q, (L, L).
        loading: C, (D, L).
        offset: d, (D,).
        noise: r, variances, (D,).
    """

    initial_loc: Tensor
    initial_covariance: Tensor
    transition: Tensor
    transition_covariance: Tensor
    loading: Tensor
    offset: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Filtered:
    """What the past says of each state.

    Attributes:
        log_prob: log density of the sequences, (N,), in nats.
        means: of z_t given x_1..x_t, (N, T, L).
        covariances: their covariances, (M, T, L, L).
        predicted_means: of z_t given x_1..x_(t-1), (N, T, L).
        predicted_covariances: theirs, (M, T, L, L).
    """

    log_prob: Tensor
    means: Tensor
    covariances: Tensor
    predicted_means: Tensor
    predicted_covariances: Tensor


@dataclass(frozen=True)
class Smoothed:
    """What all of x says of each state.

    Attributes:
        means: of z_t given x, (N, T, L).
        covariances: theirs, (M, T, L, L).
        lagged: Cov(z_(t+1), z_t given x), (M, T - 1, L, L).
    """

    means: Tensor
    covariances: Tensor
    lagged: Tensor


def kalman_filter(x: Tensor, chain: LinearGaussian) -> Filtered:
    """Filter sequences (N, T, D); differentiable in the parameters and in x."""
    steps = x.shape[1]
    missing = not x.is_meta and bool(x.isnan().any())
    known = (~x.isnan()).to(x.dtype) if missing else x.new_ones(1, steps, x.shape[2])
    residuals = torch.where(x.isnan(), 0.0, x - chain.offset) if missing else x - chain.offset
    identity = torch.eye(len(chain.initial_loc), dtype=x.dtype, device=x.device)
    mean, covariance = (
        chain.initial_loc.expand(len(x), -1),
        chain.initial_covariance.expand(len(known), -1, -1),
    )
    means, covariances, predicted_means, predicted_covariances = [], [], [], []
    log_prob = -0.5 * math.log(2 * math.pi) * known.sum((1, 2)).expand(len(x))
    for t in range(steps):
        if t:
            mean = mean @ chain.transition.T
            covariance = chain.transition @ covariance @ chain.transition.T + chain.transition_covariance
        predicted_means.append(mean)
        predicted_covariances.append(covariance)
        loading = known[:, t, :, None] * chain.loading
        noise = torch.where(known[:, t] > 0, chain.noise, 1.0)
        cross = covariance @ loading.mT
        factor = torch.linalg.cholesky(loading @ cross + torch.diag_embed(noise))
        gain = torch.cholesky_solve(cross.mT, factor).mT
        innovation = known[:, t] * (residuals[:, t] - mean @ chain.loading.T)
        whitened = torch.linalg.solve_triangular(factor, innovation[..., None], upper=False)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_prob = log_prob - 0.5 * whitened.square().sum((-2, -1)) - log_det
        mean = mean + (gain @ innovation[..., None])[..., 0]
        left = identity - gain @ loading
        covariance = left @ covariance @ left.mT + (gain * (noise * known[:, t])[:, None]) @ gain.mT
        means.append(mean)
        covariances.append(covariance)
    stacked = (torch.stack(p, 1) for p in (means, covariances, predicted_means, predicted_covariances))
    return Filtered(log_prob, *stacked)


def smooth(found: Filtered, chain: LinearGaussian) -> Smoothed:
    """Go back over what the filter found."""
    mean, covariance = found.means[:, -1], found.covariances[:, -1]
    means, covariances, lagged = [mean], [covariance], []
    for t in range(found.means.shape[1] - 2, -1, -1):
        gain = _gain(found, chain, t)
        ahead = mean - found.predicted_means[:, t + 1]
        mean = found.means[:, t] + (gain @ ahead[..., None])[..., 0]
        lagged.append(covariance @ gain.mT)
        change = covariance - found.predicted_covariances[:, t + 1]
        covariance = found.covariances[:, t] + gain @ change @ gain.mT
        covariance = (covariance + covariance.mT) / 2
        means.append(mean)
        covariances.append(covariance)
    size = covariance.shape
    back = torch.stack(lagged[::-1], 1) if lagged else covariance.new_zeros(size[0], 0, *size[1:])
    return Smoothed(torch.stack(means[::-1], 1), torch.stack(covariances[::-1], 1), back)


def sample_paths(found: Filtered, chain: LinearGaussian, num: int) -> Tensor:
    """Independent draws of z given x, (num, N, T, L), from torch's global generator."""
    size, steps, dim = found.means.shape
    noise = torch.randn(steps, num, size, dim, dtype=found.means.dtype, device=found.means.device)
    state = found.means[:, -1] + _scaled(found.covariances[:, -1], noise[-1])
    path = [state]
    for t in range(steps - 2, -1, -1):
        gain = _gain(found, chain, t)
        ahead = state - found.predicted_means[:, t + 1]
        # Joseph's form of P - J (A P A' + Q) J', which rounding would leave indefinite.
        left = torch.eye(dim).to(gain) - gain @ chain.transition
        spread = left @ found.covariances[:, t] @ left.mT + gain @ chain.transition_covariance @ gain.mT
        state = found.means[:, t] + (gain @ ahead[..., None])[..., 0] + _scaled(spread, noise[t])
        path.append(state)
    return torch.stack(path[::-1], 2)


def _gain(found: Filtered, chain: LinearGaussian, t: int) -> Tensor:
    """The smoother's gain J_t, (M, L, L)."""
    factor = torch.linalg.cholesky(found.predicted_covariances[:, t + 1])
    return torch.cholesky_solve(chain.transition @ found.covariances[:, t], factor).mT


def _scaled(covariance: Tensor, noise: Tensor) -> Tensor:
    """Standard noise (S, N, L) with covariances (M, L, L)."""
    covariance = (covariance + covariance.mT) / 2
    tiny = torch.finfo(noise.dtype).eps * covariance.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    factor = torch.linalg.cholesky(covariance + torch.diag_embed(tiny.expand(-1, noise.shape[-1])))
    return (factor @ noise[..., None])[..., 0]
