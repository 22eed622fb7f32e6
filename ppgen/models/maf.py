r"""Masked autoregressive flow (Papamakarios, Pavlakou & Murray 2017).

Joint density, with :math:`z = T_K^{-1}(\cdots T_1^{-1}(x))` and
:math:`x_i = \mu_i(x_{<i}) + e^{s_i(x_{<i})} z_i` in each layer::

    p(x) = N(z; 0, I) * prod over layers and coordinates of exp(-s_i)

    +- data N -----------+
    |  noise z  --T-->  x |      z is no site: x is a deterministic image of it
    +--------------------+

Guide: empty, nothing is latent. The density is exact, and so is the inverse.

Cost: a density is K passes of a network, O(N K (D H + H^2)). A draw goes through the D coordinates of
each layer in turn, but computes each hidden unit once: the same number of multiplications, in K D
small steps.

Odd layers take the coordinates in reverse order, so that the first of one layer is the last of the
next. The masks are those of MADE (Germain, Gregor, Murray & Larochelle 2015).

References:
    Papamakarios, Pavlakou & Murray, *Masked Autoregressive Flow for Density Estimation*, NeurIPS 2017.
    Germain, Gregor, Murray & Larochelle, *MADE: Masked Autoencoder for Distribution Estimation*, ICML 2015.
    Chen & Gopinath, *Gaussianization*, NeurIPS 2000 (the first layer for data on [0, 1]).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch

from ppgen.contract import Kind
from ppgen.distributions.elementwise import Affine
from ppgen.distributions.flow_layers import MaskedAutoregressive
from ppgen.models.family import Family
from ppgen.models.flow import Flow, autoregressive_order, check_options


class MAF(Flow):
    """A masked autoregressive flow.

    Args:
        event_shape: shape of one datum.
        num_layers: number K of autoregressive layers.
        hidden: widths of the hidden layers of each layer's network.
        context_dim: number of classes or features that the flow is conditioned on; 0 for none.
        num_bins: for data on [0, 1], such as dequantised levels: bins of the histograms by which the
            first layer makes each margin Gaussian, best as many as levels. ``None`` standardises.
        activation: the networks' nonlinearity: ``silu``, ``relu`` or ``tanh``.
        dropout: share of hidden units left out at random from densities in training mode.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        num_layers: int = 5,
        hidden: Sequence[int] = (128, 128),
        context_dim: int = 0,
        num_bins: int | None = None,
        activation: Literal["silu", "relu", "tanh"] = "silu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(event_shape, num_bins=num_bins, context_dim=context_dim)
        nonlinearity = check_options(num_layers, hidden, dropout, activation)
        num_dims = self.event_shape.numel()
        self.transforms.extend(
            MaskedAutoregressive(
                num_dims,
                hidden,
                Affine(),
                order=autoregressive_order(num_dims, k),
                context_dim=context_dim,
                activation=nonlinearity,
                dropout=dropout,
            )
            for k in range(num_layers)
        )


FAMILY = Family(
    name="maf",
    group="flow",
    title="Masked autoregressive flow",
    density=Kind.EXACT,
    view="as_is",
    build=lambda event_shape, values, num_data: MAF(
        event_shape, num_layers=3, num_bins=values.levels, dropout=0.1
    ),
    example=lambda: MAF((2,), num_layers=2, hidden=(8,)),
    conditional_example=lambda: MAF((2,), num_layers=2, hidden=(8,), context_dim=3),
    fit_options={
        "max_seconds": 40.0,
        "learning_rate": 4e-3,
        "schedule": "cosine",
        "optimizer": functools.partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
        "clip_norm": 50.0,
        "patience": 60,
    },
    reading="An exact density, fast to evaluate; draws go coordinate by coordinate.",
)
