r"""Recurrent causal networks on images: row LSTM and diagonal BiLSTM.

Both are those of van den Oord, Kalchbrenner & Kavukcuoglu (*Pixel Recurrent Neural Networks*, ICML 2016).
Each layer is a long short-term memory that runs over the image, with the input-to-state part of all its
steps computed by one masked convolution beforehand.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.errors import ConfigError
from ppgen.nn.causal_conv import MaskedConv2d, PixelNetwork, check_kernel, with_ones
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
        for layer in self.layers:
            h = h + layer(h, context)
        return h[..., : x.shape[-1]]


class _RowLayer(nn.Module):
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


class _DiagonalLayer(nn.Module):
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


def _lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """State and memory, ``(N, h, S)`` each, from the arguments of the gates ``(N, 4h, S)``."""
    out, forget, write, content = gates.chunk(4, 1)
    c = forget.sigmoid() * c + write.sigmoid() * content.tanh()
    return out.sigmoid() * c.tanh(), c
