r"""Posteriors of the parameters of a family given its statistics, complete or expected.

* Tables: :math:`\theta_q \sim \mathrm{Dir}(\alpha)` for each configuration q of the parents, with
  :math:`\alpha` = equivalent sample size over the cells of the table (BDeu), so that
  :math:`\theta_q \mid D \sim \mathrm{Dir}(\alpha + N_q)`.
* Regressions, in standardised units: :math:`\sigma^2 \sim \mathrm{InvGamma}(1 + s/2, s/2)` and
  :math:`w \mid \sigma^2 \sim N(0, \sigma^2 / s)` with s the equivalent sample size; the posterior is of the
  same form (normal-inverse-gamma).

Point parameters are posterior means. They maximise the likelihood times :math:`\prod \theta^\alpha` and
:math:`\prod \sigma^{-s} \exp(-s (1 + |w|^2) / 2 \sigma^2)`, the density that :func:`log_penalty` is the log
of; so expectation-maximisation that sets them never lowers this product.

References: Heckerman, Geiger & Chickering 1995; Gelman et al., *Bayesian Data Analysis*, 2013, chapter 14.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.distributions.network.mechanisms import Discrete, Gaussian


@dataclass(frozen=True)
class TablePosterior:
    """Dirichlets of a table.

    Attributes:
        concentration: shape ``(q, r)``.
    """

    concentration: Tensor

    @classmethod
    def of(cls, counts: Tensor, strength: float) -> TablePosterior:
        """From counts ``(q, r)``, complete or expected, and the equivalent sample size."""
        return cls(counts + strength / counts.numel())

    @property
    def log_mean(self) -> Tensor:
        """Log posterior mean, shape ``(q, r)``; rows of a prior of 0 without data are uniform."""
        total = self.concentration.sum(-1, keepdim=True)
        mean = torch.where(total > 0, self.concentration / total, 1 / self.concentration.shape[-1])
        return mean.log()

    def log_draw(self) -> Tensor:
        """Log of a drawn table, from torch's global generator."""
        # Gamma draws of a small shape underflow; those of one more do not (Marsaglia & Tsang 2000).
        shape = self.concentration
        logs = torch.distributions.Gamma(shape + 1, torch.ones_like(shape)).sample().log()
        logs = logs + torch.rand_like(shape).log() / shape
        return logs.log_softmax(-1)


@dataclass(frozen=True)
class RegressionPosterior:
    """Normal-inverse-gammas of a regression, one a configuration.

    Attributes:
        mean: of intercept and coefficients, shape ``(q, 1 + d)``.
        precision: of those, over the noise variance, shape ``(q, 1 + d, 1 + d)``.
        shape: of the inverse gamma, shape (q,).
        rate: of the inverse gamma, shape (q,).
    """

    mean: Tensor
    precision: Tensor
    shape: Tensor
    rate: Tensor

    @classmethod
    def of(cls, counts: Tensor, squares: Tensor, strength: float) -> RegressionPosterior:
        """From statistics, complete or expected.

        Args:
            counts: rows by configuration, shape (q,).
            squares: sums of :math:`u u^T` with u = (1, parents, node), shape ``(q, d + 2, d + 2)``.
            strength: the equivalent sample size s.
        """
        xx, xy, yy = squares[:, :-1, :-1], squares[:, :-1, -1], squares[:, -1, -1]
        precision = xx + strength * torch.eye(xx.shape[-1], dtype=xx.dtype, device=xx.device)
        mean = torch.linalg.solve(precision, xy)
        rate = 0.5 * (strength + yy - (mean * xy).sum(-1))
        least = 0.5 * strength + torch.finfo(yy.dtype).eps * yy
        return cls(mean, precision, 1 + 0.5 * (strength + counts), torch.maximum(rate, least))

    @property
    def log_scale(self) -> Tensor:
        """Log of the root of the posterior mean variance, shape (q,)."""
        return 0.5 * (self.rate / (self.shape - 1)).log()

    def draw(self) -> tuple[Tensor, Tensor]:
        """Drawn weights and log scales, from torch's global generator."""
        variance = self.rate / torch.distributions.Gamma(self.shape, torch.ones_like(self.shape)).sample()
        factor = torch.linalg.cholesky(self.precision)
        noise = torch.randn_like(self.mean)[..., None]
        offset = torch.linalg.solve_triangular(factor.mT, noise, upper=True)[..., 0]
        return self.mean + variance.sqrt()[:, None] * offset, 0.5 * variance.log()


def log_penalty(mechanism: Discrete | Gaussian, strength: float) -> Tensor:
    """Log density, up to a constant, that posterior means are modes under; see the module."""
    if isinstance(mechanism, Discrete):
        table = mechanism.log_table
        return strength * table.mean()
    precision = mechanism.form[..., -1, -1]
    weights = mechanism.form[..., -1, :-1] / precision[..., None]
    size = 1 + (weights**2).sum(-1)
    return 0.5 * strength * (precision.log() - size * precision).sum()
