"""What autoregressive models of images share: raster order, a causal network, a head a pixel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ppgen.datasets.values import grid
from ppgen.distributions.heads import make_head
from ppgen.distributions.pixel_heads import ChannelwisePixelHead, JointPixelHead, PixelHead
from ppgen.errors import ConfigError, ShapeError
from ppgen.models.autoregressive import Autoregressive
from ppgen.nn.causal_conv import PixelNetwork

PixelHeadName = Literal["categorical", "logistic_mixture"]


class PixelModel(Autoregressive):
    r"""An image :math:`p(x) = \prod_{ij} p(x_{ij} \mid h_{ij})`, with features h of the pixels before (i, j).

    Abstract: a family builds the causal network.

    Args:
        event_shape: shape ``(C, H, W)`` of an image.
        network: gives the features of each pixel.
        head: ``categorical``: one probability a level, each channel given those before; or
            ``logistic_mixture``: a mixture of discretised logistics over the channels of a pixel.
        levels: number of levels of the grid; 2 for binary images.
        num_components: components of the mixture.
        context_dim: number of classes or features that the model is conditioned on; 0 for none.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        network: PixelNetwork,
        head: PixelHeadName,
        levels: int,
        num_components: int,
        context_dim: int,
    ) -> None:
        if head not in ("categorical", "logistic_mixture"):
            raise ConfigError(f"head: expected 'categorical' or 'logistic_mixture', got {head!r}")
        channels = event_shape[0]
        made = make_head(head, levels, num_components, channels=channels)
        super().__init__(event_shape, support=grid(levels), context_dim=context_dim)
        self.network = network
        self.head: PixelHead = (
            ChannelwisePixelHead(network.num_features, made, channels)
            if head == "categorical"
            else JointPixelHead(network.num_features, made)
        )

    def event_log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Log p(x_n), shape ``(N,)``, in nats, of images ``(N, C, H, W)``."""
        features = self.network(x, context).permute(0, 2, 3, 1)
        return self.head.log_prob(features, x.permute(0, 2, 3, 1)).sum((1, 2))

    def complete(self, x: Tensor, known: Tensor, context: Tensor | None) -> Tensor:
        """Draws that keep x where ``known`` is True, pixel by pixel; shape ``(N, C, H, W)``."""
        num, _, height, width = x.shape
        noise = self.head.noise((num, height, width), x)

        def step(i: int, j: int, features: Tensor) -> Tensor:
            return torch.where(known[:, :, i, j], x[:, :, i, j], self.head.draw(features, noise[:, i, j]))

        return self.network.unroll(x, step, context)

    def orders(self) -> Tensor:
        """Raster order with the channels of a pixel in turn, shape ``(1, D)``: flat positions."""
        return torch.arange(self.event_shape.numel()).view(self.event_shape).permute(1, 2, 0).reshape(1, -1)

    def _follows(self, mask: Tensor) -> Tensor:
        return super()._follows(mask) & (mask == mask[:, :1]).flatten(1).all(-1)

    def _no_beginning(self, known: Tensor) -> str:
        if bool((known != known[:1]).any()):
            return (
                f"{type(self).__name__} draws the channels of a pixel together; observe all channels of a "
                "pixel or none"
            )
        return super()._no_beginning(known)


def check_image(event_shape: tuple[int, ...] | torch.Size) -> int:
    """The number of channels; :class:`~ppgen.errors.ShapeError` unless the shape is that of an image."""
    if len(event_shape) != 3:
        raise ShapeError(
            f"event_shape: expected an image (C, H, W), got {tuple(event_shape)}; reshape the data, or take "
            "MADE"
        )
    return event_shape[0]
