r"""The layers of flows: masked autoregressive, coupling, and the fixed maps that meet the data first.

Each is a :class:`~ppgen.distributions.flow.FlowTransform`: a bijection from noise to data with exact
inverse and exact log-determinant. All log-determinants are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ppgen.distributions.flow import FlowTransform
from ppgen.errors import ConfigError, DataError
from ppgen.nn.context import with_context
from ppgen.nn.masked import AutoregressiveMLP
from ppgen.nn.mlp import mlp

# Bound on the log scale of one affine layer: e^-3 to e^3, a smooth form of the usual clipping.
MAX_LOG_SCALE = 3.0


class MaskedAffine(FlowTransform):
    r"""The layer of a masked autoregressive flow (Papamakarios, Pavlakou & Murray 2017).

    :math:`x_i = \mu_i(x_{<i}) + e^{s_i(x_{<i})} z_i`: a density takes one pass of the network, a draw
    goes through the coordinates one by one, and its gradient takes D passes.

    Args:
        num_dims: number D of coordinates.
        hidden: widths of the network's hidden layers.
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
        *,
        order: Tensor,
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.network = AutoregressiveMLP(
            num_dims, hidden, 2, order=order, context_dim=context_dim, activation=activation
        )

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data, coordinate by coordinate; gradients reach z and the weights, once."""
        with torch.no_grad():
            solved = self.network.unroll(z, _affine, context)
        if not torch.is_grad_enabled():
            return solved

        # x solves x = F(x, z). One pass at the solution carries the gradients to z and the weights;
        # those that pass through x itself are added up in the backward pass.
        def around(x: Tensor, noise: Tensor) -> Tensor:
            shift, raw = self.network(x, context).chunk(2, dim=-1)
            return shift + noise * _log_scale(raw).exp()

        point = solved.requires_grad_()
        image = around(point, z.detach())

        def vjp(v: Tensor) -> Tensor:
            return torch.autograd.grad(image, point, v, retain_graph=True)[0]

        x: Tensor = _ThroughSolution.apply(around(point.detach(), z), vjp)
        return x

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise in one pass."""
        dropout = self.dropout if self.training else 0.0
        shift, raw = self.network(x, context, dropout=dropout).chunk(2, dim=-1)
        log_scale = _log_scale(raw)
        return (x - shift) * (-log_scale).exp(), -log_scale.sum(-1)


class AffineCoupling(FlowTransform):
    r"""The coupling layer of RealNVP (Dinh, Sohl-Dickstein & Bengio 2017).

    The coordinates, permuted, are split in two: :math:`x_a = z_a` and
    :math:`x_b = \mu(x_a) + e^{s(x_a)} z_b`. Both directions take one pass.

    Args:
        num_dims: number D of coordinates, 2 or more.
        hidden: widths of the network's hidden layers.
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
        *,
        permutation: Tensor,
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        if num_dims < 2:
            raise ConfigError(f"num_dims: a coupling splits the coordinates in two, got {num_dims}; use MAF")
        self.register_buffer("permutation", permutation.clone())
        self.register_buffer("restoration", permutation.argsort())
        self.context_dim = context_dim
        self.sizes = [num_dims // 2, num_dims - num_dims // 2]
        self.network = mlp(self.sizes[0] + context_dim, hidden, 2 * self.sizes[1], activation=activation)
        with torch.no_grad():  # the flow starts near the identity
            last = cast(nn.Linear, self.network[-1])
            last.weight.mul_(0.1)
            last.bias.zero_()

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data."""
        a, b = z.split(self.sizes, dim=-1)
        shift, log_scale = self._parameters_given(a, context)
        return torch.cat([a, shift + b * log_scale.exp()], dim=-1).index_select(-1, self.restoration)

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        a, b = x.index_select(-1, self.permutation).split(self.sizes, dim=-1)
        shift, log_scale = self._parameters_given(a, context, self.dropout if self.training else 0.0)
        return torch.cat([a, (b - shift) * (-log_scale).exp()], dim=-1), -log_scale.sum(-1)

    def _parameters_given(
        self, a: Tensor, context: Tensor | None, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        h = with_context(a, context, self.context_dim)
        for module in self.network:
            h = module(h)
            if dropout and not isinstance(module, nn.Linear):
                h = functional.dropout(h, dropout)
        shift, raw = h.chunk(2, dim=-1)
        return shift, _log_scale(raw)


class Standardise(FlowTransform):
    """``x = loc + scale * z`` with fixed numbers a coordinate, which :meth:`fit` measures.

    Args:
        num_dims: number D of coordinates.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, num_dims: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(num_dims))
        self.register_buffer("scale", torch.ones(num_dims))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take the mean and the standard deviation of ``x``, ``(N, D)``; a constant column keeps scale 1."""
        scale = x.std(0, correction=0)
        self.loc.copy_(x.mean(0))
        self.scale.copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data."""
        return self.loc + self.scale * z

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        return (x - self.loc) / self.scale, -self.scale.log().sum().expand(x.shape[:-1])


class Gaussianise(FlowTransform):
    r"""Data on [0, 1], each coordinate made standard normal through its histogram.

    :math:`z_i = \Phi^{-1}(F_i(x_i))` with :math:`F_i` the piecewise linear distribution function of
    equal bins, whose frequencies :meth:`fit` measures (Chen & Gopinath 2000). On dequantised data of
    as many levels as bins it is exact in the margins: what is left for a flow is how the coordinates
    hang together. Outside [0, 1] the log density is minus infinity.

    Args:
        num_dims: number D of coordinates.
        num_bins: number of equal bins of [0, 1].
    """

    mass: Tensor
    below: Tensor
    above: Tensor

    def __init__(self, num_dims: int, num_bins: int) -> None:
        super().__init__()
        if num_bins < 2:
            raise ConfigError(f"num_bins: expected 2 or more, got {num_bins}; None for data on the real line")
        self.num_bins = num_bins
        for name in ("mass", "below", "above"):
            self.register_buffer(name, torch.empty(num_dims, num_bins))
        self._set_mass(torch.ones(num_dims, num_bins, dtype=torch.float64) / num_bins)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take the frequencies of ``x``, ``(N, D)``; one more datum is spread evenly over each histogram.

        Raises:
            DataError: a value outside [0, 1], or NaN.
        """
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise DataError(
                f"x: with num_bins={self.num_bins} the data lie in [0, 1], got a range of "
                f"[{float(x.min()):.4g}, {float(x.max()):.4g}]; rescale them, or build the flow with "
                "num_bins=None"
            )
        cells = self._bin(x) + self._row_starts()
        counts = torch.bincount(cells.flatten(), minlength=self.mass.numel()).view_as(self.mass).double()
        self._set_mass((counts + 1 / self.num_bins) / (len(x) + 1))

    def push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise to data."""
        # Both tails are measured from their own end, so that neither loses digits.
        tail, negative = torch.special.ndtr(-z.abs()), z < 0
        lower = torch.where(negative, tail, 1 - tail)
        rows = lower.detach().reshape(-1, len(self.mass)).T.contiguous()
        k = torch.searchsorted(self.below[:, 1:].contiguous(), rows, right=True).T.reshape(z.shape)
        mass, below, above = self._at(k)
        part = torch.where(negative, (tail - below) / mass, 1 - (tail - above) / mass).clamp(0, 1)
        return (k + part) / self.num_bins

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        k = self._bin(x)
        mass, below, above = self._at(k)
        part = x * self.num_bins - k
        lower, upper = below + part * mass, above + (1 - part) * mass
        # A value on the border of [0, 1] would be infinitely far out.
        tail = torch.minimum(lower, upper).clamp_min(torch.finfo(x.dtype).eps ** 2)
        z = torch.special.ndtri(tail) * torch.where(lower < upper, 1.0, -1.0).to(x.dtype)
        slope = (mass * self.num_bins).log() + 0.5 * z.square() + 0.5 * math.log(2 * math.pi)
        inside = ((x >= 0) & (x <= 1)).all(-1)
        return z, slope.sum(-1).masked_fill(~inside, -math.inf)

    def _bin(self, x: Tensor) -> Tensor:
        # NaN has a bin too, and stays NaN in what is computed with it.
        return (x.detach() * self.num_bins).floor().clamp(0, self.num_bins - 1).nan_to_num(0).long()

    def _row_starts(self) -> Tensor:
        return torch.arange(len(self.mass), device=self.mass.device) * self.num_bins

    def _at(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cells = k + self._row_starts()
        return self.mass.take(cells), self.below.take(cells), self.above.take(cells)

    @torch.no_grad()
    def _set_mass(self, mass: Tensor) -> None:
        self.mass.copy_(mass)
        self.below.copy_(mass.cumsum(-1) - mass)
        self.above.copy_(mass.flip(-1).cumsum(-1).flip(-1) - mass)


class _ThroughSolution(torch.autograd.Function):
    """Gradient of the solution of ``x = F(x)`` where ``dF/dx`` is strictly triangular.

    It is g + J'g + J'J'g + ..., a sum that ends after at most D terms.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, vjp: Callable[[Tensor], Tensor]) -> Tensor:
        """The value of x, unchanged."""
        ctx.vjp = vjp
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The sum, term by term."""
        total = term = gradient
        for _ in range(gradient.shape[-1] - 1):
            term = ctx.vjp(term)
            total = total + term
        return total, None


def _log_scale(raw: Tensor) -> Tensor:
    """The bounded log scale that a network's output stands for."""
    return MAX_LOG_SCALE * torch.tanh(raw)


def _affine(z: Tensor, outputs: Tensor) -> Tensor:
    """One coordinate of an autoregressive draw; ``outputs`` holds the shift and the raw log scale."""
    return outputs[0] + z * _log_scale(outputs[1]).exp()
