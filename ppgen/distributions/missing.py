"""Supports that hold NaN as well, which stands for a missing coordinate."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import constraints


class OrMissing(constraints.Constraint):
    """A value of another constraint on single coordinates, or NaN."""

    event_dim = 0

    def __init__(self, known: Any) -> None:
        self.known = known
        self.is_discrete = bool(known.is_discrete)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Where ``value`` is allowed, bool of its shape."""
        return self.known.check(value) | value.isnan()


def or_missing(known: Any, event_dim: int) -> Any:
    """Events of ``event_dim`` dimensions whose coordinates keep ``known``, or are NaN."""
    return constraints.independent(OrMissing(known), event_dim)
