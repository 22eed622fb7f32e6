r"""What all normalising flows share: one site ``x``, an exact density, an exact inverse.

A family appends its layers to ``transforms``; everything else follows from
:class:`~ppgen.distributions.flow.FlowDistribution`. All log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn

from ppgen.contract import Estimate, GenerativeModel, Kind, check_count
from ppgen.datasets.values import REAL
from ppgen.distributions.flow import FlowDistribution, FlowTransform
from ppgen.distributions.flow_margins import Gaussianise, Standardise
from ppgen.errors import ConfigError, ShapeError
from ppgen.nn.context import context_features


class Flow(GenerativeModel):
    r"""A flow :math:`x = T_1(T_2(\cdots T_K(z)))`, :math:`z \sim N(0, I_D)`; the base of the flow families.

    The first layer, :math:`T_1`, meets the data: it standardises them, or makes the margins of data
    on [0, 1] Gaussian; :meth:`initialise` measures it. Events of any shape are flattened inside.

    A context of classes or features goes in as it is. One that is an image, a sequence or a set is read by
    a network of one's own, learnt in one ``PyroModule`` with the flow: after ``flow.initialise(x)``, by
    ``flow.distribution(network(context))``.

    Args:
        event_shape: shape of one datum, D numbers in all.
        num_bins: for data on [0, 1], such as dequantised levels: bins of the histograms in the first
            layer, best as many as levels. ``None`` for data on the real line.
        context_dim: number of classes or features that the flow is conditioned on; 0 for none.
    """

    density = Kind.EXACT
    base_loc: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        num_bins: int | None = None,
        context_dim: int = 0,
    ) -> None:
        super().__init__(event_shape, support=REAL)
        if isinstance(context_dim, bool) or not isinstance(context_dim, int) or context_dim < 0:
            raise ConfigError(
                f"context_dim: expected a number of classes or features, 0 for none, got {context_dim!r}"
            )
        num_dims = self.event_shape.numel()
        first = Standardise(num_dims) if num_bins is None else Gaussianise(num_dims, num_bins)
        self.context_dim = context_dim
        self.transforms = nn.ModuleList([first])
        self.register_buffer("base_loc", torch.zeros(num_dims))

    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        """The generative story: noise, pushed through the layers, is x."""
        with self.data_plate(x, num, context):
            return pyro.sample("x", self.distribution(context), obs=x)

    def distribution(
        self, context: Tensor | None = None, *, validate_args: bool | None = None
    ) -> FlowDistribution:
        """p(x | context) as a Pyro distribution; its batch shape is the context's, ``()`` without one.

        For a Pyro program of one's own, as its prior or guide: in a ``PyroModule`` that holds the flow as an
        attribute, its parameters are learnt. Any other program names them, by ``pyro.module("flow", flow)``
        or by running within ``flow.shown_to_pyro()``; else they stay as they are.

        Args:
            context: labels ``(N,)`` or features ``(..., C)``, with gradients where they have any.
            validate_args: as in torch.

        Raises:
            ShapeError: labels in rows.
        """
        if context is not None:
            if not context.is_floating_point() and context.shape[1:] not in ((), (self.context_dim,)):
                raise ShapeError(
                    f"context: expected integer labels (N,) or features (N, {self.context_dim}), got "
                    f"{context.dtype} of shape {tuple(context.shape)}; flatten labels: context[:, 0]"
                )
            context = context_features(context, self.context_dim, like=self.base_loc)
        return FlowDistribution(
            self.layers, self.base_loc, self.event_shape, context=context, validate_args=validate_args
        )

    @property
    def layers(self) -> list[FlowTransform]:
        """All layers, from the data's side to the noise's."""
        return [t for t in self.transforms if isinstance(t, FlowTransform)]

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Fit the first layer to the margins of training data ``(N, *event_shape)``.

        Raises:
            DataError: no data, NaN or infinities, or data outside [0, 1] for a flow built with ``num_bins``.
        """
        first = self.transforms[0]
        if isinstance(first, Standardise | Gaussianise):
            first.fit(self.check_data(x).flatten(1))
        self.initialised.fill_(True)

    def log_likelihood(self, x: Tensor, context: Tensor | None = None) -> Estimate:
        """Exact log p(x_n | context_n) in nats, value of shape ``(N,)``; differentiable."""
        return Estimate.of(self._given(context).log_prob(x), Kind.EXACT)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The noise that x came from, shape ``(N, D)``: the exact inverse of :meth:`decode`."""
        return self._given(context).to_noise(x)[0]

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The datum that noise ``(N, D)`` stands for, ``(N, *event_shape)``; differentiable once."""
        if z.shape[-1:] != self.base_loc.shape:
            raise ShapeError(
                f"z: {type(self).__name__} expects noise of shape (N, {len(self.base_loc)}), "
                f"got {tuple(z.shape)}; encode(x) gives it"
            )
        return self._given(context).from_noise(z.to(self.base_loc.dtype))

    def score(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Gradient of log p(x | context) with respect to x, same shape as x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self._given(context).log_prob(x).sum(), x)[0]

    def _given(self, context: Tensor | None) -> FlowDistribution:
        """p(x | context) for data that have been looked at."""
        return self.distribution(context, validate_args=False)


_ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "tanh": nn.Tanh}


def check_options(num_layers: int, hidden: Sequence[int], dropout: float, activation: str) -> type[nn.Module]:
    """The nonlinearity named; :class:`~ppgen.errors.ConfigError` for options that make no flow."""
    check_count(num_layers, "num_layers")
    if not isinstance(hidden, Sequence) or not hidden or min(hidden) < 1:
        raise ConfigError(f"hidden: expected widths of 1 or more such as (128, 128), got {hidden!r}")
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout: expected a share in [0, 1), got {dropout}")
    if activation not in _ACTIVATIONS:
        raise ConfigError(f"activation: expected one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    return _ACTIVATIONS[activation]


def coupling_permutation(num_dims: int, layer: int) -> Tensor:
    """Where a coupling finds its coordinates: halves swapped in odd layers, shuffled anew in even ones.

    So layers come in pairs, of which the second changes the half that the first has kept.

    Raises:
        ConfigError: a single coordinate, which leaves nothing to split.
    """
    if num_dims < 2:
        raise ConfigError(
            f"event_shape: a coupling needs two coordinates or more, got {num_dims}; "
            "use MAF, or NeuralSplineFlow(layout='autoregressive')"
        )
    if layer % 2:
        return torch.arange(num_dims).roll(-(num_dims // 2))
    return torch.randperm(num_dims, generator=torch.Generator().manual_seed(layer))


def autoregressive_order(num_dims: int, layer: int) -> Tensor:
    """The order of an autoregressive layer: odd ones reverse it, so that none is always the last."""
    order = torch.arange(num_dims)
    return order.flip(0) if layer % 2 else order
