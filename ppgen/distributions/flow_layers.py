r"""The learnt layers of flows: masked autoregressive, coupling, and any layer turned around.

Each is a :class:`~ppgen.distributions.flow.FlowTransform`: a bijection from noise to data with exact
inverse and exact log-determinant. What a layer does to one coordinate is an
:class:`~ppgen.distributions.elementwise.Elementwise` function, whose parameters its network gives. All
log-determinants are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ppgen.distributions.elementwise import Elementwise
from ppgen.distributions.flow import FlowTransform
from ppgen.errors import ConfigError
from ppgen.nn.context import with_context
from ppgen.nn.masked import AutoregressiveMLP
from ppgen.nn.mlp import mlp


class MaskedAutoregressive(FlowTransform):
    r"""A masked autoregressive layer (Papamakarios, Pavlakou & Murray 2017).

    :math:`x_i = f(z_i; \theta_i(x_{<i}))` with increasing f. A density takes one pass of the network. A
    draw goes through the coordinates one by one, and so does its gradient, in the other direction;
    each computes every hidden unit once, which is the arithmetic of one pass in D small steps.

    Args:
        num_dims: number D of coordinates.
        hidden: widths of the network's hidden layers.
        elementwise: f.
        order: the permutation of 0..D-1 in which coordinates depend on each other.
        context_dim: features of the context; 0 for none.
        activation: makes the network's nonlinearity.
        dropout: share of hidden units left out at random from densities in training mode; draws, and
            everything in evaluation mode, use them all.
    """

    def __init__(
        self,
        num_dims: int,
        hidden: Sequence[int],
        elementwise: Elementwise,
        *,
        order: Tensor,
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout, self.elementwise = dropout, elementwise
        self.network = AutoregressiveMLP(
            num_dims,
            hidden,
            elementwise.num_parameters,
            order=order,
            context_dim=context_dim,
            activation=activation,
        )

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data, coordinate by coordinate; gradients reach z, context and weights, once."""
        solved = self.network.unroll(z.detach(), self.elementwise.push, context)
        if not torch.is_grad_enabled():
            return solved

        # x solves x = F(x, z). One pass at the solution carries gradients to z and the weights; how
        # they come to it, through the coordinates that depend on each other, is solved for backwards.
        def solve(gradient: Tensor) -> Tensor:
            with torch.no_grad():
                parameters = self._parameters_given(solved, context)
            with torch.enable_grad():
                parameters = parameters.detach().requires_grad_()
                image = self.elementwise.push(z.detach(), parameters)
                (slopes,) = torch.autograd.grad(image.sum(), parameters)
            return self.network.unroll_gradient(solved, gradient, slopes, context)

        image = self.elementwise.push(z, self._parameters_given(solved, context))
        x: Tensor = _AtSolution.apply(image, solve)
        return x

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise in one pass."""
        dropout = self.dropout if self.training else 0.0
        z, log_slope = self.elementwise.pull(x, self._parameters_given(x, context, dropout))
        return z, log_slope.sum(-1)

    def _parameters_given(self, x: Tensor, context: Tensor | None, dropout: float = 0.0) -> Tensor:
        return _parameters_first(self.network(x, context, dropout=dropout), x.shape[-1])


class Coupling(FlowTransform):
    r"""A coupling layer (Dinh, Sohl-Dickstein & Bengio 2017).

    The coordinates, permuted, are split in two: :math:`x_a = z_a` and
    :math:`x_b = f(z_b; \theta(x_a))` with increasing f. Both directions take one pass.

    Args:
        num_dims: number D of coordinates, 2 or more.
        hidden: widths of the network's hidden layers.
        elementwise: f.
        permutation: permutation of 0..D-1 applied to the data; the first half of the result is a.
        context_dim: features of the context; 0 for none.
        activation: makes the network's nonlinearity.
        dropout: share of hidden units left out at random from densities in training mode; draws, and
            everything in evaluation mode, use them all.
    """

    permutation: Tensor
    restoration: Tensor

    def __init__(
        self,
        num_dims: int,
        hidden: Sequence[int],
        elementwise: Elementwise,
        *,
        permutation: Tensor,
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout, self.elementwise = dropout, elementwise
        if num_dims < 2:
            raise ConfigError(
                f"num_dims: a coupling splits the coordinates in two, got {num_dims}; "
                "use an autoregressive layer"
            )
        self.register_buffer("permutation", permutation.clone())
        self.register_buffer("restoration", permutation.argsort())
        self.context_dim = context_dim
        self.sizes = [num_dims // 2, num_dims - num_dims // 2]
        num_outputs = elementwise.num_parameters * self.sizes[1]
        self.network = mlp(self.sizes[0] + context_dim, hidden, num_outputs, activation=activation)
        with torch.no_grad():  # the flow starts near the identity
            last = cast(nn.Linear, self.network[-1])
            last.weight.mul_(0.1)
            last.bias.zero_()

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data."""
        a, b = z.split(self.sizes, dim=-1)
        b = self.elementwise.push(b, self._parameters_given(a, context))
        return torch.cat([a, b], dim=-1).index_select(-1, self.restoration)

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        a, b = x.index_select(-1, self.permutation).split(self.sizes, dim=-1)
        dropout = self.dropout if self.training else 0.0
        b, log_slope = self.elementwise.pull(b, self._parameters_given(a, context, dropout))
        return torch.cat([a, b], dim=-1), log_slope.sum(-1)

    def _parameters_given(self, a: Tensor, context: Tensor | None, dropout: float = 0.0) -> Tensor:
        h = with_context(a, context, self.context_dim)
        for module in self.network:
            h = module(h)
            if dropout and not isinstance(module, nn.Linear):
                h = functional.dropout(h, dropout)
        return _parameters_first(h, self.sizes[1])


class Inverted(FlowTransform):
    """A layer turned around: its density pass makes draws, and its draw pass evaluates densities.

    Args:
        layer: the layer; without dropout, since a density takes two passes that must agree.
    """

    def __init__(self, layer: FlowTransform) -> None:
        super().__init__()
        self.layer = layer

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data, by the layer's map from data to noise."""
        return self.layer.pull(z, context)[0]

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise, by the layer's map from noise to data."""
        z = self.layer.push(x, context)
        return z, -self.layer.pull(z, context)[1]

    def push_with_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data x, ``(..., D)``, and ``log |det dx/dz|``, ``(...)``, in nats: one pass gives both."""
        return self.layer.pull(z, context)

    def log_det(self, z: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``log |det dx/dz|``, ``(...)``, in nats: one pass, since the noise is known."""
        return self.layer.pull(z, context)[1]


class _AtSolution(torch.autograd.Function):
    """The solution of an equation: its gradient is solved for before it goes on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        """The value of x, unchanged."""
        ctx.solve = solve
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """What ``solve`` makes of the gradient."""
        return ctx.solve(gradient), None


def _parameters_first(outputs: Tensor, num_dims: int) -> Tensor:
    """A network's outputs ``(..., P D)`` as ``(P, ..., D)``: P parameters for each of D coordinates."""
    return outputs.unflatten(-1, (-1, num_dims)).movedim(-2, 0)
