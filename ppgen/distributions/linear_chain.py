r"""Paths through a chain of K states, with probability proportional to their weights.

.. math:: p(z) = \frac1Z \exp\Big( \sum_{t=1}^T u_t(z_t) + \sum_{t=2}^T v_t(z_{t-1}, z_t) \Big)

It is a linear-chain conditional random field given its input, and the posterior of the states of a hidden
Markov model given a sequence: ``LinearChain(*hidden_markov_distribution.potentials(x))``. The density,
marginals, the likeliest path and draws are exact, O(T K^2) a path (:mod:`ppgen.ops.chains`).

NaN in a path is a state that is not known, and is summed out. A path of a sequence that ends before T is NaN
from there on.

Reference: Lafferty, McCallum & Pereira, *Conditional random fields*, ICML 2001.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppgen.distributions.missing import or_missing
from ppgen.errors import ShapeError
from ppgen.ops import chains


class LinearChain(TorchDistribution):
    """Paths of T states.

    Args:
        unary: log potentials u, shape ``(*batch, T, K)``; ``-inf`` forbids.
        pairwise: log potentials v of the next state (columns) after each (rows), (K, K), ``(*batch, 1, K,
            K)`` for one table a path, or ``(*batch, T - 1, K, K)``.
        lengths: int64, shape ``batch``, how many steps each path has; T by default.
        unit: what one state is worth in the values of a path: 1 for numbers 0 .. K - 1, 1 / (K - 1) for a
            grid.
        event_shape: of a path, T numbers in all; (T,) by default.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False
    takes_missing = True

    def __init__(
        self,
        unary: Tensor,
        pairwise: Tensor,
        lengths: Tensor | None = None,
        *,
        unit: float = 1.0,
        event_shape: torch.Size | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if unary.ndim < 2:
            raise ShapeError(f"unary: expected shape (..., T, K), got {tuple(unary.shape)}")
        batch, (steps, num_states) = unary.shape[:-2], unary.shape[-2:]
        table = (num_states, num_states)
        if tuple(pairwise.shape) not in (table, (*batch, 1, *table), (*batch, steps - 1, *table)):
            raise ShapeError(
                f"pairwise: expected shape {table}, {(*batch, 1, *table)} or {(*batch, steps - 1, *table)}, "
                f"got {tuple(pairwise.shape)}"
            )
        if lengths is not None and lengths.shape != batch:
            raise ShapeError(f"lengths: expected shape {tuple(batch)}, got {tuple(lengths.shape)}")
        self.unary, self.pairwise, self.lengths, self.unit = unary, pairwise, lengths, unit
        event = torch.Size([steps]) if event_shape is None else event_shape
        super().__init__(batch, event, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """Values of K states, or NaN."""
        return or_missing(
            constraints.interval(0, (self.unary.shape[-1] - 1) * self.unit), len(self.event_shape)
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> LinearChain:
        """The same distribution on a larger batch shape."""
        new = self._get_checked_instance(LinearChain, _instance)
        # What is shared by a batch stays so: the sums over paths are worked out once.
        new.unary, new.pairwise, new.lengths, new.unit = self.unary, self.pairwise, self.lengths, self.unit
        super(LinearChain, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of paths, or of what is known of them; nats."""
        if self._validate_args:
            self._validate_sample(value)
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        unary, pairwise, lengths = self._flat(batch)
        states = self.states(value.expand(batch + self.event_shape))
        steps = torch.arange(states.shape[-1], device=states.device)
        live = torch.ones_like(states, dtype=torch.bool) if lengths is None else steps < lengths[:, None]
        unknown = (states < 0) & live
        if not states.is_meta and bool(unknown.any()):
            weight = chains.log_partition(_clamped(unary, states), pairwise, lengths)
        else:
            weight = chains.path_weights(unary, pairwise, states.clamp_min(0).masked_fill(~live, -1))
        return weight.view(batch) - self.log_partition()

    def log_partition(self) -> Tensor:
        """Log Z, broadcastable to the batch shape; in nats."""
        shape = self.unary.shape[:-2]
        return chains.log_partition(*self._flat(shape)).view(shape)

    def marginals(self) -> Tensor:
        """p(z_t = k), shape ``(*batch, T, K)``; 0 beyond the end."""
        shape = self.unary.shape[:-2]
        return chains.expectations(*self._flat(shape)).nodes.view(self.unary.shape)

    def likeliest(self) -> tuple[Tensor, Tensor]:
        """The likeliest path (Viterbi), int64 ``(*batch, T)``, -1 beyond the end, and its log-probability."""
        shape = self.unary.shape[:-2]
        path, weight = chains.viterbi(*self._flat(shape))
        return path.view(self.unary.shape[:-1]), weight.view(shape) - self.log_partition()

    def given(self, value: Tensor) -> LinearChain:
        """The paths that agree with the known states of ``value``, shape ``(*batch, *event_shape)``."""
        unary = _clamped(self.unary, self.states(value).view(self.unary.shape[:-1]))
        return LinearChain(unary, self.pairwise, self.lengths, unit=self.unit, event_shape=self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Independent paths; NaN beyond the end."""
        shape = self._extended_shape(torch.Size(sample_shape))
        if self.unary.is_meta:
            return self.unary.new_empty(shape)
        num = torch.Size(sample_shape).numel()
        paths = chains.sample_paths(*self._flat(self.batch_shape), num=num)
        values = (paths * self.unit).to(self.unary.dtype)
        return values.masked_fill(paths < 0, torch.nan).reshape(shape)

    def states(self, value: Tensor) -> Tensor:
        """Numbers of the states of paths in their values, int64 (B, T); -1 for NaN."""
        flat = value.reshape(-1, self.unary.shape[-2])
        return (flat / self.unit).round().nan_to_num(-1).long()

    def _flat(self, batch: torch.Size) -> tuple[Tensor, Tensor, Tensor | None]:
        """Potentials and lengths with one batch dimension."""
        tail = self.unary.shape[-2:]
        unary = self.unary.expand(*batch, *tail).reshape(-1, *tail)
        pairwise = self.pairwise
        if pairwise.ndim > 2:
            pairwise = pairwise.expand(*batch, *pairwise.shape[-3:]).reshape(-1, *pairwise.shape[-3:])
        return unary, pairwise, None if self.lengths is None else self.lengths.expand(batch).reshape(-1)


def _clamped(unary: Tensor, states: Tensor) -> Tensor:
    """Potentials (..., T, K) that forbid all states but the known ones."""
    other = torch.arange(unary.shape[-1], device=unary.device) != states[..., None]
    return unary.masked_fill(other & (states >= 0)[..., None], -torch.inf)
