"""Convolutional encoders and decoders for small images of any size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ppgen.errors import ShapeError


class ConvEncoder(nn.Module):
    """An image ``(..., C, H, W)`` to features ``(..., num_outputs)``.

    Strided 3x3 convolutions halve the image until its smaller side is below 4, doubling
    the channels each time; a linear layer reads the rest. Any leading dimensions are kept.
    """

    def __init__(
        self,
        event_shape: torch.Size,
        num_outputs: int,
        *,
        channels: int = 32,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        sizes = _halvings(event_shape)
        layers: list[nn.Module] = [nn.Conv2d(event_shape[0], channels, 3, padding=1), activation()]
        for level in range(len(sizes) - 1):
            width = channels * 2**level
            layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), activation()]
        self.convolutions = nn.Sequential(*layers)
        height, width = sizes[-1]
        self.head = nn.Linear(channels * 2 ** (len(sizes) - 1) * height * width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Features of each image."""
        lead = x.shape[:-3]
        h: Tensor = self.convolutions(x.reshape(-1, *x.shape[-3:]))
        out: Tensor = self.head(h.flatten(1))
        return out.reshape(*lead, -1)


class ConvDecoder(nn.Module):
    """Features ``(..., num_inputs)`` to images ``(..., num_channels, H, W)``; mirrors the encoder.

    Nearest-neighbour upsampling and a 3x3 convolution in place of transposed convolutions,
    which leave a chequerboard (Odena, Dumoulin & Olah 2016).
    """

    def __init__(
        self,
        num_inputs: int,
        event_shape: torch.Size,
        *,
        num_channels: int | None = None,
        channels: int = 32,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        sizes = _halvings(event_shape)
        top = channels * 2 ** (len(sizes) - 1)
        self.start_shape = (top, *sizes[-1])
        self.stem = nn.Sequential(nn.Linear(num_inputs, top * sizes[-1][0] * sizes[-1][1]), activation())
        layers: list[nn.Module] = []
        for level in range(len(sizes) - 2, -1, -1):
            width = channels * 2**level
            layers += [
                nn.Upsample(size=sizes[level]),
                nn.Conv2d(2 * width, width, 3, padding=1),
                activation(),
            ]
        layers.append(nn.Conv2d(channels, num_channels or event_shape[0], 3, padding=1))
        self.convolutions = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """An image for each row of features."""
        lead = z.shape[:-1]
        h = self.stem(z).reshape(-1, *self.start_shape)
        out: Tensor = self.convolutions(h)
        return out.reshape(*lead, *out.shape[1:])


def _halvings(event_shape: torch.Size) -> list[tuple[int, int]]:
    """Sizes (H, W) from the image down to below 4 on the smaller side."""
    if len(event_shape) != 3:
        raise ShapeError(f"event_shape: convolutions expect (C, H, W), got {tuple(event_shape)}; use an MLP")
    sizes = [(event_shape[1], event_shape[2])]
    while min(sizes[-1]) >= 4:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes
