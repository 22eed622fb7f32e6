r"""What the states of a hidden Markov model emit: densities, the M-step from responsibilities, draws.

An emission works on *rows*, shape (R, D): all steps of all sequences, one below the other. NaN is a
coordinate that is missing; coordinates are independent given the state (but for Gaussians with full
covariances), so it is left out of sums. Log densities are in nats. With ``smoothing`` s > 0, M-steps maximise
the posterior density under the conjugate prior that each class names.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from ppgen.datasets.values import Values
from ppgen.distributions.grid_categorical import GridCategorical
from ppgen.errors import CapabilityError, ConfigError
from ppgen.ops.binary import softplus
from ppgen.ops.kmeans import kmeans

EmissionName = Literal["categorical", "bernoulli", "poisson", "gaussian", "mixture"]
# Below a thousandth of a step a state says nothing about its parameters.
EMPTY = 1e-3
# k-means that starts EM looks at no more rows than this.
_START_ROWS = 20_000


class Emission(nn.Module):
    """Abstract. A user's own emission defines ``values``, ``support``, ``log_prob`` and ``sample``.

    With :meth:`maximise` it takes part in EM too; without, the model is fitted by gradients.

    Args:
        num_states: K.
        num_dims: D, coordinates of a step.
    """

    #: what a coordinate can be
    values: Values
    #: constraint on one coordinate, NaN aside
    support: Any = constraints.real

    def __init__(self, num_states: int, num_dims: int) -> None:
        super().__init__()
        self.num_states, self.num_dims = num_states, num_dims

    @abstractmethod
    def log_prob(self, rows: Tensor) -> Tensor:
        """Log density of rows (R, D) under each state, (R, K), in nats; NaN coordinates are left out."""

    @abstractmethod
    def sample(self, states: Tensor) -> Tensor:
        """One row for each state, shape ``(*states.shape, D)``."""

    def complete(self, rows: Tensor, states: Tensor) -> Tensor:
        """Rows (R, D) with NaN drawn given the rest and the states (S, R); shape (S, R, D)."""
        return torch.where(rows.isnan(), self.sample(states), rows)

    def potentials(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Densities (R, K) divided by the largest of each row, and its logarithm, (R,)."""
        log_prob = self.log_prob(rows)
        top = log_prob.amax(-1)
        return (log_prob - top[:, None]).exp_(), top

    def start(self, rows: Tensor) -> Tensor:
        """Responsibilities (R, K) that start EM: here those of k-means clusters."""
        known = ~rows.isnan()
        means = torch.where(known, rows, 0.0).sum(0) / known.sum(0).clamp_min(1)
        filled = torch.where(known, rows, means)
        live = known.any(-1).nonzero()[:, 0]
        if len(live) < self.num_states:
            raise ConfigError(
                f"num_states: {self.num_states} states need as many observed steps or more, got {len(live)}; "
                "build the model with fewer states"
            )
        few = live[torch.randperm(len(live), device=rows.device)[:_START_ROWS]]
        centres, _ = kmeans(filled[few], self.num_states)
        labels = torch.cdist(filled, centres).argmin(-1)
        return nn.functional.one_hot(labels, self.num_states).to(rows.dtype) * known.any(-1, keepdim=True)

    def prepare(self, rows: Tensor) -> None:
        """Take from the data what priors are centred at, once, before the first M-step."""

    def maximise(self, rows: Tensor, weights: Tensor) -> tuple[str, ...]:
        """Write the best parameters for rows (R, D) with responsibilities (R, K); remarks on repairs.

        A state with less than a thousandth of a step keeps its parameters.
        """
        raise CapabilityError(
            f"emission: {type(self).__name__} has no M-step; fit by gradients, ppgen.fit(model, data, "
            "objective=ppgen.inference.ELBO())"
        )

    @property
    def has_m_step(self) -> bool:
        """Whether :meth:`maximise` is defined."""
        return type(self).maximise is not Emission.maximise

    def log_prior(self) -> Tensor:
        """Log prior density of the parameters, up to a constant: a scalar, in nats; 0 for none."""
        return next(self.parameters()).new_zeros(())

    def draw_from_prior(self) -> dist.TorchDistribution:
        """Pyro sites ``emission.*`` with proper priors, and the emissions that they give, batch (K,)."""
        raise CapabilityError(
            f"emission: {type(self).__name__} has no priors for MCMC; write a Pyro model with "
            "ppgen.distributions.hidden_markov.HiddenMarkov"
        )


class CategoricalEmission(Emission):
    r"""Each coordinate takes one of L levels of a grid: :math:`p(x_d = l \mid k) = B_{kdl}`.

    The prior of smoothing s is :math:`\mathrm{Dirichlet}(1 + s)` on each row of B.
    """

    support = constraints.unit_interval

    def __init__(self, num_states: int, num_dims: int, *, levels: int, smoothing: float = 0.0) -> None:
        super().__init__(num_states, num_dims)
        if levels < 2:
            raise ConfigError(f"levels: a categorical emission needs 2 or more, got {levels}")
        self.values = Values("binary" if levels == 2 else "grid", levels, missing=True)
        self.levels, self.smoothing = levels, smoothing
        self.logits = nn.Parameter(torch.randn(num_states, num_dims, levels))

    @property
    def probs(self) -> Tensor:
        """B, shape (K, D, L)."""
        return self.logits.softmax(-1)

    def _indices(self, rows: Tensor) -> Tensor:
        """Rows of the tables, of L + 1 rows each, the last for what is missing; shape (R * D,)."""
        last = self.levels
        steps = (rows * (last - 1)).nan_to_num(last).round_().long().clamp_(0, last)
        if self.num_dims > 1:
            steps += torch.arange(self.num_dims, device=rows.device) * (last + 1)
        return steps.view(-1)

    def _tables(self, linear: bool) -> Tensor:
        log_probs = self.logits.log_softmax(-1)
        each = log_probs.exp() if linear else log_probs
        padded = nn.functional.pad(each, (0, 1), value=float(linear))
        return padded.permute(1, 2, 0).reshape(-1, self.num_states).contiguous()

    def log_prob(self, rows: Tensor) -> Tensor:
        """As the class says."""
        found = self._tables(linear=False).index_select(0, self._indices(rows))
        return found.view(len(rows), self.num_dims, self.num_states).sum(1) if self.num_dims > 1 else found

    def potentials(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities themselves for one coordinate; see the base class."""
        if self.num_dims > 1:
            return super().potentials(rows)
        return self._tables(linear=True).index_select(0, self._indices(rows)), rows.new_zeros(())

    def sample(self, states: Tensor) -> Tensor:
        """As the class says."""
        drawn = dist.Categorical(logits=self.logits[states]).sample()
        return drawn.to(self.logits.dtype) / (self.levels - 1)

    def start(self, rows: Tensor) -> Tensor:
        """Levels have no distances: responsibilities at random."""
        return (2 * torch.randn(len(rows), self.num_states, dtype=rows.dtype, device=rows.device)).softmax(-1)

    def maximise(self, rows: Tensor, weights: Tensor) -> tuple[str, ...]:
        """Expected counts of levels plus s."""
        size = self.num_dims * (self.levels + 1)
        if self.num_dims == 1:
            counts = _one_hot(self._indices(rows), size, weights) @ weights
        else:
            spread = weights[:, None].expand(-1, self.num_dims, -1).reshape(-1, self.num_states)
            counts = weights.new_zeros(size, self.num_states).index_add_(0, self._indices(rows), spread)
        counts = counts.view(self.num_dims, self.levels + 1, self.num_states)[:, :-1].permute(2, 0, 1)
        self.logits.copy_(log_shares(counts + self.smoothing, self.logits))
        return ()

    def log_prior(self) -> Tensor:
        """The sum of s log B, in nats."""
        return self.smoothing * self.logits.log_softmax(-1).sum()

    def draw_from_prior(self) -> dist.TorchDistribution:
        """``emission.probs`` (K, D, L), uniform over the simplex."""
        flat = dist.Dirichlet(torch.ones_like(self.logits)).to_event(2)
        return GridCategorical(pyro.sample("emission.probs", flat).log()).to_event(1)


class BernoulliEmission(Emission):
    """Binary vectors, coordinates independent given the state; Beta(1 + s, 1 + s) priors."""

    support = constraints.boolean

    def __init__(self, num_states: int, num_dims: int, *, smoothing: float = 0.0) -> None:
        super().__init__(num_states, num_dims)
        self.values = Values("binary", missing=True)
        self.smoothing = smoothing
        self.logits = nn.Parameter(0.5 * torch.randn(num_states, num_dims))

    @property
    def probs(self) -> Tensor:
        """Probability of a one, shape (K, D)."""
        return self.logits.sigmoid()

    def log_prob(self, rows: Tensor) -> Tensor:
        """As the class says."""
        known, filled = split_missing(rows)
        both = filled @ self.logits.T
        if known is None:
            return both - softplus(self.logits).sum(-1)
        return both - known @ softplus(self.logits).T

    def sample(self, states: Tensor) -> Tensor:
        """As the class says."""
        return torch.bernoulli(self.logits.sigmoid()[states])

    def maximise(self, rows: Tensor, weights: Tensor) -> tuple[str, ...]:
        """Expected counts of ones and zeros plus s."""
        ones, total = _weighted_sums(rows, weights)
        ones, total = ones + self.smoothing, total + 2 * self.smoothing
        smallest = torch.finfo(rows.dtype).eps
        probs = (ones / total.clamp_min(torch.finfo(rows.dtype).tiny)).clamp(smallest, 1 - smallest)
        self.logits.copy_(torch.where(total > EMPTY, probs.logit(), self.logits))
        return ()

    def log_prior(self) -> Tensor:
        """The sum of s (log p + log(1 - p)), in nats."""
        return self.smoothing * (logsigmoid(self.logits) + logsigmoid(-self.logits)).sum()

    def draw_from_prior(self) -> dist.TorchDistribution:
        """``emission.probs`` (K, D), uniform."""
        ones = torch.ones_like(self.logits)
        return dist.Bernoulli(pyro.sample("emission.probs", dist.Beta(ones, ones).to_event(2))).to_event(1)


class PoissonEmission(Emission):
    r"""Counts: Poisson with a rate a state and coordinate, independent given the state.

    The prior of smoothing s is :math:`\mathrm{Gamma}(1 + s r_d, s)` on each rate, with the mean r of the
    data: s steps of the average.
    """

    support = constraints.nonnegative_integer
    prior_rates: Tensor

    def __init__(self, num_states: int, num_dims: int, *, smoothing: float = 0.0) -> None:
        super().__init__(num_states, num_dims)
        self.values = Values("count", missing=True)
        self.smoothing = smoothing
        self.log_rates = nn.Parameter(0.5 * torch.randn(num_states, num_dims))
        self.register_buffer("prior_rates", torch.ones(num_dims))

    @property
    def rates(self) -> Tensor:
        """Rates, shape (K, D)."""
        return self.log_rates.exp()

    def log_prob(self, rows: Tensor) -> Tensor:
        """As the class says."""
        known, filled = split_missing(rows)
        both = filled @ self.log_rates.T - torch.lgamma(filled + 1).sum(-1, keepdim=True)
        if known is None:
            return both - self.rates.sum(-1)
        return both - known @ self.rates.T

    def sample(self, states: Tensor) -> Tensor:
        """As the class says."""
        return torch.poisson(self.rates[states])

    def prepare(self, rows: Tensor) -> None:
        """The prior's mean is the mean of the data."""
        total, count = _weighted_sums(rows, rows.new_ones(len(rows), 1))
        self.prior_rates.copy_((total / count.clamp_min(1))[0].clamp_min(1e-3))

    def maximise(self, rows: Tensor, weights: Tensor) -> tuple[str, ...]:
        """Weighted means, with s steps of the average."""
        total, mass = _weighted_sums(rows, weights)
        total, mass = total + self.smoothing * self.prior_rates, mass + self.smoothing
        rates = (total / mass.clamp_min(EMPTY)).clamp_min(torch.finfo(rows.dtype).eps)
        self.log_rates.copy_(torch.where(mass > EMPTY, rates.log(), self.log_rates))
        return ()

    def log_prior(self) -> Tensor:
        """The sum of s (r log rate - rate), in nats."""
        return self.smoothing * (self.prior_rates * self.log_rates - self.rates).sum()

    def draw_from_prior(self) -> dist.TorchDistribution:
        """``emission.rates`` (K, D), exponential with the mean of the data."""
        rate = (1 / self.prior_rates).expand_as(self.log_rates)
        prior = dist.Gamma(torch.ones_like(rate), rate).to_event(2)
        return dist.Poisson(pyro.sample("emission.rates", prior)).to_event(1)


def split_missing(rows: Tensor) -> tuple[Tensor | None, Tensor]:
    """Which coordinates are known, as numbers (``None``: all), and rows with zeros elsewhere."""
    if rows.is_meta:
        return None, rows
    unknown = rows.isnan()
    if not bool(unknown.any()):
        return None, rows
    return (~unknown).to(rows.dtype), rows.masked_fill(unknown, 0.0)


def log_shares(counts: Tensor, old: Tensor) -> Tensor:
    """Logarithms of counts over their sum in the last dimension; ``old`` where there is next to nothing."""
    total = counts.sum(-1, keepdim=True)
    shares = counts / total.clamp_min(EMPTY)
    # An event that never happened is as good as impossible, and its logarithm stays finite.
    return torch.where(total > EMPTY, shares.clamp_min(torch.finfo(counts.dtype).tiny).log(), old)


def _weighted_sums(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over known coordinates of responsibility times value, and of responsibility; both (K, D)."""
    known, filled = split_missing(rows)
    if known is None:
        return weights.T @ rows, weights.sum(0)[:, None].expand(-1, rows.shape[1])
    return weights.T @ filled, weights.T @ known


def _one_hot(indices: Tensor, size: int, like: Tensor) -> Tensor:
    """The indicator matrix (size, R) of indices (R,)."""
    return like.new_zeros(size, len(indices)).scatter_(0, indices[None], 1.0)
