"""A model's own chain rule as a Pyro distribution: whole events, of any batch shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppgen.distributions.missing import or_missing


class ValueSet(Protocol):
    """What is to be known of the values of a coordinate."""

    @property
    def discrete(self) -> bool:
        """Whether they lie on a grid in [0, 1], rather than on the real line."""

    @property
    def missing(self) -> bool:
        """Whether NaN is among them."""


class ChainRule(Protocol):
    """What knows the conditionals; contexts are rows of features ``(N, F)``, or ``None``."""

    def event_log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Log-probability, ``(N,)``, of data ``(N, *event_shape)``; nats."""

    def event_draw(self, num: int, context: Tensor | None) -> Tensor:
        """Draws, ``(num, *event_shape)``."""


class AutoregressiveDistribution(TorchDistribution):
    """The distribution of events by the chain rule.

    Args:
        density: gives log-probabilities and draws of rows of events.
        event_shape: shape of one draw.
        values: what a coordinate can be.
        context: features that all conditionals are given, shape ``(*batch_shape, F)``.
        validate_args: as in torch.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        density: ChainRule,
        event_shape: Sequence[int],
        values: ValueSet,
        *,
        context: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.density, self.values, self.context = density, values, context
        batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, torch.Size(event_shape), validate_args=validate_args)

    @property
    def takes_missing(self) -> bool:
        """Whether NaN is a value, and stands for a coordinate that is missing."""
        return self.values.missing

    @constraints.dependent_property
    def support(self) -> Any:
        """The real line, or the unit interval that holds the grid, in every coordinate; NaN where allowed."""
        known = constraints.unit_interval if self.values.discrete else constraints.real
        dims = len(self.event_shape)
        return or_missing(known, dims) if self.values.missing else constraints.independent(known, dims)

    def expand(self, batch_shape: Sequence[int], _instance: Self | None = None) -> Self:
        """The same distribution with another batch shape."""
        new: Self = self._get_checked_instance(AutoregressiveDistribution, _instance)
        new.density, new.values = self.density, self.values
        new.context = None if self.context is None else self.context.expand(*batch_shape, -1)
        super(AutoregressiveDistribution, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass or density in nats, shape ``(..., *batch_shape)``; exact."""
        if self._validate_args:
            self._validate_sample(value)
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        rows = value.expand(*batch, *self.event_shape).reshape(batch.numel(), *self.event_shape)
        return self.density.event_log_prob(rows, self._context_of(batch)).reshape(batch)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, shape ``(*sample_shape, *batch_shape, *event_shape)``."""
        batch = torch.Size(sample_shape) + self.batch_shape
        drawn = self.density.event_draw(batch.numel(), self._context_of(batch))
        return drawn.reshape(*batch, *self.event_shape)

    def _context_of(self, batch_shape: torch.Size) -> Tensor | None:
        """The context of each of a batch's events, as rows."""
        if self.context is None:
            return None
        size = self.context.shape[-1]
        return self.context.expand(*batch_shape, size).reshape(batch_shape.numel(), size)
