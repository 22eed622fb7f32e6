r"""Networks for velocities: a vector for each point and time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.errors import ConfigError
from ppgen.nn.context import with_context


class VelocityNetwork(nn.Module):
    r"""A velocity :math:`v(y, t, c)` that starts at the one that leaves a standard normal as it is.

    .. math:: v(y, t) = \frac{t - (1 - t)}{s_t^2}\, y + \frac{1}{s_t} F(y / s_t, t, c), \qquad
        s_t^2 = t^2 + (1 - t)^2 .

    The first term is the best velocity, in the sense of flow matching along straight lines from noise to
    data, for data that are standard normal; what it leaves of each line's velocity has variance :math:`1 /
    s_t^2`. So F, a residual perceptron, has inputs and targets of unit size at all times (the idea of Karras,
    Aittala, Aila & Laine 2022 for diffusion models). F starts at zero, on features that bend: the point's
    weights do not shrink with the number of conditions beside it.

    Args:
        num_dims: number D of coordinates.
        hidden: widths of the hidden layers: the first is that of the blocks' input and output, each of the
            others that inside one residual block.
        context_dim: features of the context; 0 for none.
        num_frequencies: pairs of a sine and a cosine of time that F is given.
        activation: makes the nonlinearity.
    """

    frequencies: Tensor

    def __init__(
        self,
        num_dims: int,
        hidden: Sequence[int],
        *,
        context_dim: int = 0,
        num_frequencies: int = 8,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        if not isinstance(hidden, Sequence) or not hidden or min(hidden) < 1:
            raise ConfigError(f"hidden: expected widths of 1 or more such as (256, 256), got {hidden!r}")
        if num_frequencies < 1:
            raise ConfigError(f"num_frequencies: expected 1 or more, got {num_frequencies}")
        width, *inner = hidden
        self.context_dim = context_dim
        self.register_buffer(
            "frequencies", math.pi * torch.arange(1.0, num_frequencies + 1), persistent=False
        )
        num_conditions = 2 * num_frequencies + context_dim
        self.entry = nn.Linear(num_dims + num_conditions, width)
        self.blocks = nn.ModuleList(_Block(width, n, num_conditions, activation) for n in inner)
        self.activation = activation()
        self.last = nn.Linear(width, num_dims)
        # Among many conditions the point would by default weigh so little that F hardly bends.
        nn.init.normal_(self.entry.weight[:, :num_dims], std=2 / math.sqrt(num_dims))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, y: Tensor, t: Tensor, context: Tensor | None = None, *, dropout: float = 0.0) -> Tensor:
        """Velocities at points and times.

        Args:
            y: points ``(..., D)``.
            t: times ``(...)`` in [0, 1].
            context: labels or features, see :func:`~ppgen.nn.context.with_context`.
            dropout: share of the hidden units that this call leaves out at random.

        Returns:
            Shape ``(..., D)``.
        """
        t = t[..., None]
        variance = t.square() + (1 - t).square()
        angles = t * self.frequencies
        conditions = with_context(torch.cat([angles.sin(), angles.cos()], dim=-1), context, self.context_dim)
        scale = variance.rsqrt()
        h = self.entry(torch.cat([y * scale, conditions.expand(*y.shape[:-1], -1)], dim=-1))
        for block in self.blocks:
            h = h + block(h, conditions, dropout)
        correction: Tensor = self.last(self.activation(h))
        return (2 * t - 1) / variance * y + scale * correction


class _Block(nn.Module):
    """A residual block that is told the conditions again."""

    def __init__(
        self, width: int, inner: int, num_conditions: int, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.first = nn.Linear(width, inner)
        self.conditions = nn.Linear(num_conditions, inner, bias=False)
        self.second = nn.Linear(inner, width)
        self.activation = activation()

    def forward(self, h: Tensor, conditions: Tensor, dropout: float) -> Tensor:
        """The change of features ``(..., width)``."""
        inner = self.first(self.activation(h)) + self.conditions(conditions)
        inner = self.activation(inner)
        if dropout:
            inner = functional.dropout(inner, dropout)
        change: Tensor = self.second(inner)
        return change
