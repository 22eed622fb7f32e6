r"""From the features of a pixel to the distribution of its channels.

The channels of a pixel follow one another too, red before green before blue:

.. math:: p(x_{ij} \mid h_{ij}) = \prod_c p(x_{ijc} \mid h_{ij}, x_{ij1}, \dots, x_{ij,c-1}) .
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from ppgen.distributions.heads import Head


class PixelHead(nn.Module, ABC):
    """The distribution of a pixel's C channels given its F features."""

    @abstractmethod
    def log_prob(self, features: Tensor, pixel: Tensor) -> Tensor:
        """Log mass, ``(...)``, of pixels ``(..., C)`` given features ``(..., F)``; nats."""

    @abstractmethod
    def draw(self, features: Tensor, noise: Tensor) -> Tensor:
        """The pixels, ``(..., C)``, that noise stands for given features ``(..., F)``."""

    @abstractmethod
    def noise(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Noise for pixels of a shape; its first dimensions are that shape."""


class JointPixelHead(PixelHead):
    """One head for all channels together, its parameters linear in the features.

    Args:
        num_features: features F of a pixel.
        head: the distribution of the channels.
    """

    def __init__(self, num_features: int, head: Head) -> None:
        super().__init__()
        self.head = head
        self.linear = nn.Linear(num_features, head.num_params)
        _start_at(self.linear, head)

    def log_prob(self, features: Tensor, pixel: Tensor) -> Tensor:
        """Log mass of pixels; see :class:`PixelHead`."""
        return self.head.log_prob(self.linear(features), pixel)

    def draw(self, features: Tensor, noise: Tensor) -> Tensor:
        """Pixels from noise ``(..., U)``; see :class:`PixelHead`."""
        return self.head.draw(self.linear(features), noise)

    def noise(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Noise ``(*shape, U)``."""
        return self.head.noise(shape, like)


class ChannelwisePixelHead(PixelHead):
    """A head a channel, its parameters from a perceptron of the features and the channels before.

    The first channel's parameters are linear in the features.

    Args:
        num_features: features F of a pixel.
        head: the distribution of one channel.
        channels: number C of channels.
    """

    def __init__(self, num_features: int, head: Head, channels: int) -> None:
        super().__init__()
        self.head = head
        first = nn.Linear(num_features, head.num_params)
        later = [
            nn.Sequential(
                nn.Linear(num_features + c, num_features), nn.SiLU(), nn.Linear(num_features, head.num_params)
            )
            for c in range(1, channels)
        ]
        self.channels = nn.ModuleList([first, *later])
        for network in (first, *(n[-1] for n in later)):
            _start_at(cast(nn.Linear, network), head)

    def log_prob(self, features: Tensor, pixel: Tensor) -> Tensor:
        """Log mass of pixels; see :class:`PixelHead`."""
        total = features.new_zeros(())
        for c, network in enumerate(self.channels):
            params = network(_with_values(features, pixel[..., :c]))
            total = total + self.head.log_prob(params, pixel[..., c : c + 1])
        return total

    def draw(self, features: Tensor, noise: Tensor) -> Tensor:
        """Pixels from noise ``(..., C, U)``; see :class:`PixelHead`."""
        pixel = features[..., :0]
        for c, network in enumerate(self.channels):
            value = self.head.draw(network(_with_values(features, pixel)), noise[..., c, :])
            pixel = torch.cat([pixel, value], -1)
        return pixel

    def noise(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Noise ``(*shape, C, U)``."""
        return self.head.noise((*shape, len(self.channels)), like)


def _with_values(features: Tensor, values: Tensor) -> Tensor:
    return torch.cat([features, 2 * values - 1], -1) if values.shape[-1] else features


@torch.no_grad()
def _start_at(linear: nn.Linear, head: Head) -> None:
    """Start near the head's own broad distribution, whatever the features."""
    linear.weight.mul_(0.1)
    linear.bias.copy_(head.start())
