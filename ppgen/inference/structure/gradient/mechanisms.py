r"""Mechanisms of DiBS: the mean of a variable given its parents, with a soft or hard graph.

A mechanism knows the table. Its batch dimensions are those of the graphs and parameters, written ``...``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ppgen.inference.structure.gradient.moments import moments

#: variables whose sets have a number in an int64
_MAX_CODED = 62


class Mechanism(ABC):
    """Means of n variables as functions of their parents.

    Args:
        values: shape (N, n), float64.
        clamped: shape (N, n), bool: cells that were set and say nothing about a mechanism.

    Attributes:
        counts: rows of each variable's mechanism, shape (n,).
    """

    def __init__(self, values: Tensor, clamped: Tensor) -> None:
        self.values, self.free = values, ~clamped
        self.counts = self.free.sum(0).to(values)

    @property
    def num_nodes(self) -> int:
        """Number of variables, n."""
        return self.values.shape[1]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Shape of the parameters of one graph."""

    @abstractmethod
    def prior_scale(self, variance: Tensor) -> Tensor:
        """Standard deviations of the normal prior of the parameters for noise variances (..., n)."""

    @abstractmethod
    def used(self, graph: Tensor) -> Tensor:
        """Which parameters matter under hard graphs (..., n, n), bool, shape ``(..., *shape)``."""

    @abstractmethod
    def mean(self, graph: Tensor, theta: Tensor) -> Tensor:
        """Mean of each cell, shape (..., N, n), for graphs (..., n, n) and parameters ``(..., *shape)``."""

    def squares(self, graph: Tensor, theta: Tensor) -> Tensor:
        """Sums of squared residuals of each variable over the cells that were not set, shape (..., n)."""
        residual = self.values - self.mean(graph, theta)
        return (residual.square() * self.free).sum(-2)


class Linear(Mechanism):
    r"""Linear-Gaussian: :math:`x_j = b_j + \sum_i G_{ij} \Theta_{ij} x_i + \epsilon_j`.

    The intercepts are at their most likely value given the rest. A coefficient has prior standard
    deviation ``scale`` times that of the noise, which makes the prior conjugate.
    """

    def __init__(self, values: Tensor, clamped: Tensor, scale: float = 1.0) -> None:
        super().__init__(values, clamped)
        self.scale = scale
        self.moments = moments(values, clamped)

    @property
    def shape(self) -> tuple[int, int]:
        """One coefficient for each edge."""
        return self.num_nodes, self.num_nodes

    def prior_scale(self, variance: Tensor) -> Tensor:
        """In units of the noise of the effect."""
        return self.scale * variance.sqrt()[..., None, :].expand(*variance.shape[:-1], *self.shape)

    def used(self, graph: Tensor) -> Tensor:
        """Those of the edges."""
        return graph > 0

    def mean(self, graph: Tensor, theta: Tensor) -> Tensor:
        """Linear in the parents, centred on the rows of each mechanism."""
        coefficients = graph * theta
        centre = self.moments.means
        offset = centre.diagonal() - (centre * coefficients).sum(-2)
        return self.values @ coefficients + offset[..., None, :]

    def squares(self, graph: Tensor, theta: Tensor) -> Tensor:
        """From second moments, whatever the number of rows."""
        return self.moments.squares(graph * theta)

    def log_evidence(self, graph: Tensor, noise: Noise) -> Tensor:
        r""":math:`\log p(D \mid G)` by node, coefficients and noise variances integrated out; shape (..., n).

        Exact and smooth for soft graphs too, whose entries scale the prior of the coefficients.
        """
        nodes = torch.arange(self.num_nodes, device=graph.device)
        return self._log_evidence(nodes, graph.mT, noise)

    def log_evidence_of_draws(self, graph: Tensor, noise: Noise) -> Tensor:
        """As :meth:`log_evidence` for hard graphs among which families recur; each is worked out once."""
        n = self.num_nodes
        if n > _MAX_CODED:
            return self.log_evidence(graph, noise)
        nodes = torch.arange(n, device=graph.device)
        sets = graph.mT.long()
        codes = (sets << nodes).sum(-1)
        # Node by node, for the number of a family must fit 63 bits.
        result = torch.empty_like(graph[..., 0])
        for node in range(n):
            families, place = codes[..., node].unique(return_inverse=True)
            parents = ((families[:, None] >> nodes) & 1).to(graph)
            result[..., node] = self._log_evidence(nodes[node], parents, noise)[place]
        return result

    def _log_evidence(self, nodes: Tensor, parents: Tensor, noise: Noise) -> Tensor:
        """Of ``nodes``, broadcast against the weights of their ``parents`` (..., n)."""
        n = self.num_nodes
        scatter = self.moments.scatter[nodes]
        counts, own = self.counts[nodes], self.moments.scatter[nodes, nodes, nodes]
        cross = parents * self.moments.scatter[nodes, nodes]
        identity = torch.eye(n, dtype=torch.float64, device=parents.device)
        precision = parents[..., :, None] * scatter * parents[..., None, :] + identity / self.scale**2
        root = torch.linalg.cholesky(precision)
        whitened = torch.linalg.solve_triangular(root, cross[..., None], upper=False)[..., 0]
        squares = own - whitened.square().sum(-1)
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 2 * n * math.log(self.scale)
        return noise.log_evidence(counts, squares) - log_det / 2


class Network(Mechanism):
    r"""One hidden layer for each variable.

    .. math:: x_j = c_j + \sum_h d_{jh} \tanh\Big(e_{jh} + \sum_i G_{ij} A_{jih} x_i\Big) + \epsilon_j

    The graph masks the first layer. All parameters have independent normal priors, those of the output
    layer divided by the square root of the number of hidden units.
    """

    def __init__(self, values: Tensor, clamped: Tensor, num_hidden: int = 8, scale: float = 1.0) -> None:
        super().__init__(values, clamped)
        self.num_hidden, self.scale = num_hidden, scale

    @property
    def shape(self) -> tuple[int, int]:
        """For each variable: first layer (n x H), its biases (H), second layer (H), its bias."""
        return self.num_nodes, self.num_hidden * (self.num_nodes + 2) + 1

    def prior_scale(self, variance: Tensor) -> Tensor:
        """The same whatever the noise."""
        scale = torch.full(self.shape, self.scale, dtype=variance.dtype, device=variance.device)
        scale[:, -self.num_hidden - 1 : -1] /= math.sqrt(self.num_hidden)
        return scale.expand(*variance.shape[:-1], *self.shape)

    def used(self, graph: Tensor) -> Tensor:
        """The first layer only from parents; all others always."""
        first = (graph.mT > 0).repeat_interleave(self.num_hidden, dim=-1)
        others = torch.ones_like(first[..., :1]).expand(*first.shape[:-1], 2 * self.num_hidden + 1)
        return torch.cat([first, others], dim=-1)

    def mean(self, graph: Tensor, theta: Tensor) -> Tensor:
        """All networks in one product for each layer."""
        n, hidden = self.num_nodes, self.num_hidden
        first, bias, second, last = theta.split([n * hidden, hidden, hidden, 1], dim=-1)
        masked = graph.mT[..., None] * first.unflatten(-1, (n, hidden))
        inner = torch.einsum("ri,...jih->...rjh", self.values, masked) + bias[..., None, :, :]
        return (inner.tanh() * second[..., None, :, :]).sum(-1) + last[..., None, :, 0]


class Noise:
    r"""Variances of the noises: fixed, or each with an inverse gamma prior.

    Args:
        fixed: one standard deviation for all, or ``None`` for variances to be learnt.
        concentration: a of the prior density, proportional to :math:`v^{-a-1} e^{-b/v}`.
        rate: b.
    """

    def __init__(self, fixed: float | None, concentration: float = 1.0, rate: float = 0.1) -> None:
        self.fixed, self.concentration, self.rate = fixed, concentration, rate

    def log_prior(self, variance: Tensor) -> Tensor:
        """Log density of variances (..., n), summed over them; 0 where they are fixed."""
        if self.fixed is not None:
            return variance.new_zeros(variance.shape[:-1])
        a, b = self.concentration, self.rate
        each = a * math.log(b) - math.lgamma(a) - (a + 1) * variance.log() - b / variance
        return each.sum(-1)

    def log_evidence(self, counts: Tensor, squares: Tensor) -> Tensor:
        """Log density of N residuals with this sum of squares, the variance integrated out."""
        if self.fixed is not None:
            v = self.fixed**2
            return -counts / 2 * math.log(2 * math.pi * v) - squares / (2 * v)
        a, b = self.concentration, self.rate
        shape = a + counts / 2
        gammas = torch.lgamma(shape) - math.lgamma(a)
        return gammas - counts / 2 * math.log(2 * math.pi) + a * math.log(b) - shape * (b + squares / 2).log()
