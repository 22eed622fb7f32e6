r"""MADE: a masked autoencoder for distribution estimation (Germain, Gregor, Murray & Larochelle 2015).

In one order o of the D coordinates

.. math:: p_o(x) = \prod_i p(x_{o_i} \mid x_{o_1}, \dots, x_{o_{i-1}}) ,

with all conditionals from one perceptron whose weights are masked. With M orders the model is their
mixture, :math:`p(x) = \frac{1}{M} \sum_m p_{o_m}(x)`: the networks share their weights and differ in the
masks of the first and the last layer.

.. code-block:: text

    +-- data, n = 1..N ----------------------------------------+
    |  x_n ~ mixture over orders of prod_i p(x_i | x before i) |
    +----------------------------------------------------------+

Guide: empty, nothing is latent (the sum over orders is carried out). The density is exact, for one order
and for the mixture. In training mode each batch is given one order at random, which bounds the mixture's
log-likelihood from below (Jensen): the training is agnostic of the order, at the cost of one order.

Each conditional is a categorical distribution (a grid of levels), a mixture of discretised logistics
(many levels), or a mixture of Gaussians (real data).

Cost: a density is M passes of the network, O(N M (D H + H^2)); a draw computes each hidden unit once: one
pass in D small steps.

References:
    Germain, Gregor, Murray & Larochelle, *MADE: Masked Autoencoder for Distribution Estimation*, ICML 2015.
    Uria, Murray & Larochelle, *A Deep and Tractable Density Estimator*, ICML 2014 (ensembles of orders).
    Salimans, Karpathy, Chen & Kingma, *PixelCNN++*, ICLR 2017 (mixtures of discretised logistics).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ppgen.contract import Kind, check_count, query
from ppgen.datasets.values import REAL, Values, grid
from ppgen.distributions.heads import HeadName, make_head
from ppgen.models.autoregressive import Autoregressive
from ppgen.models.family import Family
from ppgen.models.flow import check_options
from ppgen.nn.masked import AutoregressiveMLP, MaskedLinear


class MADE(Autoregressive):
    """A masked autoencoder over binary, grid or real data.

    Real data have units: :meth:`initialise`, which training calls, notes their means and scales.

    Args:
        event_shape: shape of one datum, D numbers in all.
        hidden: widths of the hidden layers.
        num_orders: orders M that are averaged; the first is that of the flat datum, the others are random
            and always the same. To go on from a beginning (:meth:`condition`) there must be one.
        head: what each conditional is: ``categorical``, ``logistic_mixture`` or ``gaussian_mixture``; by
            default the first for a grid, the last for real data.
        levels: number of levels of a grid, 2 for binary data, ``None`` for real data.
        num_components: components of each conditional's mixture.
        context_dim: number of classes or features that the model is conditioned on; 0 for none.
        activation: the network's nonlinearity: ``silu``, ``relu`` or ``tanh``.
        dropout: share of hidden units left out at random in training mode.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        hidden: Sequence[int] = (500,),
        num_orders: int = 1,
        head: HeadName | None = None,
        levels: int | None = 2,
        num_components: int = 5,
        context_dim: int = 0,
        activation: Literal["silu", "relu", "tanh"] = "relu",
        dropout: float = 0.0,
    ) -> None:
        made_head = make_head(head, levels, num_components)
        super().__init__(
            event_shape, support=REAL if levels is None else grid(levels), context_dim=context_dim
        )
        nonlinearity = check_options(1, hidden, dropout, activation)
        check_count(num_orders, "num_orders")
        self.head, self.dropout = made_head, dropout
        num_dims = self.event_shape.numel()
        # The unit of real data: the networks read and describe (x - loc) / scale.
        self.register_buffer("loc", torch.zeros(num_dims), persistent=levels is None)
        self.register_buffer("scale", torch.ones(num_dims), persistent=levels is None)
        self.networks = nn.ModuleList(
            AutoregressiveMLP(
                num_dims,
                hidden,
                made_head.num_params,
                order=_order(num_dims, m),
                context_dim=context_dim,
                activation=nonlinearity,
            )
            for m in range(num_orders)
        )
        for network in self._networks[1:]:
            _share_weights(self._networks[0], network)
        with torch.no_grad():
            last = cast(MaskedLinear, self._networks[0].layers[-1])
            last.bias.view(-1, num_dims).copy_(made_head.start()[:, None])

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Note mean and scale of each coordinate of real training data ``(N, *event_shape)``."""
        flat = self.check_data(x).flatten(1)
        if self.support.levels is None:
            scale = flat.std(0, correction=0)
            self.loc.copy_(flat.mean(0))
            self.scale.copy_(torch.where(scale > 0, scale, 1.0))
        self.initialised.fill_(True)

    def event_log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Log p(x_n), shape ``(N,)``, in nats; in training mode in one of the orders, picked at random."""
        networks = self._networks
        if self.training and len(networks) > 1:
            return self._log_prob_in_order(networks[int(torch.randint(len(networks), ()))], x, context)
        each = torch.stack([self._log_prob_in_order(network, x, context) for network in networks])
        return each.logsumexp(0) - math.log(len(networks))

    def complete(self, x: Tensor, known: Tensor, context: Tensor | None) -> Tensor:
        """Draws ``(N, *event_shape)`` that keep x where ``known`` is True, each in one of the orders."""
        result = torch.empty_like(x)
        # On the CPU, so that the numbers of rows are known without waiting for a device.
        any_order = len(self.networks) > 1 and not x.is_meta
        chosen = torch.randint(len(self.networks), (len(x),)) if any_order else torch.zeros(len(x))
        for m, network in enumerate(self._networks):
            rows = (chosen == m).nonzero()[:, 0].to(x.device)
            if len(rows):
                features = None if context is None else context[rows]
                result[rows] = self._complete_in_order(network, x[rows], known[rows], features)
        return result

    def orders(self) -> Tensor:
        """The orders, shape ``(M, D)``: flat positions, the first drawn first."""
        return torch.stack([network.order for network in self._networks])

    @query
    def log_prob_by_order(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-probability in each order alone, shape ``(M, N)``, in nats."""
        return torch.stack([self._log_prob_in_order(network, x, context) for network in self._networks])

    # -- helpers -----------------------------------------------------------------------------

    @property
    def _networks(self) -> list[AutoregressiveMLP]:
        return cast(list[AutoregressiveMLP], list(self.networks))

    def _log_prob_in_order(self, network: AutoregressiveMLP, x: Tensor, context: Tensor | None) -> Tensor:
        flat = (x.flatten(1) - self.loc) / self.scale
        outputs = network(flat, context, dropout=self.dropout if self.training else 0.0)
        params = outputs.unflatten(-1, (self.head.num_params, -1)).transpose(-1, -2)
        return self.head.log_prob(params, flat[..., None]).sum(-1) - self.scale.log().sum()

    def _complete_in_order(
        self, network: AutoregressiveMLP, x: Tensor, known: Tensor, context: Tensor | None
    ) -> Tensor:
        flat, kept = (x.flatten(1) - self.loc) / self.scale, known.flatten(1)
        noise = self.head.noise(tuple(flat.shape), flat)
        coordinates = iter(range(flat.shape[1]) if x.is_meta else network.order.tolist())

        def step(value: Tensor, outputs: Tensor) -> Tensor:
            i = next(coordinates)
            return torch.where(kept[:, i], value, self.head.draw(outputs.T, noise[:, i])[:, 0])

        drawn = self.loc + self.scale * network.unroll(flat, step, context)
        return torch.where(known, x, drawn.reshape(x.shape))


def _order(num_dims: int, m: int) -> Tensor:
    """The order of number m: that of the data for 0, else random but always the same."""
    return (
        torch.arange(num_dims)
        if m == 0
        else torch.randperm(num_dims, generator=torch.Generator().manual_seed(m))
    )


def _share_weights(first: AutoregressiveMLP, other: AutoregressiveMLP) -> None:
    """Give ``other`` the weights of ``first``; the masks stay its own."""
    pairs = zip(first.layers, other.layers, strict=True)
    for mine, its in cast("Sequence[tuple[MaskedLinear, MaskedLinear]]", list(pairs)):
        its.weight, its.bias = mine.weight, mine.bias


def _build(event_shape: torch.Size, values: Values, num_data: int) -> MADE:
    return MADE(event_shape, hidden=(500,), num_orders=8, levels=values.levels, dropout=0.2)


FAMILY = Family(
    name="made",
    group="autoregressive",
    title="Masked autoencoder (MADE)",
    density=Kind.EXACT,
    view="as_is",
    build=_build,
    example=lambda: MADE((3,), hidden=(8,), num_orders=2, levels=3),
    conditional_example=lambda: MADE((2,), hidden=(8,), levels=None, num_components=2, context_dim=3),
    fit_options={
        "max_seconds": 15.0,
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "batch_size": 64,
        "optimizer": functools.partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
        "patience": 60,
    },
    reading="An exact density: the mean of several orders of the pixels, each a chain of small predictions.",
)
