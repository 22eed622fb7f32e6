r"""Distributions with exact densities that the toy data are drawn from.

Each has ``sample`` and a normalised ``log_prob`` (nats) on data of shape ``(..., D)``, so the
expected NLL of the truth, its entropy, is known, and no model can do better.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import Normal, TorchDistribution, Uniform
from torch import Tensor
from torch.distributions import Distribution, constraints

from ppgen.errors import ConfigError


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{name}: expected a positive number, got {value}")


class Polar(TorchDistribution):
    r"""Points :math:`c + r (\cos a, \sin a)` with independent radius and angle.

    .. math:: \log p(x) = \log p(r) + \log p(a) - \log r ,

    with r the distance from the centre c. A whole ring, or with a von Mises angle an arc.

    Args:
        radius: distribution on the positive reals, batch shape B.
        angle: distribution on :math:`[-\pi, \pi)`, batch shape B.
        centre: shape B + (2,).
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(self, radius: Distribution, angle: Distribution, centre: Tensor) -> None:
        self.radius, self.angle, self.centre = radius, angle, centre
        super().__init__(radius.batch_shape, torch.Size([2]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The plane (its one point with r = 0 has density zero or no mass)."""
        return constraints.real_vector

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape ``sample_shape + batch_shape + (2,)``."""
        shape = torch.Size(sample_shape)
        r, a = self.radius.sample(shape), self.angle.sample(shape)
        return self.centre + r[..., None] * torch.stack([a.cos(), a.sin()], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats; shape of ``value`` without its last dimension."""
        x = value - self.centre
        # The angle of the origin has no gradient; a distance of the smallest normal number stands in.
        r = torch.linalg.vector_norm(x, dim=-1).clamp(min=torch.finfo(x.dtype).tiny)
        a = torch.atan2(x[..., 1], x[..., 0])
        return self.radius.log_prob(r) + self.angle.log_prob(a) - r.log()


class Twisted(TorchDistribution):
    r"""A planar distribution whose points are turned about the origin by an angle :math:`t |x|`.

    The turn keeps areas, so :math:`p(x) = p_0(R(-t|x|) x)`.

    Args:
        base: a distribution over the plane.
        rate: t, radians a unit of distance.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, base: Distribution, rate: float) -> None:
        self.base, self.rate = base, rate
        super().__init__(base.batch_shape, torch.Size([2]), validate_args=False)

    def _turn(self, x: Tensor, rate: float) -> Tensor:
        a = rate * torch.linalg.vector_norm(x, dim=-1)
        c, s = a.cos(), a.sin()
        return torch.stack([c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]], -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape ``sample_shape + batch_shape + (2,)``."""
        return self.forward(self.base.sample(torch.Size(sample_shape)))

    def forward(self, x: Tensor) -> Tensor:
        """The turn itself: where a point x of the base goes."""
        return self._turn(x, self.rate)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats; shape of ``value`` without its last dimension."""
        return self.base.log_prob(self._turn(value, -self.rate))


class Checkerboard(TorchDistribution):
    r"""Uniform on every second square of a board on :math:`[-h, h)^2`; entropy :math:`\log 2 h^2`.

    Args:
        squares: squares a side, an even number.
        half_width: h.
        dtype: floating-point type of the draws.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, squares: int = 4, half_width: float = 2.0, dtype: torch.dtype = torch.float32) -> None:
        _positive(half_width=half_width)
        if squares < 2 or squares % 2:
            raise ConfigError(f"squares: expected an even number of 2 or more a side, got {squares}")
        self.squares, self.half_width, self.dtype = squares, half_width, dtype
        super().__init__(event_shape=torch.Size([2]), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape ``sample_shape + (2,)``."""
        shape = torch.Size(sample_shape)
        row = torch.randint(self.squares, shape)
        column = 2 * torch.randint(self.squares // 2, shape) + row % 2
        corner = torch.stack([column, row], -1).to(self.dtype)
        # Clamped inside the square: in floating point corner + u may round up to the next one.
        inside = torch.rand(*shape, 2, dtype=self.dtype).clamp(1e-6, 1 - 1e-6)
        return (corner + inside) * (2 * self.half_width / self.squares) - self.half_width

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, minus infinity on the other squares and outside."""
        cell = ((value + self.half_width) * (self.squares / (2 * self.half_width))).floor()
        inside = ((cell >= 0) & (cell < self.squares)).all(-1) & (cell.sum(-1) % 2 == 0)
        level = value.new_tensor(-math.log(2 * self.half_width**2))
        return torch.where(inside, level, value.new_tensor(-torch.inf))

    def entropy(self) -> Tensor:
        """The logarithm of the area, in nats."""
        return torch.tensor(math.log(2 * self.half_width**2), dtype=self.dtype)


class Funnel(TorchDistribution):
    r"""Neal's funnel: :math:`v \sim N(0, s^2)` and :math:`x_i \mid v \sim N(0, e^v)`; x = (v, x_1, ...).

    Args:
        dims: number of coordinates D, v among them.
        scale: s; 3 in R. Neal, Slice sampling, Annals of Statistics 31(3), 2003.
        dtype: floating-point type of the draws.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, dims: int = 2, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> None:
        _positive(scale=scale)
        if dims < 2:
            raise ConfigError(f"dims: a funnel has 2 coordinates or more, got {dims}")
        self.scale, self.dtype = scale, dtype
        super().__init__(event_shape=torch.Size([dims]), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape ``sample_shape + (D,)``."""
        noise = torch.randn(*torch.Size(sample_shape), *self.event_shape, dtype=self.dtype)
        v = self.scale * noise[..., :1]
        return torch.cat([v, (v / 2).exp() * noise[..., 1:]], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats; shape of ``value`` without its last dimension."""
        v, rest = value[..., 0], value[..., 1:]
        neck = Normal(torch.zeros_like(v), self.scale).log_prob(v)
        mouth = Normal(torch.zeros_like(rest), (v / 2).exp()[..., None]).log_prob(rest)
        return neck + mouth.sum(-1)

    def entropy(self) -> Tensor:
        r""":math:`\frac{D}{2} \log 2 \pi e + \log s` nats: the mean of v is zero."""
        dims = self.event_shape[0]
        return torch.tensor(
            dims / 2 * math.log(2 * math.pi * math.e) + math.log(self.scale), dtype=self.dtype
        )


class Banana(TorchDistribution):
    r"""A bent Gaussian: :math:`x_1 \sim N(0, s^2)`, :math:`x_2 \mid x_1 \sim N(b (x_1^2 - s^2), w^2)`.

    Args:
        bend: b.
        scale: s, the length.
        width: w, the thickness.
        dtype: floating-point type of the draws.

    Source:
        H. Haario, E. Saksman, J. Tamminen, Adaptive proposal distribution for random walk
        Metropolis algorithm, Computational Statistics 14, 1999.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self,
        bend: float = 0.5,
        scale: float = 1.5,
        width: float = 0.5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        _positive(scale=scale, width=width)
        self.bend, self.scale, self.width, self.dtype = bend, scale, width, dtype
        super().__init__(event_shape=torch.Size([2]), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape ``sample_shape + (2,)``."""
        noise = torch.randn(*torch.Size(sample_shape), 2, dtype=self.dtype)
        first = self.scale * noise[..., 0]
        return torch.stack([first, self._middle(first) + self.width * noise[..., 1]], -1)

    def _middle(self, first: Tensor) -> Tensor:
        return self.bend * (first.square() - self.scale**2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats; shape of ``value`` without its last dimension."""
        first, second = value[..., 0], value[..., 1]
        along = Normal(torch.zeros_like(first), self.scale).log_prob(first)
        return along + Normal(self._middle(first), self.width).log_prob(second)

    def entropy(self) -> Tensor:
        r""":math:`\log 2 \pi e s w` nats, whatever the bend."""
        return torch.tensor(math.log(2 * math.pi * math.e * self.scale * self.width), dtype=self.dtype)


def full_circle(like: Tensor) -> Uniform:
    """The uniform angle, of the shape and type of ``like``."""
    edge = torch.full_like(like, math.pi)
    # atan2 can give pi itself, which a half-open interval would leave out.
    return Uniform(-edge, edge.nextafter(torch.full_like(like, torch.inf)))
