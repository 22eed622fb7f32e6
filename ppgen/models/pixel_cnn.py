r"""PixelCNN: images pixel by pixel, with gated causal convolutions (van den Oord et al. 2016).

.. math:: p(x) = \prod_{i,j} \prod_c p(x_{ijc} \mid x_{\text{before } (i, j)},\, x_{ij1}, \dots, x_{ij,c-1})

in raster order, all conditionals from one network.

.. code-block:: text

    +-- data, n = 1..N ---------------------------------------------+
    |  x_n ~ prod over pixels of p(pixel | pixels before, context)  |
    +---------------------------------------------------------------+

Guide: empty, nothing is latent. The density is exact and takes one parallel pass. The network
(:class:`~ppgen.nn.causal_conv.GatedPixelStack`) has a vertical and a horizontal stream, so that no pixel
before (i, j) is in a blind spot, if it is deep enough: each layer reaches (kernel_size - 1) / 2 rows and
columns further, and :attr:`PixelCNN.reach` is the sum. Of a larger image a pixel sees a window.

A pixel's channels have a categorical distribution each, of few levels, given the channels before; or a
mixture of discretised logistics together, for many levels, as in PixelCNN++.

Cost: a density is O(N H W L F^2 k^2) for L layers of F channels. A draw goes through the pixels in turn and
computes each activation once: the arithmetic of one density, in H W L small steps.

References:
    van den Oord, Kalchbrenner & Kavukcuoglu, *Pixel Recurrent Neural Networks*, ICML 2016.
    van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves & Kavukcuoglu, *Conditional Image Generation with
    PixelCNN Decoders*, NeurIPS 2016 (gates, two streams, contexts with and without a place).
    Salimans, Karpathy, Chen & Kingma, *PixelCNN++*, ICLR 2017 (mixtures of discretised logistics).
    Ramachandran et al., *Fast Generation for Convolutional Autoregressive Models*, 2017 (cached sampling).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from ppgen.contract import Kind
from ppgen.datasets.values import Values
from ppgen.errors import ConfigError, ShapeError
from ppgen.models.autoregressive import check_context_dim
from ppgen.models.family import Family
from ppgen.models.pixels import PixelHeadName, PixelModel, check_image
from ppgen.nn.causal_conv import GatedPixelStack


class PixelCNN(PixelModel):
    """A gated PixelCNN over images on a grid of levels.

    Args:
        event_shape: shape ``(C, H, W)`` of an image.
        head: ``categorical``: one probability a level, for few levels; or ``logistic_mixture``: a mixture of
            discretised logistics, for many.
        levels: number of levels of the grid; 2 for binary images.
        num_components: components of the mixture.
        num_layers: layers of the network.
        num_channels: width of both of its streams.
        kernel_size: of its convolutions, odd, 3 or more.
        first_kernel_size: of the first of them, for which a wide window is cheap.
        context_dim: number of classes or features that the model is conditioned on; 0 for none.
        context_channels: channels of a context that is an image of the same height and width, shape
            ``(N, context_channels, H, W)``, such as a blurred version of x; 0 for none, and not beside
            ``context_dim``. Each pixel is told what is around it in the context, on all sides.
        dropout: share of activations left out at random in training mode.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        head: PixelHeadName = "categorical",
        levels: int = 2,
        num_components: int = 5,
        num_layers: int = 5,
        num_channels: int = 32,
        kernel_size: int = 5,
        first_kernel_size: int = 7,
        context_dim: int = 0,
        context_channels: int = 0,
        dropout: float = 0.0,
    ) -> None:
        if context_channels < 0 or (context_channels and context_dim):
            raise ConfigError(
                f"context_channels: expected a number of channels, 0 for none, and no context_dim beside it, "
                f"got {context_channels} and context_dim={context_dim}; give classes channels of their own"
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout: expected a share in [0, 1), got {dropout}")
        network = GatedPixelStack(
            check_image(event_shape),
            num_channels=num_channels,
            num_layers=num_layers,
            kernel_size=kernel_size,
            first_kernel_size=first_kernel_size,
            context_dim=check_context_dim(context_dim),
            context_channels=context_channels,
            dropout=dropout,
        )
        super().__init__(
            event_shape,
            network=network,
            head=head,
            levels=levels,
            num_components=num_components,
            # Images travel as rows; the network gives them their shape again.
            context_dim=context_dim or context_channels * math.prod(event_shape[1:]),
        )
        self.context_channels = context_channels

    @property
    def reach(self) -> int:
        """How far a pixel sees: to this many columns on each side, and one row more above."""
        return cast(GatedPixelStack, self.network).reach

    def _features(self, context: Tensor) -> Tensor:
        """A context as rows of features; those of an image in the order in which it is stored."""
        if not self.context_channels or (context.ndim == 2 and context.shape[1] == self.context_dim):
            return super()._features(context)
        expected = (self.context_channels, *self.event_shape[1:])
        if context.shape[-3:] != expected:
            raise ShapeError(
                f"context: expected images of shape (N, {', '.join(map(str, expected))}), got "
                f"{tuple(context.shape)}"
            )
        return context.to(self._like).flatten(-3)


def _build(event_shape: torch.Size, values: Values, num_data: int) -> PixelCNN:
    few = values.levels is not None and values.levels <= 32
    return PixelCNN(
        event_shape,
        head="categorical" if few else "logistic_mixture",
        levels=values.levels or 2,
        num_layers=3,
        num_channels=16,
        dropout=0.1,
    )


FAMILY = Family(
    name="pixel-cnn",
    group="autoregressive",
    title="Gated PixelCNN",
    density=Kind.EXACT,
    view="as_is",
    build=_build,
    example=lambda: PixelCNN((1, 2, 3), num_layers=2, num_channels=4, levels=3),
    conditional_example=lambda: PixelCNN(
        (2, 2, 2),
        head="logistic_mixture",
        levels=2,
        num_components=2,
        num_layers=1,
        num_channels=4,
        context_dim=3,
    ),
    fit_options={
        "max_seconds": 15.0,
        "learning_rate": 1e-2,
        "schedule": "cosine",
        "batch_size": 64,
        "patience": 60,
    },
    reading="An exact density that knows that pixels have neighbours; draws go pixel by pixel.",
)
