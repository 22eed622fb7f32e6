r"""Fréchet distance between two samples, as if their features were Gaussian (FID).

With means :math:`m` and covariances :math:`S` of the features of real (r) and generated (g) data,

.. math:: d^2 = \|m_r - m_g\|^2 + \mathrm{tr}\,(S_r + S_g - 2 (S_r^{1/2} S_g S_r^{1/2})^{1/2}),

the squared 2-Wasserstein distance of two Gaussians. It is *biased upward* in finite samples, by
about a constant over N that depends on the generator (Chong and Forsyth 2020), so only
figures of equal numbers of data and of one feature function compare. Cost: O((N + M) F^2 + G F^3)
for F features and G jackknife groups.

References: Heusel et al. (2017), "GANs trained by a two time-scale update rule"; Dowson and
Landau (1982) for the distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.errors import DataError, ShapeError
from ppgen.metrics.features import Features, extract
from ppgen.metrics.resampling import deal_both, jackknife_std_error


def frechet_distance(
    real: Tensor,
    generated: Tensor,
    features: Features | None = None,
    *,
    num_groups: int = 20,
    seed: int = 0,
) -> Estimate:
    """Fréchet distance (FID) between real and generated data; 0 or more, biased upward.

    Args:
        real: data ``(N, *event_shape)``.
        generated: samples ``(M, *event_shape)``.
        features: maps data to features ``(N, F)``; ``None`` compares the arguments as they are.
        num_groups: groups of the jackknife that gives the standard error.
        seed: of the groups; the distance itself does not depend on it.

    Returns:
        A scalar (float64) of kind ``estimate``. The standard error is of sampling; it does not
        hold the bias.

    Raises:
        DataError: fewer data than features + 1 (the covariance would be singular), or NaN features.
        ShapeError: shapes that do not match.
    """
    a, b = extract(real, generated, features)
    needed = max(a.shape[1] + 1, 3)
    for name, x in (("real", a), ("generated", b)):
        if len(x) < needed:
            raise DataError(
                f"{name}: a covariance of {x.shape[1]} features needs {needed} data or more, got {len(x)}; "
                "give more data or fewer features"
            )
    groups_a, groups_b = deal_both(len(a), len(b), num_groups, seed)
    moments_a, moments_b = _Moments(a), _Moments(b)
    value = gaussian_frechet_distance(*moments_a.without(None), *moments_b.without(None))
    replicates = [
        gaussian_frechet_distance(*moments_a.without(i), *moments_b.without(j))
        for i, j in zip(groups_a, groups_b, strict=True)
    ]
    return Estimate(value, Kind.ESTIMATE, jackknife_std_error(torch.stack(replicates)))


def gaussian_frechet_distance(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> Tensor:
    """Fréchet distance of two Gaussians from means ``(F,)`` and covariances ``(F, F)``; a scalar.

    The matrix root is taken through the symmetric product, whose eigenvalues are real and
    non-negative; rounding below 0 is cut off. Singular covariances are allowed.

    Raises:
        ShapeError: means and covariances of different sizes.
    """
    num = mean.shape[-1]
    if mean.shape != other_mean.shape or any(c.shape != (num, num) for c in (covariance, other_covariance)):
        raise ShapeError(
            "mean, covariance: expected shapes (F,) and (F, F) for both Gaussians, got "
            f"{[tuple(t.shape) for t in (mean, covariance, other_mean, other_covariance)]}"
        )
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    product = root @ other_covariance @ root
    overlap = torch.linalg.eigvalsh((product + product.mT) / 2).clamp(min=0).sqrt().sum()
    gap = ((mean - other_mean) ** 2).sum()
    return (gap + covariance.trace() + other_covariance.trace() - 2 * overlap).clamp(min=0)


class _Moments:
    """Sums of a sample ``(N, F)``, from which the moments without some rows follow cheaply."""

    def __init__(self, x: Tensor) -> None:
        self.centre = x.mean(0)
        self.x = x - self.centre  # far from 0, the sums of products would cancel
        self.total, self.products = self.x.sum(0), self.x.T @ self.x

    def without(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and unbiased covariance of all rows but these."""
        num, total, products = len(self.x), self.total, self.products
        if rows is not None:
            left_out = self.x[rows]
            num, total = num - len(left_out), total - left_out.sum(0)
            products = products - left_out.T @ left_out
        return self.centre + total / num, (products - torch.outer(total, total) / num) / (num - 1)
