r"""Inverse autoregressive flow (Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling 2016).

Joint density, with :math:`x = T_1(\cdots T_K(z))` and
:math:`x_i = (z_i - \mu_i(z_{<i}))\, e^{-s_i(z_{<i})}` in each layer: a MAF's layer turned around, so that
coordinates depend on the noise before them, not on the data::

    p(x) = N(z; 0, I) * prod over layers and coordinates of exp(s_i)

    +- data N -----------+
    |  noise z  --T-->  x |      z is no site: x is a deterministic image of it
    +--------------------+

Guide: empty, nothing is latent. The density is exact, and so is the inverse.

Cost: a draw is K passes of a network, O(N K (D H + H^2)), and so are a draw and its density together:
``distribution().rsample_with_log_prob()``. That makes it a posterior to draw from, its use in the paper: the
guide of an autoencoder is a ``PyroModule`` with an ``encoder`` to C features and a
``flow = IAF((L,), context_dim=C)``, which runs within the plate of the data::

    z, log_q = self.flow.distribution(self.encoder(x)).rsample_with_log_prob()
    pyro.sample("z", Delta(z, log_density=log_q, event_dim=1))

The density of
*given* data is exact but slow: the noise of each layer is found coordinate by coordinate, in K D small
steps with the arithmetic of two passes. Its gradient, which maximum likelihood needs, is found by implicit
differentiation: one triangular system, solved in K D small steps the other way. Choose MAF where data
are given and IAF where draws are.

Odd layers take the coordinates in reverse order. There is no dropout: a density takes two passes of
each network, which must agree.

References:
    Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling, *Improved Variational Inference with Inverse
    Autoregressive Flow*, NeurIPS 2016.
    Papamakarios, Pavlakou & Murray, *Masked Autoregressive Flow for Density Estimation*, NeurIPS 2017
    (the relation of the two).
    Chen & Gopinath, *Gaussianization*, NeurIPS 2000 (the first layer for data on [0, 1]).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch

from ppgen.contract import Kind
from ppgen.distributions.elementwise import Affine
from ppgen.distributions.flow_layers import Inverted, MaskedAutoregressive
from ppgen.models.family import Family
from ppgen.models.flow import Flow, autoregressive_order, check_options


class IAF(Flow):
    """An inverse autoregressive flow: fast draws, slow densities of data.

    Args:
        event_shape: shape of one datum.
        num_layers: number K of inverse autoregressive layers.
        hidden: widths of the hidden layers of each layer's network.
        context_dim: number of classes or features that the flow is conditioned on; 0 for none.
        num_bins: for data on [0, 1], such as dequantised levels: bins of the histograms by which the
            first layer makes each margin Gaussian, best as many as levels. ``None`` standardises.
        activation: the networks' nonlinearity: ``silu``, ``relu`` or ``tanh``.
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
    ) -> None:
        super().__init__(event_shape, num_bins=num_bins, context_dim=context_dim)
        nonlinearity = check_options(num_layers, hidden, 0.0, activation)
        num_dims = self.event_shape.numel()
        self.transforms.extend(
            Inverted(
                MaskedAutoregressive(
                    num_dims,
                    hidden,
                    Affine(),
                    order=autoregressive_order(num_dims, k),
                    context_dim=context_dim,
                    activation=nonlinearity,
                )
            )
            for k in range(num_layers)
        )


FAMILY = Family(
    name="iaf",
    group="flow",
    title="Inverse autoregressive flow",
    density=Kind.EXACT,
    view="as_is",
    build=lambda event_shape, values, num_data: IAF(event_shape, num_layers=3, num_bins=values.levels),
    example=lambda: IAF((2,), num_layers=2, hidden=(8,)),
    conditional_example=lambda: IAF((2,), num_layers=2, hidden=(8,), context_dim=3),
    fit_options={
        "max_seconds": 40.0,
        "learning_rate": 4e-3,
        "schedule": "cosine",
        "optimizer": functools.partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
        "clip_norm": 50.0,
        "patience": 60,
    },
    reading="An exact density, found coordinate by coordinate; draws take one pass.",
)
