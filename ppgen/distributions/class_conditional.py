"""Data of one class each, for models that have the class as a site."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppgen.distributions.hidden_markov import StateEmissions, StateObservation
from ppgen.distributions.missing import or_missing


class ClassConditional(StateObservation):
    """p(x | y) for given classes y: events of any shape, NaN where a coordinate is missing.

    Args:
        emissions: the density of flat data under each class.
        classes: int64, any shape, which becomes the batch shape.
        event_shape: of a datum.
    """

    def __init__(
        self,
        emissions: StateEmissions,
        classes: Tensor,
        event_shape: torch.Size,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(emissions, classes, event_shape.numel(), validate_args=validate_args)
        self._event_shape = event_shape

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """What classes emit, or NaN."""
        return or_missing(self.emissions.support, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> ClassConditional:
        """The same distribution on a larger batch shape."""
        return ClassConditional(self.emissions, self.states.expand(batch_shape), self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the data, missing coordinates summed or integrated out; nats."""
        if self._validate_args:
            self._validate_sample(value)
        return super().log_prob(value.flatten(value.ndim - len(self.event_shape)))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """One datum for each class, with nothing missing."""
        drawn = super().sample(sample_shape)
        return drawn.reshape(*drawn.shape[:-1], *self.event_shape)
