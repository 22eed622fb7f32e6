r"""RealNVP: a flow of affine coupling layers (Dinh, Sohl-Dickstein & Bengio 2017).

Joint density, with :math:`z = T_K^{-1}(\cdots T_1^{-1}(x))`; each layer splits the coordinates in two,
keeps :math:`x_a = z_a` and sets :math:`x_b = \mu(x_a) + e^{s(x_a)} z_b`::

    p(x) = N(z; 0, I) * prod over layers of exp(-sum s(x_a))

    +- data N -----------+
    |  noise z  --T-->  x |      z is no site: x is a deterministic image of it
    +--------------------+

Guide: empty, nothing is latent. The density is exact, and so is the inverse.

Cost: a density and a draw are each K passes of a network, O(N K (D H + H^2)).

Layers come in pairs: the second changes the half that the first has kept. Each pair splits the
coordinates by its own permutation, fixed by its position.

References:
    Dinh, Sohl-Dickstein & Bengio, *Density estimation using Real NVP*, ICLR 2017.
    Chen & Gopinath, *Gaussianization*, NeurIPS 2000 (the first layer for data on [0, 1]).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch

from ppgen.contract import Kind
from ppgen.distributions.elementwise import Affine
from ppgen.distributions.flow_layers import Coupling
from ppgen.models.family import Family
from ppgen.models.flow import Flow, check_options, coupling_permutation


class RealNVP(Flow):
    """A flow of affine coupling layers.

    Args:
        event_shape: shape of one datum, of two numbers or more.
        num_layers: number K of coupling layers; with one, half of the coordinates stay as they are.
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
        num_layers: int = 8,
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
            Coupling(
                num_dims,
                hidden,
                Affine(),
                permutation=coupling_permutation(num_dims, k),
                context_dim=context_dim,
                activation=nonlinearity,
                dropout=dropout,
            )
            for k in range(num_layers)
        )


FAMILY = Family(
    name="real-nvp",
    group="flow",
    title="RealNVP flow",
    density=Kind.EXACT,
    view="as_is",
    build=lambda event_shape, values, num_data: RealNVP(
        event_shape, num_layers=6, num_bins=values.levels, dropout=0.2
    ),
    example=lambda: RealNVP((2,), num_layers=2, hidden=(8,)),
    conditional_example=lambda: RealNVP((2,), num_layers=2, hidden=(8,), context_dim=3),
    fit_options={
        "max_seconds": 40.0,
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "optimizer": functools.partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
        "clip_norm": 50.0,
        "patience": 60,
    },
    reading="An exact density; densities and draws both take one pass.",
)
