r"""Neural spline flow (Durkan, Bekasov, Murray & Papamakarios 2019).

Joint density, with :math:`z = T_K^{-1}(\cdots T_1^{-1}(x))`; in each layer the inverse of a monotone
rational-quadratic spline g takes data to noise, :math:`z_i = g(x_i; \theta_i)`, with the spline's knots and
slopes :math:`\theta_i` given by a network of other coordinates::

    p(x) = N(z; 0, I) * prod over layers and coordinates of g'(x_i; theta_i)

    +- data N -----------+
    |  noise z  --T-->  x |      z is no site: x is a deterministic image of it
    +--------------------+

In layout ``coupling``, :math:`\theta` of one half of the coordinates is a function of the other half,
which stays as it is; in layout ``autoregressive``, :math:`\theta_i = \theta_i(x_{<i})`. A spline bends where
the data want it and is the identity beyond ``tail_bound``, so a few layers draw sharp edges and separate
modes that affine layers only stretch.

Guide: empty, nothing is latent. The density is exact, and so is the inverse, a root of a quadratic.

Cost, with B bins: a density is K passes of a network, O(N K (D H + H^2 + D B H)). So is a draw in the
coupling layout; in the autoregressive layout a draw goes through the D coordinates of each layer in
turn, but computes each hidden unit once: the same number of multiplications, in K D small steps.

References:
    Durkan, Bekasov, Murray & Papamakarios, *Neural Spline Flows*, NeurIPS 2019.
    Gregory & Delbourgo, *Piecewise Rational Quadratic Interpolation to Monotonic Data*, IMA Journal of
    Numerical Analysis 2(2), 1982.
    Chen & Gopinath, *Gaussianization*, NeurIPS 2000 (the first layer for data on [0, 1]).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from ppgen.contract import Kind
from ppgen.distributions.elementwise import Spline
from ppgen.distributions.flow_layers import Coupling, MaskedAutoregressive
from ppgen.errors import ConfigError
from ppgen.models.family import Family
from ppgen.models.flow import Flow, autoregressive_order, check_options, coupling_permutation
from ppgen.ops.splines import MAX_BINS


class NeuralSplineFlow(Flow):
    """A flow of rational-quadratic splines.

    Args:
        event_shape: shape of one datum; of two numbers or more in the coupling layout.
        layout: ``coupling`` (densities and draws in one pass) or ``autoregressive`` (draws coordinate
            by coordinate, and more flexible).
        num_layers: number K of layers.
        num_spline_bins: pieces of each spline; 16 or more where a few coordinates have several modes.
        tail_bound: where splines end and the identity begins, in standard deviations of the data. Heavy tails
            want it as far out as the data reach, and more bins.
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
        layout: Literal["coupling", "autoregressive"] = "coupling",
        num_layers: int = 6,
        num_spline_bins: int = 8,
        tail_bound: float = 5.0,
        hidden: Sequence[int] = (128, 128),
        context_dim: int = 0,
        num_bins: int | None = None,
        activation: Literal["silu", "relu", "tanh"] = "silu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(event_shape, num_bins=num_bins, context_dim=context_dim)
        nonlinearity = check_options(num_layers, hidden, dropout, activation)
        if not isinstance(num_spline_bins, int) or not 2 <= num_spline_bins <= MAX_BINS:
            raise ConfigError(
                f"num_spline_bins: expected a number of 2 to {MAX_BINS}, got {num_spline_bins!r}"
            )
        if not 0 < tail_bound < math.inf:
            raise ConfigError(f"tail_bound: expected a positive number, got {tail_bound}")
        if layout not in ("coupling", "autoregressive"):
            raise ConfigError(f"layout: expected 'coupling' or 'autoregressive', got {layout!r}")
        num_dims = self.event_shape.numel()
        for k in range(num_layers):
            layer: Callable[..., Coupling | MaskedAutoregressive]
            if layout == "coupling":
                layer = functools.partial(Coupling, permutation=coupling_permutation(num_dims, k))
            else:
                layer = functools.partial(MaskedAutoregressive, order=autoregressive_order(num_dims, k))
            self.transforms.append(
                layer(
                    num_dims,
                    hidden,
                    Spline(num_spline_bins, tail_bound),
                    context_dim=context_dim,
                    activation=nonlinearity,
                    dropout=dropout,
                )
            )


FAMILY = Family(
    name="neural-spline-flow",
    group="flow",
    title="Neural spline flow",
    density=Kind.EXACT,
    view="as_is",
    build=lambda event_shape, values, num_data: NeuralSplineFlow(
        event_shape, num_layers=4, num_bins=values.levels, dropout=0.2
    ),
    example=lambda: NeuralSplineFlow((2,), num_layers=2, hidden=(8,)),
    conditional_example=lambda: NeuralSplineFlow(
        (2,), layout="autoregressive", num_layers=2, hidden=(8,), context_dim=3
    ),
    fit_options={
        "max_seconds": 40.0,
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "optimizer": functools.partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
        "clip_norm": 50.0,
        "patience": 60,
    },
    reading="An exact density; splines bend where affine layers stretch.",
)
