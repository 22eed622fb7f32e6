r"""PixelRNN: images pixel by pixel, with recurrent layers (van den Oord, Kalchbrenner & Kavukcuoglu 2016).

.. math:: p(x) = \prod_{i,j} \prod_c p(x_{ijc} \mid x_{\text{before } (i, j)},\, x_{ij1}, \dots, x_{ij,c-1})

in raster order, all conditionals from one network.

.. code-block:: text

    +-- data, n = 1..N ---------------------------------------------+
    |  x_n ~ prod over pixels of p(pixel | pixels before, context)  |
    +---------------------------------------------------------------+

Guide: empty, nothing is latent. The density is exact. The network is
:class:`~ppgen.nn.pixel_lstm.PixelLSTM`: a masked convolution, then LSTMs that run down the rows, or from both
sides along the diagonals. The diagonal form sees every pixel before (i, j) from its first layer on; the row
form sees a triangle above.

Cost: a density runs through H (row) or H + W - 1 (diagonal) steps a layer, one after the other, so that it
is slow on large images. A draw keeps the states of one row a layer and computes each state once: the
arithmetic of one density, in H W (row) or 2 H W (diagonal) small steps a layer.

References:
    van den Oord, Kalchbrenner & Kavukcuoglu, *Pixel Recurrent Neural Networks*, ICML 2016.
"""

from __future__ import annotations

import torch

from ppgen.contract import Kind
from ppgen.datasets.values import Values
from ppgen.models.autoregressive import check_context_dim
from ppgen.models.family import Family
from ppgen.models.pixels import PixelHeadName, PixelModel, check_image
from ppgen.nn.pixel_lstm import Layout, PixelLSTM


class PixelRNN(PixelModel):
    """A row LSTM or a diagonal BiLSTM over images on a grid of levels.

    Args:
        event_shape: shape ``(C, H, W)`` of an image.
        layout: ``"row"`` or ``"diagonal"``.
        head: ``categorical``: one probability a level, for few levels; or ``logistic_mixture``: a mixture of
            discretised logistics, for many.
        levels: number of levels of the grid; 2 for binary images.
        num_components: components of the mixture.
        num_layers: recurrent layers.
        num_channels: hidden size of each LSTM.
        kernel_size: width of the row LSTM's convolutions, odd; the diagonal layout has none.
        context_dim: number of classes or features that the model is conditioned on; 0 for none.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        layout: Layout = "row",
        head: PixelHeadName = "categorical",
        levels: int = 2,
        num_components: int = 5,
        num_layers: int = 2,
        num_channels: int = 16,
        kernel_size: int = 3,
        context_dim: int = 0,
    ) -> None:
        network = PixelLSTM(
            check_image(event_shape),
            layout=layout,
            num_channels=num_channels,
            num_layers=num_layers,
            kernel_size=kernel_size,
            context_dim=check_context_dim(context_dim),
        )
        super().__init__(
            event_shape,
            network=network,
            head=head,
            levels=levels,
            num_components=num_components,
            context_dim=context_dim,
        )


def _build(event_shape: torch.Size, values: Values, num_data: int) -> PixelRNN:
    few = values.levels is not None and values.levels <= 32
    return PixelRNN(
        event_shape,
        layout="diagonal",
        head="categorical" if few else "logistic_mixture",
        levels=values.levels or 2,
    )


FAMILY = Family(
    name="pixel-rnn",
    group="autoregressive",
    title="PixelRNN",
    density=Kind.EXACT,
    view="as_is",
    build=_build,
    example=lambda: PixelRNN((1, 2, 3), layout="diagonal", num_layers=1, num_channels=3, levels=3),
    conditional_example=lambda: PixelRNN(
        (1, 2, 2), layout="row", num_layers=1, num_channels=8, levels=8, context_dim=3
    ),
    fit_options={
        "max_seconds": 60.0,
        "learning_rate": 4e-3,
        "schedule": "cosine",
        "batch_size": 64,
        "patience": 60,
    },
    reading="An exact density from a memory that runs over the image; draws go pixel by pixel.",
    surveyed=False,
)
