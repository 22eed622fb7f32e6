r"""Recurrent causal networks on images: row LSTM and diagonal BiLSTM.

Both are those of van den Oord, Kalchbrenner & Kavukcuoglu (*Pixel Recurrent Neural Networks*, ICML 2016).
Each layer is a long short-term memory that runs over the image, with the input-to-state part of all its
steps computed by one masked convolution beforehand.

To draw an image, a state is needed only by the pixel to its right (or left) and by the row below it. So
each layer keeps the states of one row, and computes each once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.errors import ConfigError
from ppgen.nn.causal_conv import (
    MaskedConv2d,
    PixelNetwork,
    RowInputs,
    Step,
    check_kernel,
    window_weight,
    with_ones,
)
from ppgen.nn.context import context_features

Layout = Literal["row", "diagonal"]


class PixelLSTM(PixelNetwork):
    """A masked convolution (mask A), then residual layers of row LSTMs or diagonal BiLSTMs.

    Args:
        channels: channels C of the image.
        layout: ``"row"``: the state runs down, each row from the one above through a convolution; it sees a
            triangle above the pixel. ``"diagonal"``: one state runs from the left and one from the right,
            both down; together they see everything before the pixel.
        num_channels: hidden size h of each LSTM; features have 2 h.
        num_layers: number of recurrent layers.
        kernel_size: width of the row LSTM's convolutions, odd.
        context_dim: features of the context, which are added to the arguments of all gates; 0 for none.
    """

    def __init__(
        self,
        channels: int,
        *,
        layout: Layout = "row",
        num_channels: int = 16,
        num_layers: int = 2,
        kernel_size: int = 3,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        if layout not in ("row", "diagonal"):
            raise ConfigError(f"layout: expected 'row' or 'diagonal', got {layout!r}")
        if num_layers < 1 or num_channels < 1:
            raise ConfigError(
                f"num_layers, num_channels: expected positive integers, got {num_layers} and {num_channels}"
            )
        check_kernel(kernel_size)
        self.num_features, self.context_dim = 2 * num_channels, context_dim
        # A column to the right of the image, whose features have seen the last pixel of their row: the state
        # that runs from the right starts there.
        self.margin = int(layout == "diagonal")
        self.first = MaskedConv2d(channels + 1, self.num_features, (7, 7), mask="A")
        self.layers = nn.ModuleList(
            _RowLayer(num_channels, kernel_size, context_dim)
            if layout == "row"
            else _DiagonalLayer(num_channels, context_dim)
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Features of all pixels, ``(N, 2h, H, W)``; see :class:`~ppgen.nn.causal_conv.PixelNetwork`."""
        if context is not None:
            context = context_features(context, self.context_dim, like=x)
        h: Tensor = self.first(functional.pad(with_ones(x), (0, self.margin)))
        for layer in self._layers:
            h = h + layer(h, context)
        return h[..., : x.shape[-1]]

    @torch.no_grad()
    def unroll(self, start: Tensor, step: Step, context: Tensor | None = None) -> Tensor:
        """Fill in images pixel by pixel from cached activations; see the base class."""
        num, _, height, width = start.shape
        if context is not None:
            context = context_features(context, self.context_dim, like=start)
        x = torch.zeros_like(start)
        window = _WindowCache(self.first, num, width + self.margin, start)
        caches = [layer.cache(num, width + self.margin, context, start) for layer in self._layers]
        for i in range(height):
            window.begin_row()
            for cache in caches:
                cache.begin_row()
            for j in range(width + self.margin):
                features = window.pixel(j)
                for cache in caches:
                    features = cache.pixel(j, features)
                if j < width:
                    x[:, :, i, j] = step(i, j, features.T)
                    window.put(j, with_ones(x[:, :, i : i + 1, j : j + 1])[:, :, 0, 0].T)
            window.end_row(functional.pad(with_ones(x[:, :, i : i + 1]), (0, self.margin)))
            for cache in caches:
                cache.end_row()
        return x

    @property
    def _layers(self) -> list[_Layer]:
        return cast("list[_Layer]", list(self.layers))


class _Layer(nn.Module, ABC):
    """A recurrent layer, ``(N, 2h, H, W)`` to the same, whose output is added to its input."""

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """All pixels at once, under a context ``(N, F)``."""

    @abstractmethod
    def cache(self, num: int, width: int, context: Tensor | None, like: Tensor) -> _LayerCache:
        """States of this layer while ``num`` images of a width are drawn."""


class _LayerCache(ABC):
    """What one layer remembers in :meth:`PixelLSTM.unroll`; all is batch last."""

    @abstractmethod
    def begin_row(self) -> None:
        """Compute what the row above says about the gates of the next row."""

    @abstractmethod
    def pixel(self, j: int, x: Tensor) -> Tensor:
        """The input ``(2h, N)`` at column j, and the layer's output added to it."""

    @abstractmethod
    def end_row(self) -> None:
        """Take in what can be known of a row only when it is complete."""


class _WindowCache:
    """A masked convolution whose input comes row by row, and pixel by pixel within a row; batch last."""

    def __init__(self, conv: MaskedConv2d, num: int, width: int, like: Tensor) -> None:
        weight = conv.masked_weight()
        self.left, _, above, _ = conv.around
        self.num_here = conv.num_here
        self.rows = like.new_zeros(num, conv.in_channels, above, width + 2 * self.left)
        self.above = weight[:, :, :-1]
        self.here = window_weight(weight[:, :, -1, : self.num_here])
        self.inputs = RowInputs((conv.in_channels, width, num), self.left, like)
        self.bias = cast(Tensor, conv.bias)
        self.merged = like.new_zeros(0)

    def begin_row(self) -> None:
        """What the rows above give to all pixels of the next one, ``(W, outputs, N)``."""
        self.merged = functional.conv2d(self.rows, self.above, self.bias)[:, :, 0].permute(2, 1, 0)

    def put(self, j: int, value: Tensor) -> None:
        """Store the input ``(C, N)`` at column j."""
        self.inputs.put(j, value)

    def pixel(self, j: int) -> Tensor:
        """Output ``(outputs, N)`` at column j."""
        return torch.addmm(self.merged[j], self.here, self.inputs.window(j, self.num_here))

    def end_row(self, row: Tensor) -> None:
        """Take in the finished row, ``(N, C, 1, W)``."""
        self.rows = torch.cat([self.rows[:, :, 1:], functional.pad(row, (self.left, self.left))], 2)


class _RowLayer(_Layer):
    """An LSTM from row to row; gates at (i, j) see the input up to j, and the state above around j."""

    def __init__(self, hidden: int, kernel_size: int, context_dim: int) -> None:
        super().__init__()
        self.input_to_state = MaskedConv2d(2 * hidden, 4 * hidden, (1, kernel_size), mask="B")
        self.state_to_state = nn.Conv1d(hidden, 4 * hidden, kernel_size, padding=kernel_size // 2, bias=False)
        self.context = nn.Linear(context_dim, 4 * hidden, bias=False) if context_dim else None
        self.out = nn.Conv2d(hidden, 2 * hidden, 1)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Shape ``(N, 2h, H, W)`` to the same."""
        gates = _shifted(self.input_to_state(x), self.context, context)
        h = c = gates.new_zeros(len(x), x.shape[1] // 2, x.shape[3])
        rows = []
        for row in gates.unbind(2):
            h, c = _lstm(row + self.state_to_state(h), c)
            rows.append(h)
        return cast(Tensor, self.out(torch.stack(rows, 2)))

    def cache(self, num: int, width: int, context: Tensor | None, like: Tensor) -> _LayerCache:
        """States of the row above, and inputs of this one."""
        return _RowCache(self, num, width, context, like)


class _RowCache(_LayerCache):
    """States and memories of the row above, replaced column by column."""

    def __init__(self, layer: _RowLayer, num: int, width: int, context: Tensor | None, like: Tensor) -> None:
        conv = layer.input_to_state
        self.layer, self.num_here = layer, conv.num_here
        self.inputs = RowInputs((conv.in_channels, width, num), conv.around[0], like)
        self.weight = window_weight(conv.masked_weight()[:, :, 0, : conv.num_here])
        self.bias = _gate_bias(conv, layer.context, context)
        self.h, self.c = like.new_zeros(2, width, conv.in_channels // 2, num)
        self.merged = like.new_zeros(0)
        self.out = _Pointwise(layer.out)

    def begin_row(self) -> None:
        """What the state above gives to the gates of all columns, ``(W, 4h, N)``."""
        self.merged = self.layer.state_to_state(self.h.permute(2, 1, 0)).permute(2, 1, 0) + self.bias

    def pixel(self, j: int, x: Tensor) -> Tensor:
        """See the base class."""
        self.inputs.put(j, x)
        gates = torch.addmm(self.merged[j], self.weight, self.inputs.window(j, self.num_here))
        self.h[j], self.c[j] = _lstm(gates, self.c[j], 0)
        return self.out(self.h[j], x)

    def end_row(self) -> None:
        """Nothing more: the states are all there."""


class _DiagonalLayer(_Layer):
    """An LSTM from the left and one from the right, each over the diagonals of the image."""

    def __init__(self, hidden: int, context_dim: int) -> None:
        super().__init__()
        self.left, self.right = _Diagonal(hidden, context_dim), _Diagonal(hidden, context_dim)
        self.out = nn.Conv2d(hidden, 2 * hidden, 1)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Shape ``(N, 2h, H, W)`` to the same."""
        from_right = self.right(x.flip(-1), context).flip(-1)
        # One row down: what runs from the right must not see the pixel, or what is right of it.
        down = functional.pad(from_right, (0, 0, 1, -1))
        return cast(Tensor, self.out(self.left(x, context) + down))

    def cache(self, num: int, width: int, context: Tensor | None, like: Tensor) -> _LayerCache:
        """States of the row above, of both directions."""
        return _DiagonalLayerCache(self, num, width, context, like)


class _DiagonalLayerCache(_LayerCache):
    """The left state goes along with the pixels of a row, the right one back over it when it is complete."""

    def __init__(
        self, layer: _DiagonalLayer, num: int, width: int, context: Tensor | None, like: Tensor
    ) -> None:
        self.left, self.right = (
            _DiagonalCache(diagonal, num, width, context, like) for diagonal in (layer.left, layer.right)
        )
        self.row = like.new_zeros(width, layer.out.out_channels, num)
        self.out = _Pointwise(layer.out)

    def begin_row(self) -> None:
        """See the base class."""
        self.left.begin_row()

    def pixel(self, j: int, x: Tensor) -> Tensor:
        """See the base class."""
        self.row[j] = x
        return self.out(self.left.pixel(j, x) + self.right.h[j], x)

    def end_row(self) -> None:
        """The right state of the row, which the row below is given."""
        self.right.begin_row()
        for j in reversed(range(len(self.row))):
            self.right.pixel(j, self.row[j])


class _Diagonal(nn.Module):
    """An LSTM in which the state at (i, j) follows those at (i, j - 1) and (i - 1, j).

    Row i is moved i places to the right (skewed), so that both lie in the column before.
    """

    def __init__(self, hidden: int, context_dim: int) -> None:
        super().__init__()
        self.input_to_state = nn.Conv2d(2 * hidden, 4 * hidden, 1)
        self.state_to_state = nn.Conv1d(hidden, 4 * hidden, 2, bias=False)
        self.context = nn.Linear(context_dim, 4 * hidden, bias=False) if context_dim else None

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Shape ``(N, 2h, H, W)`` to ``(N, h, H, W)``."""
        gates = skew(_shifted(self.input_to_state(x), self.context, context))
        h = c = gates.new_zeros(len(x), x.shape[1] // 2, x.shape[2])
        columns = []
        for column in gates.unbind(3):
            h, c = _lstm(column + self.state_to_state(functional.pad(h, (1, 0))), c)
            columns.append(h)
        return unskew(torch.stack(columns, 3))


class _DiagonalCache:
    """One direction: the states of the row above, replaced column by column, and the memory of the last."""

    def __init__(self, layer: _Diagonal, num: int, width: int, context: Tensor | None, like: Tensor) -> None:
        from_above, from_last = layer.state_to_state.weight.unbind(2)
        self.from_above = from_above
        self.weight = torch.cat([layer.input_to_state.weight[:, :, 0, 0], from_last], 1)
        self.bias = _gate_bias(layer.input_to_state, layer.context, context)
        self.h = like.new_zeros(width, from_above.shape[1], num)
        self.last = self.c = self.merged = like.new_zeros(0)

    def begin_row(self) -> None:
        """What the state above gives to the gates of all columns, ``(W, 4h, N)``; nothing came before."""
        self.merged = self.from_above @ self.h + self.bias
        self.last = self.c = torch.zeros_like(self.h[0])

    def pixel(self, j: int, x: Tensor) -> Tensor:
        """State ``(h, N)`` at column j, next to that of the call before."""
        gates = torch.addmm(self.merged[j], self.weight, torch.cat([x, self.last]))
        self.last, self.c = _lstm(gates, self.c, 0)
        self.h[j] = self.last
        return self.last


class _Pointwise:
    """A convolution of one pixel as a matrix, batch last; its output is added to what it is given."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.weight, self.bias = conv.weight[:, :, 0, 0], cast(Tensor, conv.bias)[:, None]

    def __call__(self, hidden: Tensor, x: Tensor) -> Tensor:
        """``x + weight @ hidden + bias``."""
        return torch.addmm(x + self.bias, self.weight, hidden)


def skew(x: Tensor) -> Tensor:
    """Row i moved i places to the right: ``(..., H, W)`` to ``(..., H, W + H - 1)``, zeros around."""
    height, width = x.shape[-2:]
    # Rows of width W + H, read again as rows of one less, slip by one place each.
    padded = functional.pad(x, (0, height)).flatten(-2)[..., :-height]
    return padded.unflatten(-1, (height, width + height - 1))


def unskew(x: Tensor) -> Tensor:
    """The inverse of :func:`skew`: ``(..., H, W + H - 1)`` to ``(..., H, W)``."""
    height = x.shape[-2]
    padded = functional.pad(x.flatten(-2), (0, height))
    return padded.unflatten(-1, (height, -1))[..., : x.shape[-1] - height + 1]


def _shifted(gates: Tensor, linear: nn.Linear | None, context: Tensor | None) -> Tensor:
    if linear is None or context is None:
        return gates
    return gates + linear(context)[:, :, None, None]


def _gate_bias(conv: nn.Conv2d, linear: nn.Linear | None, context: Tensor | None) -> Tensor:
    """What all pixels add to the arguments of the gates, ``(4h, N)``, or ``(4h, 1)`` without a context."""
    bias = cast(Tensor, conv.bias)[:, None]
    return bias if linear is None or context is None else bias + linear(context).T


def _lstm(gates: Tensor, c: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """State and memory, h of them along ``dim``, from the arguments of the gates, 4h along ``dim``."""
    out, forget, write, content = gates.chunk(4, dim)
    c = forget.sigmoid() * c + write.sigmoid() * content.tanh()
    return out.sigmoid() * c.tanh(), c
