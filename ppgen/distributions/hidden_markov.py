r"""Hidden Markov models as distributions of whole sequences, with the states summed out.

.. math:: p(x) = \sum_z \pi_{z_1} p(x_1 \mid z_1) \prod_{t=2}^T A_{z_{t-1} z_t} \, p(x_t \mid z_t)

The initial state emits first (Rabiner 1989). NaN is a missing coordinate and is summed or integrated out;
steps of nothing but NaN at the end are beyond the end of a sequence, which comes to the same. The sum over
paths is exact, O(T K^2) a sequence.

Reference: Rabiner, *A tutorial on hidden Markov models*, Proceedings of the IEEE 77, 1989.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from ppgen.distributions.missing import or_missing
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.ops import chains


class StateEmissions(Protocol):
    """What K states emit: rows of D coordinates."""

    @property
    def support(self) -> Any:
        """Constraint on one coordinate."""

    def log_prob(self, rows: Tensor) -> Tensor:
        """Log density of rows (R, D) under each state, (R, K), in nats; NaN coordinates are left out."""

    def sample(self, states: Tensor) -> Tensor:
        """One row for each state, shape ``(*states.shape, D)``."""


class DistributionEmissions:
    """Emissions that a Pyro distribution gives: batch shape (K,), event shape () or (D,).

    Single coordinates can be missing where they are independent given the state (a scalar
    distribution, or ``.to_event(1)`` of one); otherwise whole steps only.

    Args:
        given_state: one distribution a state.
    """

    def __init__(self, given_state: Any) -> None:
        if len(given_state.batch_shape) != 1 or len(given_state.event_shape) > 1:
            raise ShapeError(
                "given_state: expected batch shape (K,) and event shape () or (D,), got "
                f"{tuple(given_state.batch_shape)} and {tuple(given_state.event_shape)}"
            )
        self.given_state = given_state
        self.scalar = not given_state.event_shape
        self.coordinates: Any = given_state if self.scalar else None
        if isinstance(given_state, torch.distributions.Independent) and not given_state.base_dist.event_shape:
            self.coordinates = given_state.base_dist

    @property
    def support(self) -> Any:
        """Constraint on one coordinate."""
        if self.coordinates is not None:
            return self.coordinates.support
        return getattr(self.given_state.support, "base_constraint", constraints.real)

    def log_prob(self, rows: Tensor) -> Tensor:
        """Log density of rows (R, D) under each state, (R, K), in nats; see the class for NaN."""
        unknown = rows.isnan()
        filled = rows if rows.is_meta or not bool(unknown.any()) else _filled(rows, unknown)
        if self.scalar:
            return self.coordinates.log_prob(filled).masked_fill(unknown, 0.0)
        if self.coordinates is not None:
            each = self.coordinates.log_prob(filled[:, None])
            return each.masked_fill(unknown[:, None], 0.0).sum(-1)
        whole = unknown.all(-1)
        if filled is not rows and not torch.equal(whole, unknown.any(-1)):
            raise DataError(
                f"x: single coordinates are missing, which {type(self.given_state).__name__} cannot sum out; "
                "give whole steps, or emissions that are independent given the state"
            )
        return self.given_state.log_prob(filled[:, None]).masked_fill(whole[:, None], 0.0)

    def sample(self, states: Tensor) -> Tensor:
        """One row for each state, shape ``(*states.shape, D)``."""
        draws = self.given_state.expand(torch.Size([*states.shape, *self.given_state.batch_shape])).sample()
        draws = draws[..., None] if self.scalar else draws
        chosen = states[..., None, None].expand(*states.shape, 1, draws.shape[-1])
        return draws.gather(-2, chosen)[..., 0, :]


def _filled(rows: Tensor, unknown: Tensor) -> Tensor:
    """Rows with a value that the column has elsewhere in place of NaN, which is in any support."""
    first = (~unknown).int().argmax(0, keepdim=True)
    return torch.where(unknown, rows.gather(0, first), rows).nan_to_num(0.0)


class HiddenMarkov(TorchDistribution):
    """Sequences of T steps from a chain of K hidden states, the states summed out.

    Args:
        initial_logits: unnormalised log-probabilities of the first state, shape ``(*batch, K)``; ``-inf``
            forbids.
        transition_logits: of the next state given the present one, shape ``(*batch, K, K)``, rows from,
            columns to.
        emissions: what states emit: :class:`StateEmissions`, or a Pyro distribution of batch shape (K,), as
            :class:`DistributionEmissions` has it.
        event_shape: of a sequence, (T,) or (T, D).
        num_steps: T where it is not the first dimension, but any that splits an event evenly, as the rows of
            an image do.

    Raises:
        ShapeError: logits that do not fit together.
        ConfigError: logits that are NaN, or a state without a next one.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False
    #: NaN in observed values is a missing coordinate.
    takes_missing = True

    def __init__(
        self,
        initial_logits: Tensor,
        transition_logits: Tensor,
        emissions: StateEmissions | TorchDistributionMixin,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        num_steps: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.num_steps = event_shape[0] if num_steps is None else num_steps
        num_states = initial_logits.shape[-1]
        if transition_logits.shape[-2:] != (num_states, num_states):
            raise ShapeError(
                f"transition_logits: expected shape (..., {num_states}, {num_states}) for as many "
                f"states, got {tuple(transition_logits.shape)}"
            )
        self.emissions: StateEmissions = (
            DistributionEmissions(emissions) if isinstance(emissions, TorchDistributionMixin) else emissions
        )
        self.initial_logits = initial_logits.log_softmax(-1)
        self.transition_logits = transition_logits.log_softmax(-1)
        batch = torch.broadcast_shapes(initial_logits.shape[:-1], transition_logits.shape[:-2])
        super().__init__(batch, torch.Size(event_shape), validate_args=validate_args)
        if self._validate_args and not initial_logits.is_meta:
            for name in ("initial_logits", "transition_logits"):
                if bool(getattr(self, name).isnan().any()):
                    raise ConfigError(
                        f"{name}: expected log-probabilities with a possible state in each row, got NaN, or "
                        "a row of nothing but -inf"
                    )

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """Sequences of what the states emit, or NaN."""
        return or_missing(self.emissions.support, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> HiddenMarkov:
        """The same distribution on a larger batch shape."""
        new = self._get_checked_instance(HiddenMarkov, _instance)
        new.emissions, new.num_steps = self.emissions, self.num_steps
        # One matrix for a batch stays one: chains with shared transitions are far quicker.
        new.initial_logits, new.transition_logits = self.initial_logits, self.transition_logits
        super(HiddenMarkov, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of sequences, the sum over all paths; nats."""
        if self._validate_args:
            self._validate_sample(value)
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        flat = value.expand(batch + self.event_shape).reshape(-1, *self.event_shape)
        return chains.log_partition(*self.potentials(flat, batch)).view(batch)

    def potentials(self, x: Tensor, batch: torch.Size | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The chain of the hidden states given sequences (N, T, ...), for :mod:`ppgen.ops.chains`.

        Args:
            x: sequences in one batch dimension, ``(N, *event_shape)``.
            batch: the shape of that dimension, which that of the distribution broadcasts to; (N,) by default.

        Returns:
            Log potentials (N, T, K), log transitions (K, K) or, one matrix a sequence, (N, 1, K, K), and
            lengths (N,), ``None`` where all have T steps.
        """
        size, steps = len(x), self.num_steps
        x = x.reshape(size, steps, -1)
        num_states = self.initial_logits.shape[-1]
        unary = self.emissions.log_prob(x.flatten(0, 1)).view(size, steps, num_states)
        initial, pairwise = self.initial_logits, self.transition_logits
        wanted = torch.Size([size]) if batch is None else batch
        if initial.ndim > 1:
            initial = initial.expand(*wanted, num_states).reshape(size, num_states)
        unary = torch.cat([unary[:, :1] + initial[..., None, :], unary[:, 1:]], 1)
        if pairwise.ndim > 2:
            pairwise = pairwise.expand(*wanted, num_states, num_states)
            pairwise = pairwise.reshape(size, 1, num_states, num_states)
        return unary, pairwise, lengths_of(x)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Sequences of all T steps."""
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[: len(shape) - len(self.event_shape)]
        states = self.sample_states(batch, self.num_steps)
        return self.emissions.sample(states).reshape(shape)

    def sample_states(self, batch: torch.Size, num_steps: int, before: Tensor | None = None) -> Tensor:
        """Paths from the prior, int64, shape ``(*batch, num_steps)``.

        Args:
            batch: how many.
            num_steps: their length.
            before: states one step before, shape ``batch``; the initial distribution by default.
        """
        onward = _cumulative(self.transition_logits)
        points = torch.rand(*batch, num_steps, dtype=onward.dtype, device=onward.device)
        path: list[Tensor] = []
        for t in range(num_steps):
            row = _cumulative(self.initial_logits) if before is None else _rows_at(onward, before)
            # Scaled by the sum, so that rounding leads to no forbidden state.
            passed = points[..., t, None] * row[..., -1:] >= row
            before = passed.sum(-1).clamp_max(onward.shape[-1] - 1)
            path.append(before)
        return torch.stack(path, -1)


class StateObservation(TorchDistribution):
    """One step of a hidden Markov model given its state, for programs that have each state as a site.

    Args:
        emissions: what states emit.
        states: int64, any shape, which becomes the batch shape.
        num_dims: D, coordinates of a step.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False
    takes_missing = True

    def __init__(
        self, emissions: StateEmissions, states: Tensor, num_dims: int, *, validate_args: bool | None = None
    ) -> None:
        self.emissions, self.states = emissions, states
        super().__init__(states.shape, torch.Size([num_dims]), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """What states emit, or NaN."""
        return or_missing(self.emissions.support, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StateObservation:
        """The same distribution on a larger batch shape."""
        return StateObservation(self.emissions, self.states.expand(batch_shape), self.event_shape[0])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the steps; nats."""
        each = self.emissions.log_prob(value.reshape(-1, value.shape[-1]))
        each = each.view(*value.shape[:-1], each.shape[-1])
        batch = torch.broadcast_shapes(value.shape[:-1], self.states.shape)
        return each.expand(*batch, -1).gather(-1, self.states.expand(batch)[..., None])[..., 0]

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """One step for each state."""
        return self.emissions.sample(self.states.expand(torch.Size(sample_shape) + self.states.shape))


def lengths_of(x: Tensor) -> Tensor | None:
    """Steps of each sequence (N, T, ...) before nothing but NaN follows; ``None`` where all have T."""
    if x.is_meta or not bool((unknown := x.isnan()).any()):
        return None
    seen = ~unknown.flatten(2).all(-1) if x.ndim > 2 else ~unknown
    numbers = torch.arange(1, x.shape[1] + 1, device=x.device)
    # A sequence of which nothing is known has a first step all the same; its density is 1.
    return (seen * numbers).amax(1).clamp_min(1)


def _cumulative(logits: Tensor) -> Tensor:
    return logits.exp().cumsum(-1)


def _rows_at(tables: Tensor, states: Tensor) -> Tensor:
    """Row ``states[b]`` of each table, (*batch, K): one table (K, K) for all, or one each (*batch, K, K)."""
    if tables.ndim == 2:
        return tables[states]
    num_states = tables.shape[-1]
    wide = tables.expand(*states.shape, num_states, num_states)
    return wide.gather(-2, states[..., None, None].expand(*states.shape, 1, num_states))[..., 0, :]
