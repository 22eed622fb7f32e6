"""A stack of dilated causal convolutions that predicts each step of a series from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.errors import ConfigError
from ppgen.nn.step_embedding import StepEmbedding


class GatedLayer(nn.Module):
    r"""One dilated convolution of two taps, gated, with a residual and a skip output.

    .. math:: u_t = \tanh(a_t) \odot \sigma(b_t), \qquad (a_t, b_t) = W [h_{t-d}, h_t] + V c_t

    The outputs are :math:`h_t + R u_t` and the skip :math:`S u_t` (van den Oord et al. 2016). Before the
    beginning h is 0.

    Args:
        channels: width of h.
        skip_channels: width of the skip output.
        dilation: d, the distance of the two taps.
        context_dim: features of the context; 0 for none.
    """

    def __init__(self, channels: int, skip_channels: int, dilation: int, context_dim: int = 0) -> None:
        super().__init__()
        self.channels, self.dilation = channels, dilation
        self.taps = nn.Linear(2 * channels, 2 * channels)
        self.context = nn.Linear(context_dim, 2 * channels, bias=False) if context_dim else None
        self.outputs = nn.Linear(channels, channels + skip_channels)

    def forward(self, h: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """All steps at once: h ``(N, T, channels)`` to the same shape, and the skips of all steps."""
        num = h.shape[1]
        late = functional.pad(h, (0, 0, min(self.dilation, num), 0))[:, :num]
        return self.gate(late, h, context)

    def gate(self, late: Tensor, h: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same from both taps, ``(..., channels)`` each; context ``(..., context_dim)``."""
        taps = self.taps(torch.cat([late, h], dim=-1))
        if self.context is not None:
            taps = taps + self.context(context)
        a, b = taps.chunk(2, dim=-1)
        residual, skip = self.outputs(a.tanh() * b.sigmoid()).tensor_split((self.channels,), dim=-1)
        return h + residual, skip


class RingBuffer:
    """The last d values of a series, in d places that are used in turn (Le Paine et al. 2016).

    Args:
        h: the series so far, shape ``(N, t, channels)``.
        size: d.
    """

    def __init__(self, h: Tensor, size: int) -> None:
        num = h.shape[1]
        self.places = h.new_zeros(size, len(h), h.shape[2])
        kept = range(max(0, num - size), num)
        self.places[[t % size for t in kept]] = h[:, kept.start :].transpose(0, 1)
        self.now = num

    def swap(self, h: Tensor) -> Tensor:
        """Put the next value ``(N, channels)`` in, and give the one from d steps before it."""
        place = self.now % len(self.places)
        late = self.places[place].clone()
        self.places[place] = h
        self.now += 1
        return late


class WaveNetCache:
    """What has been read: a buffer a layer, the number of inputs, and the context."""

    def __init__(self, buffers: list[RingBuffer], length: int, context: Tensor | None) -> None:
        self.buffers, self.length, self.context = buffers, length, context


class DilatedCausalStack(nn.Module):
    r"""Parameters of every step of a series, each from the steps before it.

    A step depends on the :math:`1 + \sum_l d_l` before it, where :math:`d_l` are the dilations.

    Args:
        num_dims: coordinates D of a step.
        num_outputs: parameters P of a step.
        dilations: distance of the two taps of each layer.
        channels: width of the layers.
        skip_channels: width of the sum of the skips, from which two layers make the parameters.
        levels: number of grid values, which are embedded from three levels on; ``None`` for real numbers.
        context_dim: features of the context; 0 for none.
        dropout: share of the inputs of each layer left out in training mode.
    """

    def __init__(
        self,
        num_dims: int,
        num_outputs: int,
        *,
        dilations: Sequence[int],
        channels: int,
        skip_channels: int,
        levels: int | None,
        context_dim: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(dilations, Sequence) or not dilations or min(dilations) < 1:
            raise ConfigError(
                f"dilations: expected one or more positive integers, such as (1, 2, 4), got {dilations!r}"
            )
        if channels < 1 or skip_channels < 1:
            raise ConfigError(
                f"channels, skip_channels: expected positive integers, got {channels}, {skip_channels}"
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout: expected a share in [0, 1), got {dropout}")
        self.embedding = StepEmbedding(num_dims, channels, levels)
        self.start = nn.Parameter(torch.zeros(channels))
        self.layers = nn.ModuleList(GatedLayer(channels, skip_channels, d, context_dim) for d in dilations)
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Linear(skip_channels, skip_channels),
            nn.ReLU(),
            nn.Linear(skip_channels, num_outputs),
        )
        self.drop = nn.Dropout(dropout)

    @property
    def receptive_field(self) -> int:
        """How many steps before its own a step depends on."""
        return 1 + sum(layer.dilation for layer in self._layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters ``(N, T, P)`` of x ``(N, T, D)``; context ``(N, F)`` or ``(N, T, F)``."""
        h = self._read(x[:, :-1])
        given = None if context is None else _along(context, h.shape[1])
        total: Tensor | None = None
        for layer in self._layers:
            h, skip = layer(self.drop(h), given)
            total = skip if total is None else total + skip
        out: Tensor = self.head(total)
        return out

    def begin(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, WaveNetCache]:
        """Parameters ``(N, P)`` of the step after x ``(N, t, D)``, t < T; and the cache for :meth:`step`."""
        h = self._read(x)
        given = None if context is None else _along(context, h.shape[1])
        buffers, total = [], None
        for layer in self._layers:
            buffers.append(RingBuffer(h, layer.dilation))
            h, skip = layer(h, given)
            total = skip[:, -1] if total is None else total + skip[:, -1]
        return self.head(total), WaveNetCache(buffers, h.shape[1], context)

    def step(self, x: Tensor, cache: WaveNetCache) -> Tensor:
        """Parameters ``(N, P)`` of the step after x ``(N, D)``, which follows what the cache has read."""
        h, total = self.embedding(x), None
        given = cache.context
        if given is not None and given.ndim == 3:
            given = given[:, cache.length]
        for layer, buffer in zip(self._layers, cache.buffers, strict=True):
            h, skip = layer.gate(buffer.swap(h), h, given)
            total = skip if total is None else total + skip
        cache.length += 1
        out: Tensor = self.head(total)
        return out

    @torch.no_grad()
    def start_from(self, params: Tensor) -> None:
        """Set the bias of the parameters, ``(P,)``."""
        cast(nn.Linear, self.head[-1]).bias.copy_(params)

    @property
    def _layers(self) -> list[GatedLayer]:
        return cast(list[GatedLayer], list(self.layers))

    def _read(self, x: Tensor) -> Tensor:
        """Inputs of the layers, ``(N, 1 + t, channels)``: the start, and x ``(N, t, D)``."""
        return torch.cat([self.start.expand(len(x), 1, -1), self.embedding(x)], dim=1)


def _along(context: Tensor, num: int) -> Tensor:
    """A context for the first ``num`` steps: one row for all, or a row a step."""
    return context[:, None] if context.ndim == 2 else context[:, :num]
