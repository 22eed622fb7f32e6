"""One row of a Bayesian network as a distribution of Pyro."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppgen.distributions.missing import or_missing
from ppgen.distributions.network.density import NetworkDensity


@dataclass(frozen=True)
class DataRows:
    """Densities and draws in the units of the data.

    Attributes:
        network: densities of rows of level numbers and of standardised numbers.
        event_shape: shape of a row.
        centres: shape (n,), float64: a row x stands for (x - centres) * rates in the network.
        rates: shape (n,), float64.
        held: values that are set in every row, in the units of the network, by variable.
        dtype: of draws.
    """

    network: NetworkDensity
    event_shape: torch.Size
    centres: Tensor
    rates: Tensor
    held: Mapping[int, float]
    dtype: torch.dtype

    @property
    def discrete(self) -> Tensor:
        """Which variables have levels, bool (n,)."""
        sizes = self.network.structure.cardinalities
        return torch.tensor([size > 0 for size in sizes], device=self.centres.device)

    def encode(self, x: Tensor) -> Tensor:
        """Rows ``(N, *event_shape)`` as the network sees them, float64 (N, n)."""
        values = (x.reshape(len(x), -1).double() - self.centres) * self.rates
        return torch.where(self.discrete, values.round(), values)

    def decode(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`encode`, with any leading dimensions."""
        x = values / self.rates + self.centres
        return x.to(self.dtype).reshape(*values.shape[:-1], *self.event_shape)

    def apply_held(
        self, values: Tensor, is_set: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Rows with what is held filled in, what is set in them, and which of them say otherwise."""
        if not self.held:
            return values, is_set, None
        nodes = list(self.held)
        wanted = values.new_tensor(list(self.held.values()))
        given = values[:, nodes]
        other = (~given.isnan() & ((given - wanted).abs() > 1e-6 * (1 + wanted.abs()))).any(-1)
        values, is_set = (
            values.clone(),
            torch.zeros_like(values, dtype=torch.bool) if is_set is None else is_set.clone(),
        )
        values[:, nodes] = wanted
        is_set[:, nodes] = True
        return values, is_set, other

    def log_prob(self, x: Tensor, is_set: Tensor | None = None) -> Tensor:
        """Log density of what is known of rows ``(N, *event_shape)`` in each graph, (N, K), in nats.

        Args:
            x: rows; NaN where unknown.
            is_set: bool, shape (N, n): what was set by intervention.
        """
        if x.is_meta:
            return x.new_zeros(len(x), self.network.structure.num_graphs)
        values, is_set, other = self.apply_held(self.encode(x), is_set)
        found = self.network.log_prob(values, is_set)
        # The volume that standardising changes; what is set has no density.
        counted = ~values.isnan() & ~self.discrete
        counted = counted if is_set is None else counted & ~is_set
        found = found + torch.where(counted, self.rates.log(), 0.0).sum(-1, keepdim=True)
        return found if other is None else found.masked_fill(other[:, None], -torch.inf)

    def sample(self, graph: Tensor) -> Tensor:
        """A row from each of these graphs, int64 (M,), shape ``(M, *event_shape)``."""
        if graph.is_meta:
            return self.centres.new_empty(len(graph), *self.event_shape, dtype=self.dtype)
        return self.decode(self.network.sample(graph, self.held))


class NetworkRow(TorchDistribution):
    """All variables of a row, given the number of its graph.

    NaN in a value stands for a variable that was not seen; the density is then that of the rest.

    Args:
        density: densities and draws of rows.
        graph: number of the graph, int64, of any batch shape.
        event_shape: shape of a row.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False
    takes_missing = True

    def __init__(self, density: DataRows, graph: Tensor, event_shape: torch.Size) -> None:
        self.density, self.graph = density, graph
        super().__init__(graph.shape, event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Any numbers; NaN stands for what was not seen."""
        return or_missing(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> NetworkRow:
        """The same distribution on a larger batch shape."""
        return NetworkRow(self.density, self.graph.expand(torch.Size(batch_shape)), self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, in nats, of the broadcast batch shape."""
        batch = value.shape[: value.ndim - len(self.event_shape)]
        shape = torch.broadcast_shapes(batch, self.graph.shape)
        by_graph = self.density.log_prob(value.reshape(-1, *self.event_shape)).reshape(*batch, -1)
        # Inside all is float64; sites of one program share the parameters' type.
        by_graph = by_graph.to(self.density.dtype)
        by_graph = by_graph.expand(*shape, by_graph.shape[-1])
        return by_graph.gather(-1, self.graph.expand(shape)[..., None])[..., 0]

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Ancestral draws."""
        graph = self.graph.expand(torch.Size(sample_shape) + self.graph.shape)
        return self.density.sample(graph.reshape(-1)).reshape(*graph.shape, *self.event_shape)
