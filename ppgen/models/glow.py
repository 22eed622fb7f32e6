r"""Glow: a multi-scale flow on images with invertible 1x1 convolutions (Kingma & Dhariwal 2018).

Joint density, with :math:`z = T^{-1}(x)`, and T made of levels. A level, seen from the data, squeezes 2 x 2
pixels into 4 channels, goes through K steps, and sends half of its channels to the noise::

    step:   actnorm -> 1x1 convolution -> coupling of the channels (a keeps, b = mu(a) + e^s(a) z_b)
    split:  the leaving half is mu(stays) + e^s(stays) z: a learnt Gaussian a level

    p(x) = N(z; 0, I) * |det dz/dx|

    +- data N -----------+
    |  noise z  --T-->  x |      z is no site: x is a deterministic image of it
    +--------------------+

Guide: empty, nothing is latent. The density is exact, and so is the inverse.

Cost: a density and a draw are each one pass of L K small convolutional networks.

What departs from the paper: each coupling's network is told the place by a learnt bias a pixel; its scales
are bounded; the last noise has a learnt mean and scale at each place. The 1x1 convolution is kept as its LU
factors, so that its log-determinant is a sum over channels.

References:
    Kingma & Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*, NeurIPS 2018.
    Dinh, Sohl-Dickstein & Bengio, *Density estimation using Real NVP*, ICLR 2017 (squeeze, multi-scale).
    Chen & Gopinath, *Gaussianization*, NeurIPS 2000 (the first layer for data on [0, 1]).
"""

from __future__ import annotations

import functools
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from ppgen.contract import Kind, check_count
from ppgen.distributions.elementwise import Affine
from ppgen.distributions.image_flow_layers import MultiScale, Shift
from ppgen.errors import ConfigError, ShapeError
from ppgen.models.family import Family
from ppgen.models.flow import Flow
from ppgen.ops.random import forked_rng

CouplingName = Literal["affine", "additive"]


class Glow(Flow):
    """A multi-scale flow on images.

    Args:
        event_shape: ``(C, H, W)``, with even sides.
        num_levels: how often the image is halved, number L; by default as often as both sides allow while
            they stay at 2 or more, 3 times at most.
        num_steps: number K of steps a level.
        hidden_channels: channels inside each coupling's network.
        coupling: ``"affine"``, or ``"additive"``, which keeps volumes: scales are then learnt by actnorm,
            the 1x1 convolutions and the splits alone.
        context_dim: number of classes or features that the flow is conditioned on; 0 for none.
        num_bins: for data on [0, 1], such as dequantised levels: bins of the histograms by which the
            first layer makes each margin Gaussian, best as many as levels. ``None`` standardises.
        dropout: share of hidden values left out at random from densities in training mode.

    Raises:
        ShapeError: no image, or one with an odd side.
        ConfigError: more levels than the image can be halved; a number out of its range.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        num_levels: int | None = None,
        num_steps: int = 8,
        hidden_channels: int = 64,
        coupling: CouplingName = "affine",
        context_dim: int = 0,
        num_bins: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(event_shape, num_bins=num_bins, context_dim=context_dim)
        most = _num_halvings(self.event_shape)
        if num_levels is None:
            num_levels = _default_levels(self.event_shape, most)
        if not 1 <= num_levels <= most:
            raise ConfigError(
                f"num_levels: images of {self.event_shape[1]} x {self.event_shape[2]} can be halved 1 to "
                f"{most} times, got {num_levels}; pad them to a multiple of {2**num_levels}, or take fewer"
            )
        check_count(num_steps, "num_steps")
        check_count(hidden_channels, "hidden_channels")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout: expected a share in [0, 1), got {dropout}")
        if coupling not in get_args(CouplingName):
            raise ConfigError(
                f"coupling: expected one of {', '.join(get_args(CouplingName))}, got {coupling!r}"
            )
        self.transforms.append(
            MultiScale(
                self.event_shape,
                num_levels=num_levels,
                num_steps=num_steps,
                hidden_channels=hidden_channels,
                elementwise=Affine() if coupling == "affine" else Shift(),
                context_dim=context_dim,
                dropout=dropout,
            )
        )

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Fit the first layer to the margins of training data, then every actnorm to what reaches it.

        Args:
            x: training data ``(N, *event_shape)``; actnorms look at the first 1024.
            context: one row a datum, where the model is conditional.

        Raises:
            DataError: data outside [0, 1] for a flow built with ``num_bins``.
        """
        x, context = self.check_data(x), self.context_rows(context, len(x))
        super().initialise(x, context)
        first = self.layers[0].pull(x[:1024].flatten(1))[0]
        features = None if context is None else self.distribution(context[:1024]).context
        cast(MultiScale, self.transforms[1]).initialise(first, features)

    @torch.no_grad()
    def sample_tempered(
        self,
        num: int = 1,
        *,
        temperature: float = 0.7,
        context: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Images of noise shrunk by ``temperature``, ``(num, *event_shape)``: likelier, less varied.

        These are not draws from the model's law unless the temperature is 1: use :meth:`sample` for
        anything that is measured.

        Args:
            num: how many.
            temperature: standard deviation of the noise, 0 or more; at 0 all are the image of zero noise.
            context: one row an image, where the model is conditional.
            seed: for draws that repeat; the global generators are left as they were.
        """
        check_count(num)
        if not 0 <= temperature < float("inf"):
            raise ConfigError(f"temperature: expected a number of 0 or more, got {temperature}")
        with forked_rng(seed, self.device):
            noise = torch.randn(num, len(self.base_loc), dtype=self.base_loc.dtype, device=self.device)
        return self.decode(temperature * noise, context)


def _num_halvings(event_shape: torch.Size) -> int:
    """How often both sides of an image can be halved."""
    if len(event_shape) != 3:
        raise ShapeError(f"event_shape: Glow is for images (C, H, W), got {tuple(event_shape)}; use RealNVP")
    count, (_, height, width) = 0, event_shape
    while height % 2 == 0 and width % 2 == 0:
        count, height, width = count + 1, height // 2, width // 2
    if count == 0:
        raise ShapeError(
            f"event_shape: Glow halves its images, which needs even sides, got {tuple(event_shape)}; "
            "pad the images by a row or column, or use RealNVP"
        )
    return count


def _default_levels(event_shape: torch.Size, most: int) -> int:
    levels = min(most, 3)
    while levels > 1 and min(event_shape[1:]) >> levels < 2:
        levels -= 1
    return levels


FAMILY = Family(
    name="glow",
    group="flow",
    title="Glow",
    density=Kind.EXACT,
    view="as_is",
    build=lambda event_shape, values, num_data: Glow(
        event_shape, num_steps=4, hidden_channels=48, num_bins=values.levels, dropout=0.2
    ),
    example=lambda: Glow((1, 4, 2), num_steps=1, hidden_channels=4),
    conditional_example=lambda: Glow((1, 2, 2), num_steps=2, hidden_channels=4, context_dim=3),
    fit_options={
        "max_seconds": 40.0,
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "optimizer": functools.partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
        "clip_norm": 50.0,
        "patience": 60,
    },
    reading="An exact density made of convolutions at several scales; densities and draws take one pass.",
)
