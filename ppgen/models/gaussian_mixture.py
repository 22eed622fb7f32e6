r"""A mixture of Gaussians with full, tied, diagonal or spherical covariances.

.. math::

    p(x, k) = \pi_k \, N(x; \mu_k, \Sigma_k)

.. code-block:: text

    +-- data, n = 1..N -------------------------------+
    |  k_n ~ Categorical(pi)   (enumerated)           |
    |  x_n ~ N(mu[k_n], Sigma[k_n])                   |
    +-------------------------------------------------+

The guide is the exact posterior of ``k``; the likelihood is exact. Because the likelihood of
a mixture is unbounded (a component may shrink onto one datum), no direction may have a
variance below ``min_variance``; EM takes the exact maximum under that constraint, so it stays
monotone. (Gradients see it coordinate by coordinate: for full and tied covariances the variance
of each coordinate given those before it stays above ``min_variance``, a little less strict.) With
``prior_count`` c > 0, EM maximises the posterior density under the conjugate prior

.. math:: \log p(\Sigma_k) = -\tfrac{c}{2} \left(\log|\Sigma_k|
          + \mathrm{tr}(\Sigma_0 \Sigma_k^{-1})\right) + \text{const},

worth c data with the diagonal covariance :math:`\Sigma_0` (the mean within-cluster variance
that ``initialise`` finds), which guards components of few data against overfitting.

Cost of an EM iteration: O(N K D) in matrix products for diagonal and spherical covariances,
O(N K D^2 + K D^3) for full and tied ones. ``condition`` with full or tied covariances costs
O(K D^3) for each distinct pattern of the mask.

References: Dempster, Laird & Rubin 1977; Hathaway, *A constrained formulation of
maximum-likelihood estimation for normal mixture distributions*, Annals of Statistics 1985.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.contract import Kind
from ppgen.datasets.values import REAL, Values
from ppgen.errors import ConfigError, DataError
from ppgen.models.family import Family
from ppgen.models.mixture import Mixture
from ppgen.ops.gaussian import Diagonal, Full, Moments, Tied, conditional, floored_tril

Covariance = Literal["full", "tied", "diagonal", "spherical"]
# A variance of exactly the floor has no finite logarithm above it; this is as near as it gets.
_ABOVE_FLOOR = 1e-6


class GaussianMixture(Mixture):
    r"""K Gaussian components.

    Parameters are unconstrained: a standard deviation is :math:`\sqrt{e^{2a} + \epsilon}` with
    ``log_scales`` a and ``min_variance`` ε. For full and tied covariances these are the diagonal
    of a Cholesky factor, with ``off_diagonals`` (row by row) below it.

    Args:
        event_shape: shape of one datum.
        num_components: K.
        covariance: ``"full"``, ``"tied"`` (one full matrix for all), ``"diagonal"`` or
            ``"spherical"`` (one variance a component).
        min_variance: ε, the least variance in any direction, in squared units of the data.
        prior_count: c, pseudo-data of the prior on covariances in EM; 0 is maximum likelihood.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        num_components: int = 10,
        covariance: Covariance = "diagonal",
        min_variance: float = 1e-6,
        prior_count: float = 0.0,
    ) -> None:
        super().__init__(event_shape, num_components, REAL)
        if covariance not in get_args(Covariance):
            raise ConfigError(f"covariance: expected one of {get_args(Covariance)}, got {covariance!r}")
        if not min_variance > 0:
            raise ConfigError(
                f"min_variance: expected a positive number, got {min_variance}; without a floor the "
                "likelihood of a mixture is unbounded"
            )
        if not prior_count >= 0:
            raise ConfigError(f"prior_count: expected a number of data of 0 or more, got {prior_count}")
        self.covariance, self.min_variance, self.prior_count = covariance, min_variance, prior_count
        self.triangular = covariance in ("full", "tied")
        dim = self.num_dims
        rows = 1 if covariance == "tied" else num_components
        self.locs = nn.Parameter(torch.randn(num_components, dim))
        self.log_scales = nn.Parameter(torch.zeros(rows, 1 if covariance == "spherical" else dim))
        if self.triangular:
            self.off_diagonals = nn.Parameter(torch.zeros(rows, dim * (dim - 1) // 2))

        self.register_buffer("prior_variances", torch.ones(dim))

    def emission(self, k: Tensor) -> dist.TorchDistribution:
        """The Gaussian of component ``k``."""
        if not self.triangular:
            locs, scales = (p.view(-1, *self.event_shape)[k] for p in (self.locs, self._scales()))
            return dist.Normal(locs, scales).to_event(len(self.event_shape))
        trils = self._trils()
        flat = dist.MultivariateNormal(self.locs[k], scale_tril=trils[k if len(trils) > 1 else 0])
        if self.event_shape == (self.num_dims,):
            return flat
        reshape = dist.transforms.ReshapeTransform(torch.Size([self.num_dims]), self.event_shape)
        return dist.TransformedDistribution(flat, [reshape])

    def component_log_prob(self, x: Tensor) -> Tensor:
        """Log p(x_n | k) of flat data, shape ``(N, K)``, in nats."""
        return self._components().log_density(x)

    def score(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Gradient of log p(x): :math:`\sum_k r_{nk} \Sigma_k^{-1} (\mu_k - x_n)`, shaped as x."""
        flat = self._checked(x, context)
        components = self._components()
        joint = components.log_density(flat) + self.logits.log_softmax(-1)
        return components.score(flat, joint.softmax(-1)).view(x.shape)

    def log_prior(self) -> Tensor:
        """Log prior density of the covariances, up to a constant: a scalar, in nats."""
        if self.prior_count == 0:
            return self.logits.new_zeros(())
        scales = self._scales()
        if self.triangular:
            root = self.prior_variances.sqrt().diag().expand(len(scales), -1, -1)
            trace = torch.linalg.solve_triangular(self._trils(), root, upper=False).square().sum()
        else:
            trace = (self.prior_variances / scales.square()).sum()
        return -0.5 * self.prior_count * (2 * scales.log().sum() + trace)

    @property
    def covariances(self) -> Tensor:
        """Covariance matrices of the components over flat data, shape ``(K, D, D)``."""
        if not self.triangular:
            return torch.diag_embed(self._scales().square())
        trils = self._trils()
        return (trils @ trils.mT).expand(self.num_components, -1, -1)

    # -- private -----------------------------------------------------------------------------

    def _scales(self) -> Tensor:
        """Standard deviations ``(K, D)``, or diagonals of the Cholesky factors (one row if tied)."""
        scales = (self.min_variance + (2 * self.log_scales).exp()).sqrt()
        return scales.expand(-1, self.num_dims)

    def _trils(self) -> Tensor:
        """Cholesky factors, shape ``(K, D, D)``, or ``(1, D, D)`` if tied."""
        trils = torch.diag_embed(self._scales())
        row, column = self._below()
        return trils.index_put(
            (torch.arange(len(trils), device=row.device)[:, None], row, column), self.off_diagonals
        )

    def _below(self) -> tuple[Tensor, Tensor]:
        rows, columns = torch.tril_indices(self.num_dims, self.num_dims, -1, device=self.locs.device)
        return rows, columns

    def _components(self) -> Diagonal | Full | Tied:
        if not self.triangular:
            return Diagonal(self.locs, self._scales())
        return (Tied if self.covariance == "tied" else Full)(self.locs, self._trils())

    def _moments(self, x: Tensor, assign: Callable[[Tensor], Tensor]) -> Moments:
        return self._components().moments(x, assign)

    def _maximise(self, moments: Moments, keep: Tensor) -> int:
        return self._write(moments, keep, self.prior_count)

    def _write(self, moments: Moments, keep: Tensor, prior_count: float) -> int:
        """Write the best parameters under moments and ``prior_count`` data of the prior's covariance."""
        floor = self.min_variance * (1 + _ABOVE_FLOOR)
        self.locs.copy_(torch.where(keep[:, None], self.locs, moments.means))
        tied = self.covariance == "tied"
        mass = moments.mass.sum()[None] if tied else moments.mass
        held = keep.new_zeros(1, 1) if tied else keep[:, None]
        share = (mass / (mass + prior_count).clamp_min(torch.finfo(mass.dtype).tiny))[:, None]
        if self.triangular:
            prior = torch.diag(self.prior_variances)
            spread = torch.lerp(prior, moments.covariances, share[..., None])
            # A component that keeps its parameters has no covariance to factorise.
            spread = torch.where(held[..., None], prior, spread)
            trils, collapsed = floored_tril(spread, floor)
            below = trils[(slice(None), *self._below())]
            self.off_diagonals.copy_(torch.where(held, self.off_diagonals, below))
            variances = trils.diagonal(dim1=-2, dim2=-1).square()
        else:
            variances = torch.lerp(self.prior_variances, moments.covariances, share)
            if self.covariance == "spherical":
                variances = variances.mean(-1, keepdim=True)
            collapsed = (variances < floor / 10).any(-1)
        self.log_scales.copy_(torch.where(held, self.log_scales, self._log_scales(variances)))
        return int((collapsed & ~held[:, 0]).sum())

    def _log_scales(self, variances: Tensor) -> Tensor:
        excess = (variances - self.min_variance).clamp_min(_ABOVE_FLOOR * self.min_variance)
        return excess.log() / 2

    def _start(self, x: Tensor, centres: Tensor, assign: Callable[[Tensor], Tensor]) -> Tensor:
        if not bool(x.square().sum().isfinite()):
            raise DataError(
                f"x: squares of the data overflow {x.dtype}, the largest value is "
                f"{float(x.abs().max()):.3g}; rescale the data"
            )
        # The scale of the data, so that residuals from the centres are numbers of ordinary size.
        variances = x.var(0, correction=0).expand(len(self.log_scales), -1)
        if self.covariance == "spherical":
            variances = variances.mean(-1, keepdim=True)
        self.locs.copy_(centres)
        self.log_scales.copy_(self._log_scales(variances))
        if self.triangular:
            self.off_diagonals.zero_()
        moments = self._moments(x, assign)
        spread = moments.covariances
        spread = spread.diagonal(dim1=-2, dim2=-1) if self.triangular else spread
        mass = moments.mass.sum()[None] if self.covariance == "tied" else moments.mass
        self.prior_variances.copy_((mass @ spread / mass.sum()).clamp_min(self.min_variance))
        # Clusters of few data begin near the mean variance: else they begin, and end, collapsed.
        prior_count = max(self.prior_count, self.num_dims + 1 if self.triangular else 1)
        self._write(moments, torch.zeros_like(moments.mass, dtype=torch.bool), prior_count)
        return moments.mass

    def _draw_missing(self, x: Tensor, mask: Tensor, num: int) -> Tensor:
        log_weights = self.logits.log_softmax(-1)
        if not self.triangular:
            scales = self._scales()
            log_evidence = Diagonal(self.locs, scales).log_marginal(x, mask)
            k = dist.Categorical(logits=log_evidence + log_weights).sample((num,))
            return torch.normal(self.locs[k], scales[k])
        drawn = x.expand(num, *x.shape).clone()
        patterns, which = torch.unique(mask, dim=0, return_inverse=True)
        for index, given in enumerate(patterns):
            rows = (which == index).nonzero()[:, 0]
            if bool(given.all()):
                continue
            parts = conditional(self.locs, self.covariances, given, x[rows])
            k = dist.Categorical(logits=parts.log_evidence + log_weights).sample((num,))
            noise = torch.randn(*k.shape, int((~given).sum()), dtype=x.dtype, device=x.device)
            free = parts.means[torch.arange(len(rows), device=x.device), k]
            for component in k.unique():
                chosen = k == component
                free[chosen] += noise[chosen] @ parts.trils[component].T
            drawn[:, rows[:, None], (~given).nonzero()[:, 0]] = free
        return drawn


def _build(event_shape: torch.Size, values: Values, num_data: int) -> GaussianMixture:
    # Uniform noise over one cell has this variance: data that are dequantised have no less.
    floor = 1e-6 if values.levels is None else 1 / (12 * values.levels**2)
    num_components = max(1, min(60, num_data // 10))  # ten data a component, on average
    return GaussianMixture(event_shape, num_components=num_components, min_variance=floor, prior_count=2.0)


FAMILY = Family(
    name="gaussian-mixture",
    group="mixture",
    title="Mixture of Gaussians",
    density=Kind.EXACT,
    view="as_is",
    build=_build,
    example=lambda: GaussianMixture((2,), num_components=3, covariance="full"),
    reading="Each component is a blurred prototype with independent pixels; the likelihood is exact, "
    "and samples show the prototypes with noise on top.",
    fit_options={"epochs": 100, "patience": 20},
)
