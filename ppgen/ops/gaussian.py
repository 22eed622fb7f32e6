r"""Many Gaussians on the same data: log densities, moments under responsibilities, conditionals.

Each class holds K Gaussians with one structure of covariance and answers for N data:

* ``log_density(x)``: :math:`\log N(x_n; \mu_k, \Sigma_k)`, shape ``(N, K)``, differentiable;
* ``score(x, r)``: :math:`\sum_k r_{nk} \Sigma_k^{-1} (\mu_k - x_n)`, shape ``(N, D)``;
* ``moments(x, assign)``: the mass :math:`m_k = \sum_n r_{kn}`, the weighted means and the weighted
  covariances about them. Responsibilities r come from ``assign``, which is shown the log densities
  of one chunk of rows after another, shape ``(K, n)``, and may overwrite them. The data are read
  once, so memory does not grow with N K D.

Inside, the data are the last dimension, which is the fastest. Squares are expanded into matrix
products where the rounding error of that stays below :data:`TOLERANCE` nats a coordinate, and
differences are taken first where it would not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.ops.chunks import rows_per_chunk

TOLERANCE = 1e-3
Assign = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Moments:
    """Mass ``(K,)``, means ``(K, D)``, and covariances about them.

    ``covariances`` are variances ``(K, D)``, matrices ``(K, D, D)``, or the mass-weighted mean
    matrix ``(1, D, D)``, as the class that made them has it. Where a mass is zero, the rest
    is finite and means nothing.
    """

    mass: Tensor
    means: Tensor
    covariances: Tensor


class Diagonal:
    """Gaussians with diagonal covariances: ``locs`` and ``scales`` of shape ``(K, D)``."""

    def __init__(self, locs: Tensor, scales: Tensor) -> None:
        self.locs, self.scales = locs, scales
        # Squares are expanded about the middle of the components, where they cancel least.
        self.centre = locs.detach().mean(0)
        self.log_normaliser = scales.log().sum(-1) + 0.5 * locs.shape[-1] * math.log(2 * math.pi)
        self.expands = _expands(locs - self.centre, scales)
        precisions, centred = scales.pow(-2), locs - self.centre
        self.weight = torch.cat([-0.5 * precisions, precisions * centred], dim=-1)
        self.bias = -0.5 * (precisions * centred.square()).sum(-1) - self.log_normaliser

    def log_density(self, x: Tensor) -> Tensor:
        """Log densities, shape ``(N, K)``, in nats."""
        if self.expands:
            return self._expanded(self._features(x)).T
        return torch.cat([self._direct(self._residuals(part)) for part in self._chunks(x)], dim=-1).T

    def log_marginal(self, x: Tensor, given: Tensor) -> Tensor:
        """Log densities of the coordinates ``given``, bool of the shape of x; shape ``(N, K)``."""
        rows = rows_per_chunk(self.locs.numel(), x.device)
        constant = self.scales.log() + 0.5 * math.log(2 * math.pi)
        known = given.to(x.dtype)
        parts = zip(x.split(rows), known.split(rows), strict=True)
        squares = [(self._residuals(part).square() * k.T).sum(1) for part, k in parts]
        return -0.5 * torch.cat(squares, dim=-1).T - known @ constant.T

    def score(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of the gradients of the log densities, shape ``(N, D)``."""
        precisions = self.scales.pow(-2)
        centred = x - self.centre
        return weights @ (precisions * (self.locs - self.centre)) - centred * (weights @ precisions)

    def moments(self, x: Tensor, assign: Assign) -> Moments:
        """Moments under the responsibilities ``assign(log_density.T)``."""
        dim = self.locs.shape[-1]
        mass, sums = x.new_zeros(len(self.locs)), x.new_zeros(len(self.locs), 2 * dim)
        for part in self._chunks(x):
            if self.expands:
                features = self._features(part)
                weights = assign(self._expanded(features))
                sums += weights @ features
            else:
                residuals = self._residuals(part)
                weights = assign(self._direct(residuals))
                weighted = weights[:, None] * residuals
                sums += torch.cat([weighted.mul(residuals).sum(-1), weighted.sum(-1)], dim=-1)
            mass += weights.sum(-1)
        square, shift = (sums / _divisor(mass)[:, None]).split(dim, dim=-1)
        variances = (square - shift.square()).clamp_min(0)
        if self.expands:
            return Moments(mass, shift + self.centre, variances)
        return Moments(mass, self.locs + self.scales * shift, variances * self.scales.square())

    def _chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        num, dim = self.locs.shape
        return x.split(rows_per_chunk(max(num, 2 * dim) if self.expands else num * dim, x.device))

    def _features(self, x: Tensor) -> Tensor:
        """Squares and values about the centre, side by side, shape ``(N, 2 D)``."""
        centred = x - self.centre
        return torch.cat([centred.square(), centred], dim=-1)

    def _expanded(self, features: Tensor) -> Tensor:
        return torch.addmm(self.bias[:, None], self.weight, features.T)

    def _residuals(self, x: Tensor) -> Tensor:
        return (x.T - self.locs[..., None]) / self.scales[..., None]

    def _direct(self, residuals: Tensor) -> Tensor:
        return -0.5 * residuals.square().sum(1) - self.log_normaliser[:, None]


class Full:
    """Gaussians with a Cholesky factor each: ``locs`` ``(K, D)``, ``trils`` ``(K, D, D)``."""

    def __init__(self, locs: Tensor, trils: Tensor) -> None:
        self.locs, self.trils = locs, trils
        diagonal = trils.diagonal(dim1=-2, dim2=-1)
        self.log_normaliser = diagonal.log().sum(-1) + 0.5 * locs.shape[-1] * math.log(2 * math.pi)
        # One matrix product whitens the data for every component.
        self.centre = locs.detach().mean(0)
        inverses = _inverse(trils)
        self.weight = inverses.flatten(0, 1)
        self.bias = -(inverses @ (locs - self.centre)[..., None]).reshape(-1, 1)

    def log_density(self, x: Tensor) -> Tensor:
        """Log densities, shape ``(N, K)``, in nats."""
        return torch.cat([self._density(self._residuals(part)) for part in self._chunks(x)], dim=-1).T

    def score(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of the gradients of the log densities, shape ``(N, D)``."""
        parts = zip(self._chunks(x), weights.split(self._rows(x)), strict=True)
        weighted = (self._residuals(part) * w.T[:, None] for part, w in parts)
        return torch.cat([-(part.flatten(0, 1).T @ self.weight) for part in weighted])

    def moments(self, x: Tensor, assign: Assign) -> Moments:
        """Moments under the responsibilities ``assign(log_density.T)``."""
        mass, first = x.new_zeros(len(self.locs)), torch.zeros_like(self.locs)
        second = torch.zeros_like(self.trils)
        for part in self._chunks(x):
            residuals = self._residuals(part)
            weights = assign(self._density(residuals))
            weighted = residuals * weights[:, None]
            mass += weights.sum(-1)
            first += weighted.sum(-1)
            second += torch.bmm(weighted, residuals.mT)
        shift = first / _divisor(mass)[:, None]
        spread = second / _divisor(mass)[:, None, None] - shift[..., :, None] * shift[..., None, :]
        means = self.locs + (self.trils @ shift[..., None]).squeeze(-1)
        return Moments(mass, means, self.trils @ spread @ self.trils.mT)

    def _rows(self, x: Tensor) -> int:
        return rows_per_chunk(self.locs.numel(), x.device)

    def _chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self._rows(x))

    def _residuals(self, x: Tensor) -> Tensor:
        """Whitened residuals of all components, shape ``(K, D, N)``."""
        whitened = torch.addmm(self.bias, self.weight, (x - self.centre).T)
        return whitened.view(*self.locs.shape, len(x))

    def _density(self, residuals: Tensor) -> Tensor:
        return -0.5 * residuals.square().sum(1) - self.log_normaliser[:, None]


class Tied:
    """Gaussians that share one Cholesky factor: ``locs`` ``(K, D)``, ``tril`` ``(1, D, D)``.

    In the coordinates that the factor whitens, they are unit spheres.
    """

    def __init__(self, locs: Tensor, tril: Tensor) -> None:
        self.locs, self.tril = locs, tril[0]
        self.inverse = _inverse(tril)[0]
        self.centre = locs.detach().mean(0)
        self.whitened = (locs - self.centre) @ self.inverse.T
        self.spheres = Diagonal(self.whitened, torch.ones_like(locs))
        self.log_det = self.tril.diagonal().log().sum()

    def log_density(self, x: Tensor) -> Tensor:
        """Log densities, shape ``(N, K)``, in nats."""
        return self.spheres.log_density(self._whiten(x)) - self.log_det

    def score(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of the gradients of the log densities, shape ``(N, D)``."""
        return self.spheres.score(self._whiten(x), weights) @ self.inverse

    def moments(self, x: Tensor, assign: Assign) -> Moments:
        """Moments under the responsibilities ``assign(log_density.T)``; one covariance for all."""
        mass, first = x.new_zeros(len(self.locs)), torch.zeros_like(self.locs)
        second = torch.zeros_like(self.tril)
        for part in x.split(rows_per_chunk(self.locs.numel(), x.device)):
            points = self._whiten(part)
            weights = assign(self.spheres.log_density(points).T - self.log_det)
            mass += weights.sum(-1)
            first += weights @ points
            if self.spheres.expands:
                second += points.T @ points
            else:
                residuals = points.T - self.whitened[..., None]
                second += torch.bmm(residuals * weights[:, None], residuals.mT).sum(0)
        shift = first / _divisor(mass)[:, None]
        if not self.spheres.expands:
            shift = shift - self.whitened
        spread = (second - shift.T @ (mass[:, None] * shift)) / mass.sum()
        means = (shift if self.spheres.expands else shift + self.whitened) @ self.tril.T + self.centre
        return Moments(mass, means, (self.tril @ spread @ self.tril.T)[None])

    def _whiten(self, x: Tensor) -> Tensor:
        return (x - self.centre) @ self.inverse.T


def floored_tril(covariances: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    r"""Cholesky factors of covariances whose eigenvalues are raised to ``floor``.

    :math:`U \max(\Lambda, \epsilon) U^\top` is, of all Gaussians with a variance of :math:`\epsilon`
    or more in every direction, the likeliest under a sample covariance
    :math:`S = U \Lambda U^\top`, which may be singular. (A floor on the pivots alone would not do:
    below a pivot that is mere rounding error the rest of its column is arbitrarily large.)

    Args:
        covariances: positive semi-definite to rounding, finite, shape ``(K, D, D)``.
        floor: :math:`\epsilon`.

    Returns:
        Factors ``(K, D, D)``, whose pivots are at least :math:`\sqrt\epsilon`, and a mask ``(K,)`` of
        the matrices that had collapsed: an eigenvalue below a tenth of ``floor``.
    """
    identity = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    trils, info = torch.linalg.cholesky_ex(covariances)
    # No eigenvalue is below the floor just where this has a factor too.
    low = (torch.linalg.cholesky_ex(covariances - floor * identity).info > 0) | (info > 0)
    collapsed = torch.zeros_like(low)
    if bool(low.any()):
        values, vectors = torch.linalg.eigh(covariances[low])
        collapsed[low] = (values < floor / 10).any(-1)
        # A QR factor needs no positive definite product, which rounding might deny.
        roots = values.clamp_min(floor).sqrt()[..., None] * vectors.mT
        upper = torch.linalg.qr(roots, mode="r").R
        signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(upper.dtype)
        trils[low] = (signs[..., None] * upper).mT
    trils.diagonal(dim1=-2, dim2=-1).clamp_(min=math.sqrt(floor))
    return trils, collapsed


@dataclass(frozen=True)
class Conditional:
    """Gaussians of some coordinates given the others.

    Attributes:
        log_evidence: log density of the given coordinates, shape ``(N, K)``, in nats.
        means: of the free coordinates, shape ``(N, K, M)``.
        trils: Cholesky factors of their covariances, shape ``(K, M, M)``.
    """

    log_evidence: Tensor
    means: Tensor
    trils: Tensor


def conditional(locs: Tensor, covariances: Tensor, given: Tensor, x: Tensor) -> Conditional:
    r"""Condition K Gaussians on the coordinates ``given`` of N data.

    Args:
        locs: means, shape ``(K, D)``.
        covariances: shape ``(K, D, D)``.
        given: which coordinates are known, bool ``(D,)``.
        x: the data, shape ``(N, D)``; only the given coordinates are read.
    """
    free = ~given
    num = int(given.sum())
    factor = torch.linalg.cholesky(covariances[:, given][:, :, given])
    residuals = (x[:, given] - locs[:, None, given]).mT
    whitened = torch.linalg.solve_triangular(factor, residuals, upper=False)
    cross = torch.linalg.solve_triangular(factor, covariances[:, given][:, :, free], upper=False)
    means = locs[:, free] + (whitened.mT @ cross).transpose(0, 1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_evidence = -0.5 * whitened.square().sum(1).T - log_det - 0.5 * num * math.log(2 * math.pi)
    left = covariances[:, free][:, :, free] - cross.mT @ cross
    # The Schur complement of a positive definite matrix: the floor only meets rounding.
    trils, _ = floored_tril(left, torch.finfo(x.dtype).tiny)
    return Conditional(log_evidence, means, trils)


def _divisor(mass: Tensor) -> Tensor:
    return mass.clamp_min(torch.finfo(mass.dtype).tiny)


def _inverse(trils: Tensor) -> Tensor:
    identity = torch.eye(trils.shape[-1], dtype=trils.dtype, device=trils.device)
    return torch.linalg.solve_triangular(trils, identity.expand_as(trils), upper=False)


def _expands(centred: Tensor, scales: Tensor) -> bool:
    """Whether expanded squares keep log densities near the data right to :data:`TOLERANCE`."""
    if scales.is_meta:
        return True
    with torch.no_grad():
        reach = centred.square().amax(0) + scales.square().amax(0)
        worst = (reach / scales.square()).max() * torch.finfo(scales.dtype).eps
    return bool(worst <= TOLERANCE)
