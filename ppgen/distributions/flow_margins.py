r"""The layers of flows that meet the data first: fixed maps of each coordinate, measured from data.

Each is a :class:`~ppgen.distributions.flow.FlowTransform`. All log-determinants are in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppgen.distributions.flow import FlowTransform
from ppgen.errors import ConfigError, DataError


class Standardise(FlowTransform):
    """``x = loc + scale * z`` with fixed numbers a coordinate, which :meth:`fit` measures.

    Args:
        num_dims: number D of coordinates.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, num_dims: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(num_dims))
        self.register_buffer("scale", torch.ones(num_dims))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take the mean and the standard deviation of ``x``, ``(N, D)``; a constant column keeps scale 1."""
        scale = x.std(0, correction=0)
        self.loc.copy_(x.mean(0))
        self.scale.copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data."""
        return self.loc + self.scale * z

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        return (x - self.loc) / self.scale, -self.scale.log().sum().expand(x.shape[:-1])


class Gaussianise(FlowTransform):
    r"""Data on [0, 1], each coordinate made standard normal through its histogram.

    :math:`z_i = \Phi^{-1}(F_i(x_i))` with :math:`F_i` the piecewise linear distribution function of
    equal bins, whose frequencies :meth:`fit` measures (Chen & Gopinath 2000). On dequantised data of
    as many levels as bins it is exact in the margins: what is left for a flow is how the coordinates
    hang together. Outside [0, 1] the log density is minus infinity.

    Args:
        num_dims: number D of coordinates.
        num_bins: number of equal bins of [0, 1].
    """

    mass: Tensor
    below: Tensor
    above: Tensor

    def __init__(self, num_dims: int, num_bins: int) -> None:
        super().__init__()
        if not isinstance(num_bins, int) or num_bins < 2:
            raise ConfigError(
                f"num_bins: expected a number of 2 or more, got {num_bins!r}; None for data on the real line"
            )
        self.num_bins = num_bins
        for name in ("mass", "below", "above"):
            self.register_buffer(name, torch.empty(num_dims, num_bins))
        self._set_mass(torch.ones(num_dims, num_bins, dtype=torch.float64) / num_bins)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take the frequencies of ``x``, ``(N, D)``; one more datum is spread evenly over each histogram.

        Raises:
            DataError: a value outside [0, 1], or NaN.
        """
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise DataError(
                f"x: with num_bins={self.num_bins} the data lie in [0, 1], got a range of "
                f"[{float(x.min()):.4g}, {float(x.max()):.4g}]; rescale them, or build the flow with "
                "num_bins=None"
            )
        cells = self._bin(x) + self._row_starts()
        counts = torch.bincount(cells.flatten(), minlength=self.mass.numel()).view_as(self.mass).double()
        self._set_mass((counts + 1 / self.num_bins) / (len(x) + 1))

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data."""
        # Both tails are measured from their own end, so that neither loses digits.
        tail, negative = torch.special.ndtr(-z.abs()), z < 0
        lower = torch.where(negative, tail, 1 - tail)
        rows = lower.detach().reshape(-1, len(self.mass)).T.contiguous()
        k = torch.searchsorted(self.below[:, 1:].contiguous(), rows, right=True).T.reshape(z.shape)
        mass, below, above = self._at(k)
        part = torch.where(negative, (tail - below) / mass, 1 - (tail - above) / mass).clamp(0, 1)
        return (k + part) / self.num_bins

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        k = self._bin(x)
        mass, below, above = self._at(k)
        part = x * self.num_bins - k
        lower, upper = below + part * mass, above + (1 - part) * mass
        # A value on the border of [0, 1] would be infinitely far out.
        tail = torch.minimum(lower, upper).clamp_min(torch.finfo(x.dtype).eps ** 2)
        z = torch.special.ndtri(tail) * torch.where(lower < upper, 1.0, -1.0).to(x.dtype)
        slope = (mass * self.num_bins).log() + 0.5 * z.square() + 0.5 * math.log(2 * math.pi)
        inside = ((x >= 0) & (x <= 1)).all(-1)
        return z, slope.sum(-1).masked_fill(~inside, -math.inf)

    def _bin(self, x: Tensor) -> Tensor:
        # NaN has a bin too, and stays NaN in what is computed with it.
        return (x.detach() * self.num_bins).floor().clamp(0, self.num_bins - 1).nan_to_num(0).long()

    def _row_starts(self) -> Tensor:
        return torch.arange(len(self.mass), device=self.mass.device) * self.num_bins

    def _at(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cells = k + self._row_starts()
        return self.mass.take(cells), self.below.take(cells), self.above.take(cells)

    @torch.no_grad()
    def _set_mass(self, mass: Tensor) -> None:
        self.mass.copy_(mass)
        self.below.copy_(mass.cumsum(-1) - mass)
        self.above.copy_(mass.flip(-1).cumsum(-1).flip(-1) - mass)
