r"""Causal convolutional networks on images: features at a pixel see the pixels before it, and no others.

Pixels come in raster order: row by row, from left to right. The stack is that of the gated PixelCNN
(van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves & Kavukcuoglu 2016), whose two streams leave no blind
spot: a vertical one that sees whole rows above, and a horizontal one that sees what is to the left and
takes in the vertical one from the row above.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.errors import ConfigError
from ppgen.nn.context import context_features

Step = Callable[[int, int, Tensor], Tensor]


class PixelNetwork(nn.Module, ABC):
    """A network whose features at pixel (i, j) are functions of the pixels before (i, j) in raster order.

    Attributes:
        num_features: numbers F of features a pixel.
    """

    num_features: int

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Features of all pixels at once.

        Args:
            x: images in [0, 1], shape ``(N, C, H, W)``.
            context: labels ``(N,)`` or features, see :func:`~ppgen.nn.context.context_features`.

        Returns:
            Shape ``(N, F, H, W)``.
        """

    @torch.no_grad()
    def unroll(self, start: Tensor, step: Step, context: Tensor | None = None) -> Tensor:
        """Fill in images pixel by pixel, each from its features.

        As it stands here, the network is run anew for each pixel: what one that keeps activations is held to.

        Args:
            start: of the shape ``(N, C, H, W)``, dtype and device of the result; its values are not used.
            step: takes i, j and the features ``(N, F)`` of that pixel; gives its values ``(N, C)``.
            context: as in :meth:`forward`.
        """
        x = torch.zeros_like(start)
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                x[:, :, i, j] = step(i, j, self(x, context)[:, :, i, j])
        return x


class MaskedConv2d(nn.Conv2d):
    """A convolution that keeps the size and sees, in raster order, what comes before its centre.

    Args:
        num_inputs: channels of the input.
        num_outputs: channels of the output.
        kernel_size: height and width of the window, odd; rows below the centre have no weights.
        mask: ``"A"`` leaves the centre itself out, ``"B"`` takes it in.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, kernel_size: tuple[int, int], *, mask: str, bias: bool = True
    ) -> None:
        height, width = kernel_size
        check_kernel(height)
        check_kernel(width)
        if mask not in ("A", "B"):
            raise ConfigError(f"mask: expected 'A' or 'B', got {mask!r}")
        super().__init__(num_inputs, num_outputs, (height // 2 + 1, width), bias=bias)
        allowed = torch.ones(height // 2 + 1, width)
        allowed[-1, width // 2 + (mask == "B") :] = 0
        self.register_buffer("allowed", allowed)
        self.num_here = width // 2 + (mask == "B")  # pixels of its own row that the centre sees
        # left, right, above, below
        self.around = (width // 2, width // 2, height // 2, 0)

    def masked_weight(self) -> Tensor:
        """The weight in use."""
        return self.weight * cast(Tensor, self.allowed)

    def forward(self, input: Tensor) -> Tensor:
        """Shape ``(N, num_inputs, H, W)`` to ``(N, num_outputs, H, W)``."""
        return functional.conv2d(functional.pad(input, self.around), self.masked_weight(), self.bias)


class RowInputs:
    """Inputs of one row, pixel after pixel and batch last: the window of a pixel is one contiguous block.

    Args:
        shape: inputs a pixel C, width W, and number of images N.
        left: pixels of zeros before the first one.
        like: gives dtype and device.
    """

    def __init__(self, shape: tuple[int, int, int], left: int, like: Tensor) -> None:
        self.size, width, num = shape
        self.left = left
        self.values = like.new_zeros((left + width) * self.size, num)

    def put(self, j: int, value: Tensor) -> None:
        """Store the input ``(C, N)`` at column j."""
        self.values[(self.left + j) * self.size : (self.left + j + 1) * self.size] = value

    def window(self, j: int, num: int) -> Tensor:
        """``num`` pixels from ``left`` before column j on, ``(num C, N)``."""
        return self.values[j * self.size : (j + num) * self.size]


def window_weight(weight: Tensor) -> Tensor:
    """A kernel ``(outputs, C, num)`` as the matrix ``(outputs, num C)`` that maps a window."""
    return weight.transpose(1, 2).flatten(1)


class GatedPixelStack(PixelNetwork):
    r"""Gated causal convolutions in a vertical and a horizontal stream, with cached sampling.

    With :math:`V^l_i` row i of the vertical stream in layer l and :math:`r` the kernel's reach,

    .. math::

        A^l_i = \mathrm{conv}(V^{l-1}_{i-r}, \dots, V^{l-1}_i), \qquad V^l_i = \mathrm{gate}(A^l_i), \qquad
        H^l_{ij} = H^{l-1}_{ij} + U^l\, \mathrm{gate}\big(
        \mathrm{conv}(H^{l-1}_{i,j-r}, \dots, H^{l-1}_{ij}) + W^l A^l_{i-1,j} \big) ,

    where :math:`\mathrm{gate}(a, b) = \tanh(a)\, \sigma(b)`; a context adds to the arguments of both gates.
    In the first layer both streams see the image, the horizontal one without pixel (i, j) itself and without
    the residual connection.

    With R the sum of the layers' reaches (:attr:`reach`), the features at (i, j) see R columns to the left in
    row i, and in the R + 1 rows above it the columns j - R to j + R.

    :meth:`unroll` computes each row of the vertical stream, and each pixel of the horizontal one, once: the
    arithmetic of one :meth:`forward` in all.

    Args:
        channels: channels C of the image.
        num_channels: width F of both streams.
        num_layers: number of layers.
        kernel_size: odd; rows above and columns on each side that a layer sees are half of it.
        first_kernel_size: that of the first layer, for which a wide one is cheap.
        context_dim: features of the context; 0 for none.
        context_channels: channels of a context that is an image of the same size, 0 for none. Two
            convolutions of it say, pixel by pixel, what is added to the gates.
        dropout: share of the gated horizontal activations left out at random in training mode.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_channels: int = 32,
        num_layers: int = 6,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        context_dim: int = 0,
        context_channels: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_layers < 1 or num_channels < 1:
            raise ConfigError(
                f"num_layers, num_channels: expected positive integers, got {num_layers} and {num_channels}"
            )
        for name, size in (("kernel_size", kernel_size), ("first_kernel_size", first_kernel_size)):
            check_kernel(size, name)
            if size < 3:
                raise ConfigError(f"{name}: expected 3 or more, got {size}")
        self.num_features, self.context_dim = num_channels, context_dim
        self.encoder = (
            nn.Sequential(
                nn.Conv2d(context_channels + 1, num_channels, first_kernel_size, padding="same"),
                nn.SiLU(),
                nn.Conv2d(num_channels, num_channels, kernel_size, padding="same"),
            )
            if context_channels
            else None
        )
        widths = [channels + 1] + [num_channels] * num_layers
        self.layers = nn.ModuleList(
            _GatedLayer(
                width,
                num_channels,
                (kernel_size if level else first_kernel_size) // 2,
                num_channels if context_channels else context_dim,
                dropout,
                first=level == 0,
            )
            for level, width in enumerate(widths[:-1])
        )

    @property
    def reach(self) -> int:
        """How many columns to each side, and rows above less one, the features of a pixel see."""
        return sum(layer.reach for layer in self._layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Features of all pixels, ``(N, F, H, W)``; see :class:`PixelNetwork`."""
        vertical = horizontal = with_ones(x)
        told = self._told(context, x)
        for level, layer in enumerate(self._layers):
            # The last layer's vertical output is seen by nobody.
            last = level == len(self.layers) - 1
            vertical, horizontal = layer(vertical, horizontal, told, last)
        return horizontal

    @torch.no_grad()
    def unroll(self, start: Tensor, step: Step, context: Tensor | None = None) -> Tensor:
        """Fill in images pixel by pixel from cached activations; see :class:`PixelNetwork`."""
        height, width = start.shape[2:]
        x = torch.zeros_like(start)
        told = self._told(context, start)
        caches = [_LayerCache(layer, start, told) for layer in self._layers]
        for i in range(height):
            for cache in caches:
                cache.begin_row(i)
            for j in range(width):
                features = None
                for cache in caches:
                    features = cache.pixel(j, features)
                x[:, :, i, j] = step(i, j, cast(Tensor, features).T)
                caches[0].inputs.put(j, with_ones(x[:, :, i : i + 1, j : j + 1])[:, :, 0, 0].T)
            row = with_ones(x[:, :, i : i + 1])
            for cache in caches:
                row = cache.end_row(i, row)
        return x

    def _told(self, context: Tensor | None, x: Tensor) -> Tensor | None:
        """What the layers are told of the context of images x: ``(N, H, W, F)``, or ``(N, 1, 1, F)``."""
        if context is None:
            return None
        if self.encoder is None:
            return context_features(context, self.context_dim, like=x)[:, None, None]
        image = context.to(x).reshape(len(x), -1, *x.shape[2:])
        told: Tensor = self.encoder(with_ones(image))
        return told.permute(0, 2, 3, 1)

    @property
    def _layers(self) -> list[_GatedLayer]:
        return cast("list[_GatedLayer]", list(self.layers))


class _GatedLayer(nn.Module):
    """One layer of both streams; ``first`` is the one that sees the image."""

    def __init__(
        self, num_inputs: int, num_channels: int, reach: int, context_dim: int, dropout: float, *, first: bool
    ) -> None:
        super().__init__()
        self.reach, self.first, self.dropout = reach, first, dropout
        twice = 2 * num_channels
        self.vertical = nn.Conv2d(num_inputs, twice, (reach + 1, 2 * reach + 1))
        self.across = nn.Conv2d(twice, twice, 1)
        self.horizontal = nn.Conv2d(num_inputs, twice, (1, reach + (not first)), bias=False)
        self.out = nn.Conv2d(num_channels, num_channels, 1)
        self.context = nn.Linear(context_dim, 2 * twice, bias=False) if context_dim else None

    def forward(
        self, vertical: Tensor, horizontal: Tensor, told: Tensor | None, last: bool
    ) -> tuple[Tensor, Tensor]:
        r = self.reach
        above = self.vertical(functional.pad(vertical, (r, r, r, 0)))
        window = functional.pad(horizontal, (r, -1 if self.first else 0))
        merged = self.horizontal(window) + self.across(functional.pad(above, (0, 0, 1, -1)))
        shift_v, shift_h = self.shifts(told)
        if shift_h is not None:
            merged = merged + shift_h
        hidden = _gate(merged, 1)
        if self.training and self.dropout:
            hidden = functional.dropout(hidden, self.dropout)
        out = self.out(hidden)
        if not self.first:
            out = out + horizontal
        if last:
            return above, out
        if shift_v is not None:
            above = above + shift_v
        return _gate(above, 1), out

    def shifts(self, told: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What a context ``(N, ., ., F)`` adds to the arguments of both gates, ``(N, 2F, ., .)`` each."""
        if self.context is None or told is None:
            return None, None
        vertical, horizontal = self.context(told).permute(0, 3, 1, 2).chunk(2, 1)
        return vertical, horizontal


class _LayerCache:
    """What one layer remembers while images like ``start`` are drawn, in :meth:`GatedPixelStack.unroll`."""

    def __init__(self, layer: _GatedLayer, start: Tensor, told: Tensor | None) -> None:
        self.layer, self.reach = layer, layer.reach
        num_inputs = layer.horizontal.in_channels
        num, _, height, width = start.shape
        self.rows = start.new_zeros(num, num_inputs, layer.reach + 1, width + 2 * layer.reach)
        self.inputs = RowInputs((num_inputs, width, num), layer.reach, start)
        self.shift_v, self.shift_h = (
            None if shift is None else shift.expand(-1, -1, height, -1) for shift in layer.shifts(told)
        )
        self.above = start.new_zeros(num, layer.across.in_channels, 1, width)
        self.weight = window_weight(layer.horizontal.weight[:, :, 0])
        self.out, self.bias = layer.out.weight[:, :, 0, 0], layer.out.bias
        self.merged = start.new_zeros(0)

    def begin_row(self, i: int) -> None:
        """The vertical stream's part of all pixels of row i, ``(W, 2F, N)``."""
        merged = self.layer.across(self.above)
        if self.shift_h is not None:
            merged = merged + self.shift_h[:, :, i : i + 1]
        self.merged = merged[:, :, 0].permute(2, 1, 0).contiguous()

    def pixel(self, j: int, features: Tensor | None) -> Tensor:
        """Output ``(F, N)`` at column j; ``features`` are those of the layer below, ``None`` in the first."""
        if features is not None:
            self.inputs.put(j, features)
        window = self.inputs.window(j, self.layer.horizontal.kernel_size[1])
        hidden = _gate(torch.addmm(self.merged[j], self.weight, window), 0)
        bias = cast(Tensor, self.bias)[:, None]
        return torch.addmm(bias if features is None else features + bias, self.out, hidden)

    def end_row(self, i: int, row: Tensor) -> Tensor:
        """Take in the finished row i of the vertical stream below, ``(N, C, 1, W)``; give this layer's."""
        r = self.reach
        self.rows = torch.cat([self.rows[:, :, 1:], functional.pad(row, (r, r))], 2)
        self.above = self.layer.vertical(self.rows)
        shifted = self.above if self.shift_v is None else self.above + self.shift_v[:, :, i : i + 1]
        return _gate(shifted, 1)


def with_ones(x: Tensor) -> Tensor:
    """Images in [0, 1] on the scale of [-1, 1], with a channel of ones that tells them from the padding."""
    return torch.cat([2 * x - 1, torch.ones_like(x[:, :1])], 1)


def check_kernel(size: int, name: str = "kernel_size") -> None:
    """Raise :class:`~ppgen.errors.ConfigError` unless a kernel has a centre."""
    if size < 1 or size % 2 == 0:
        raise ConfigError(f"{name}: expected a positive odd number, got {size}")


def _gate(x: Tensor, dim: int) -> Tensor:
    a, b = x.chunk(2, dim)
    return a.tanh() * b.sigmoid()
