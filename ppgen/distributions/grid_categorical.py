"""A categorical distribution over the levels of a grid in [0, 1]."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class GridCategorical(TorchDistribution):
    """One probability a level, with values on the grid ``k / (L - 1)`` rather than as indices.

    Args:
        logits: unnormalised log-probabilities of the levels, shape ``(..., L)``.
    """

    arg_constraints = {"logits": constraints.real_vector}
    has_rsample = False

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = torch.log_softmax(logits, dim=-1)
        self.levels = logits.shape[-1]
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The unit interval that holds the grid."""
        return constraints.unit_interval

    def expand(self, batch_shape: Any, _instance: Any = None) -> GridCategorical:
        """The same distribution on a larger batch shape."""
        new = self._get_checked_instance(GridCategorical, _instance)
        new.logits, new.levels = self.logits.expand(*batch_shape, self.levels), self.levels
        super(GridCategorical, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass of grid values; nats."""
        if self._validate_args:
            self._validate_sample(value)
        indices = (value * (self.levels - 1)).round().long()
        indices, logits = torch.broadcast_tensors(indices[..., None], self.logits)
        return logits.gather(-1, indices[..., :1])[..., 0]

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws on the grid."""
        indices = torch.distributions.Categorical(logits=self.logits).sample(torch.Size(sample_shape))
        return indices.to(self.logits.dtype) / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        """Mean over the grid."""
        grid = torch.linspace(0, 1, self.levels, dtype=self.logits.dtype, device=self.logits.device)
        return self.logits.exp() @ grid
