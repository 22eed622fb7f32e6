r"""Increasing functions of one number: what a flow layer does to each coordinate.

The functions' parameters come from the layer's network, which sees other coordinates; zeros are
the identity. All log slopes are in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.ops.splines import MAX_BINS, rational_quadratic

# Bound on the log scale of one affine layer: e^-3 to e^3, a smooth form of the usual clipping.
MAX_LOG_SCALE = 3.0


class Elementwise(Protocol):
    """An increasing bijection of the real line with ``num_parameters`` parameters."""

    @property
    def num_parameters(self) -> int:
        """Numbers that fix one function."""

    def push(self, z: Tensor, parameters: Tensor) -> Tensor:
        """Noise to data, element by element.

        Args:
            z: any shape.
            parameters: shape ``(num_parameters, *z.shape)``.
        """

    def pull(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Data to noise z, and ``log dz/dx``, each of the shape of ``x``."""


@dataclass(frozen=True)
class Affine:
    r""":math:`x = \mu + e^s z` with s smoothly bounded by :data:`MAX_LOG_SCALE`."""

    num_parameters: int = 2

    def push(self, z: Tensor, parameters: Tensor) -> Tensor:
        """Noise to data."""
        shift, raw = parameters.unbind(0)
        return shift + z * (MAX_LOG_SCALE * torch.tanh(raw)).exp()

    def pull(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        shift, raw = parameters.unbind(0)
        log_slope = -MAX_LOG_SCALE * torch.tanh(raw)
        return (x - shift) * log_slope.exp(), log_slope


@dataclass(frozen=True)
class Spline:
    """A rational-quadratic spline on ``[-bound, bound]``, the identity outside.

    A density evaluates the spline, a draw its inverse; see :mod:`ppgen.ops.splines`.

    Attributes:
        num_bins: pieces K.
        bound: where the linear tails begin.
    """

    num_bins: int
    bound: float

    def __post_init__(self) -> None:
        if not 2 <= self.num_bins <= MAX_BINS:
            raise ConfigError(f"num_bins: a spline has 2 to {MAX_BINS} pieces, got {self.num_bins}")
        if not 0 < self.bound < math.inf:
            raise ConfigError(f"bound: a spline ends at a positive number, got {self.bound}")

    @property
    def num_parameters(self) -> int:
        """K widths, K heights, and the slopes at K - 1 inner knots."""
        return 3 * self.num_bins - 1

    def push(self, z: Tensor, parameters: Tensor) -> Tensor:
        """Noise to data."""
        return rational_quadratic(z, parameters, self.bound, inverse=True)[0]

    def pull(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        return rational_quadratic(x, parameters, self.bound)
