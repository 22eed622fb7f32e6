r"""Gaussians, and mixtures of Gaussians, that the states of a hidden Markov model emit.

.. math:: p(x \mid k) = \sum_{m=1}^M w_{km} \, N(x; \mu_{km}, \Sigma_{km})

Missing coordinates are integrated out: dropped for diagonal covariances; for full ones by the marginal, at
O(K M D^3) for each distinct pattern of what is missing. EM fills them in by their expectations (Ghahramani &
Jordan, *Supervised learning from incomplete data via an EM approach*, NIPS 1994).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.contract import check_count
from ppgen.datasets.values import Values
from ppgen.errors import CapabilityError, ConfigError
from ppgen.models.emissions import EMPTY, Emission, log_shares, split_missing
from ppgen.ops.chunks import rows_per_chunk
from ppgen.ops.gaussian import Diagonal, Full, conditional, floored_tril
from ppgen.ops.kmeans import kmeans

# A variance of exactly the floor has no finite logarithm above it; this is as near as it gets.
_ABOVE_FLOOR = 1e-6


class GaussianEmission(Emission):
    r"""M Gaussians a state.

    Parameters are unconstrained: a standard deviation is :math:`\sqrt{e^{2a} + \epsilon}` with ``log_scales``
    a and ``min_variance`` ε; for full covariances these are the diagonal of a Cholesky factor, with
    ``off_diagonals`` below it. M-steps allow no variance below ε in any direction.

    Args:
        num_states: K.
        num_dims: D.
        covariance: ``"diagonal"`` or ``"full"``.
        num_components: M.
        min_variance: ε, in squared units of the data.
        smoothing: s pseudo-steps of each component in the mixture weights.
    """

    min_variance: float | Tensor
    prior_locs: Tensor
    prior_scales: Tensor

    def __init__(
        self,
        num_states: int,
        num_dims: int,
        *,
        covariance: str = "diagonal",
        num_components: int = 1,
        min_variance: float = 1e-6,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(num_states, num_dims)
        if covariance not in ("diagonal", "full"):
            raise ConfigError(f"covariance: expected 'diagonal' or 'full', got {covariance!r}")
        check_count(num_components, "num_components")
        if not min_variance > 0:
            raise ConfigError(
                f"min_variance: expected a positive number, got {min_variance}; without a floor the "
                "likelihood is unbounded"
            )
        self.values = Values("real", missing=True)
        self.full, self.num_components = covariance == "full", num_components
        self.min_variance, self.smoothing = min_variance, smoothing
        total = num_states * num_components
        self.locs = nn.Parameter(torch.randn(total, num_dims))
        self.log_scales = nn.Parameter(torch.zeros(total, num_dims))
        if self.full and num_dims > 1:
            self.off_diagonals = nn.Parameter(torch.zeros(total, num_dims * (num_dims - 1) // 2))
        if num_components > 1:
            self.logits = nn.Parameter(torch.zeros(num_states, num_components))
        self.register_buffer("prior_locs", torch.zeros(num_dims))
        self.register_buffer("prior_scales", torch.ones(num_dims))

    @property
    def means(self) -> Tensor:
        """Means of the components, shape (K, M, D)."""
        return self.locs.view(self.num_states, self.num_components, self.num_dims)

    @property
    def covariances(self) -> Tensor:
        """Covariances of the components, shape (K, M, D, D)."""
        size = (self.num_states, self.num_components, self.num_dims, self.num_dims)
        return self._covariances().view(size)

    @property
    def weights(self) -> Tensor:
        """Shares of the components in each state, shape (K, M)."""
        return self._log_weights().exp()

    def log_prob(self, rows: Tensor) -> Tensor:
        """As the class says."""
        each = self._log_prob(rows)
        if self.num_components == 1:
            return each
        return (each.view(len(rows), self.num_states, -1) + self._log_weights()).logsumexp(-1)

    def sample(self, states: Tensor) -> Tensor:
        """As the class says."""
        component = self._components_of(states, None)
        noise = torch.randn(*states.shape, self.num_dims, dtype=self.locs.dtype, device=self.locs.device)
        if not self.full:
            return self.locs[component] + self._scales()[component] * noise
        return self.locs[component] + (self._trils()[component] @ noise[..., None])[..., 0]

    def complete(self, rows: Tensor, states: Tensor) -> Tensor:
        """Draws of the missing coordinates given the others and the states; see the base class."""
        unknown = rows.isnan()
        component = self._components_of(states, self._log_prob(rows))
        drawn = rows.expand(*states.shape, -1).clone()
        if not self.full:
            noise = torch.randn_like(drawn)
            return torch.where(unknown, self.locs[component] + self._scales()[component] * noise, rows)
        for given, which in _patterns(~unknown):
            if bool(given.all()):
                continue
            parts = conditional(self.locs, self._covariances(), given, rows[which])
            mine = component[:, which]
            free = parts.means[torch.arange(len(which), device=rows.device), mine]
            free = free + (parts.trils[mine] @ torch.randn_like(free)[..., None])[..., 0]
            drawn[:, which[:, None], (~given).nonzero()[:, 0]] = free
        return drawn

    def prepare(self, rows: Tensor) -> None:
        """Means and deviations of the data centre the priors, and scale the components before a start."""
        known, filled = split_missing(rows)
        known = torch.ones_like(rows) if known is None else known
        count = known.sum(0).clamp_min(1)
        mean = filled.sum(0) / count
        variance = ((filled - mean).square() * known).sum(0) / count
        self.prior_locs.copy_(mean)
        self.prior_scales.copy_(variance.clamp_min(self.min_variance).sqrt())
        self.locs.copy_(mean + self.prior_scales * torch.randn_like(self.locs))
        self.log_scales.copy_(self._log_scales(variance).expand_as(self.log_scales))
        if self.full and self.num_dims > 1:
            self.off_diagonals.zero_()

    def start(self, rows: Tensor) -> Tensor:
        """Clusters of k-means for states; in each, of k-means again for components."""
        weights = super().start(rows)
        if self.num_components > 1:
            for k in range(self.num_states):
                mine = rows[weights[:, k] > 0].nan_to_num(0.0)
                if len(mine) >= self.num_components:
                    part = slice(k * self.num_components, (k + 1) * self.num_components)
                    self.locs[part] = kmeans(mine, self.num_components)[0]
        return weights

    def maximise(self, rows: Tensor, weights: Tensor) -> tuple[str, ...]:
        """Weighted moments, with missing coordinates at their expectations."""
        live = (weights.sum(-1) > 0) & ~rows.isnan().all(-1)
        if not bool(live.all()):
            rows, weights = rows[live], weights[live]
        if self.num_components > 1:
            inside = self._log_prob(rows).view(len(rows), self.num_states, -1) + self._log_weights()
            weights = (inside.softmax(-1) * weights[..., None]).flatten(1)
            shares = weights.sum(0).view(self.num_states, -1)
            self.logits.copy_(log_shares(shares + self.smoothing, self.logits))
        floor = self.min_variance * (1 + _ABOVE_FLOOR)
        if self.full:
            mass, means, spread = self._full_moments(rows, weights)
            held = (mass <= EMPTY)[:, None]
            spread = torch.where(held[..., None], torch.eye(self.num_dims).to(spread), spread)
            trils, collapsed = floored_tril(spread, float(floor))
            collapsed = collapsed[:, None]
            if self.num_dims > 1:
                below = trils[(slice(None), *self._below())]
                self.off_diagonals.copy_(torch.where(held, self.off_diagonals, below))
            variances = trils.diagonal(dim1=-2, dim2=-1).square()
        else:
            mass, means, variances = self._diagonal_moments(rows, weights)
            held = mass <= EMPTY  # (C, D): a coordinate may be missing wherever its state is
            collapsed = variances < floor / 10
        self.locs.copy_(torch.where(held, self.locs, means))
        self.log_scales.copy_(torch.where(held, self.log_scales, self._log_scales(variances)))
        collapsed = collapsed & ~held
        return (self._remark(collapsed),) if bool(collapsed.any()) else ()

    def log_prior(self) -> Tensor:
        """The sum of s log w of mixtures, in nats."""
        if self.num_components == 1:
            return self.locs.new_zeros(())
        return self.smoothing * self._log_weights().sum()

    def draw_from_prior(self) -> dist.TorchDistribution:
        """``emission.locs`` and ``emission.scales`` (K, D), around the data's mean and deviation."""
        if self.full or self.num_components > 1:
            raise CapabilityError(
                "emission: priors for MCMC are there for one diagonal Gaussian a state; write a Pyro "
                "model with ppgen.distributions.hidden_markov.HiddenMarkov for other ones"
            )
        shape = self.locs.shape
        scale = self.prior_scales.expand(shape)
        locs = pyro.sample("emission.locs", dist.Normal(self.prior_locs.expand(shape), 2 * scale).to_event(2))
        scales = pyro.sample(
            "emission.scales", dist.LogNormal(scale.log(), torch.ones_like(scale)).to_event(2)
        )
        return dist.Normal(locs, scales).to_event(1)

    # -- private -----------------------------------------------------------------------------

    def _remark(self, collapsed: Tensor) -> str:
        """What is said of components, (K M, D) or (K M, 1), that are no wider than the least variance."""
        return (
            f"collapsed: {int(collapsed.any(-1).sum())} of {len(self.locs)} Gaussians shrank to a singular "
            "covariance and were held at min_variance; use fewer states or raise min_variance"
        )

    def _scales(self) -> Tensor:
        return (self.min_variance + (2 * self.log_scales).exp()).sqrt()

    def _log_scales(self, variances: Tensor) -> Tensor:
        excess = (variances - self.min_variance).clamp_min(_ABOVE_FLOOR * self.min_variance)
        return excess.log() / 2

    def _trils(self) -> Tensor:
        trils = torch.diag_embed(self._scales())
        if self.num_dims == 1:
            return trils
        row, column = self._below()
        which = torch.arange(len(trils), device=row.device)[:, None]
        return trils.index_put((which, row, column), self.off_diagonals)

    def _below(self) -> tuple[Tensor, Tensor]:
        rows, columns = torch.tril_indices(self.num_dims, self.num_dims, -1, device=self.locs.device)
        return rows, columns

    def _covariances(self) -> Tensor:
        trils = self._trils() if self.full else torch.diag_embed(self._scales())
        return trils @ trils.mT

    def _log_weights(self) -> Tensor:
        if self.num_components == 1:
            return self.locs.new_zeros(self.num_states, 1)
        return self.logits.log_softmax(-1)

    def _log_prob(self, rows: Tensor) -> Tensor:
        """Log density of each component, (R, K M)."""
        known, filled = split_missing(rows)
        if not self.full:
            parts = Diagonal(self.locs, self._scales())
            return parts.log_density(rows) if known is None else parts.log_marginal(filled, known > 0)
        if known is None:
            return Full(self.locs, self._trils()).log_density(rows)
        found = rows.new_zeros(len(rows), len(self.locs))
        covariances = self._covariances()
        for given, which in _patterns(known > 0):
            if bool(given.all()):
                found = found.index_put((which,), Full(self.locs, self._trils()).log_density(rows[which]))
            elif bool(given.any()):
                evidence = conditional(self.locs, covariances, given, filled[which]).log_evidence
                found = found.index_put((which,), evidence)
        return found

    def _components_of(self, states: Tensor, log_prob: Tensor | None) -> Tensor:
        """A component for each state, drawn given the rows' densities (R, K M) where there are any."""
        if self.num_components == 1:
            return states
        logits = self._log_weights()[states]
        if log_prob is not None:
            each = log_prob.view(len(log_prob), self.num_states, -1)
            logits = logits + each[torch.arange(len(each), device=states.device), states]
        return states * self.num_components + dist.Categorical(logits=logits).sample()

    def _diagonal_moments(self, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mass, means and variances of the known coordinates, each (C, D)."""
        known, filled = split_missing(rows)
        known = torch.ones_like(rows) if known is None else known
        mass = weights.T @ known
        divisor = mass.clamp_min(EMPTY)
        means = weights.T @ filled / divisor
        spread = torch.zeros_like(means)
        size = rows_per_chunk(means.numel(), rows.device)
        for x, k, w in zip(filled.split(size), known.split(size), weights.split(size), strict=True):
            residuals = (x[:, None] - means) * k[:, None]
            spread += torch.einsum("nc,ncd->cd", w, residuals.square())
        return mass, means, spread / divisor

    def _full_moments(self, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mass (C,), means (C, D) and covariances (C, D, D), missing coordinates integrated out."""
        mass = weights.sum(0)
        # About the present means: what is far from them on average is small beside the spread.
        first, second = torch.zeros_like(self.locs), self.locs.new_zeros(*self.locs.shape, self.num_dims)
        covariances = self._covariances()
        size = rows_per_chunk(self.locs.numel(), rows.device)
        for given, which in _patterns(~rows.isnan()):
            free = (~given).nonzero()[:, 0]
            for part in which.split(size):
                x, w = rows[part], weights[part]
                filled = x.expand(len(self.locs), *x.shape)
                if len(free):
                    found = conditional(self.locs, covariances, given, x)
                    filled = filled.clone()
                    filled[:, :, free] = found.means.transpose(0, 1)
                    left = w.sum(0)[:, None, None] * (found.trils @ found.trils.mT)
                    second[:, free[:, None], free] += left
                residuals = filled - self.locs[:, None]
                weighted = residuals * w.T[..., None]
                first += weighted.sum(1)
                second += weighted.mT @ residuals
        divisor = mass.clamp_min(EMPTY)[:, None]
        shift = first / divisor
        spread = second / divisor[..., None] - shift[..., :, None] * shift[..., None, :]
        return mass, self.locs + shift, spread


def _patterns(known: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each distinct row of ``known`` (R, D), bool, with the numbers of the rows that are so."""
    if bool(known.all()):
        return [(known[0], torch.arange(len(known), device=known.device))]
    patterns, which = torch.unique(known, dim=0, return_inverse=True)
    return [(given, (which == index).nonzero()[:, 0]) for index, given in enumerate(patterns)]
