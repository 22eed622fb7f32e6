"""The exact posterior as a source of graphs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ppgen.contract import Estimate, Kind
from ppgen.errors import CheckpointError, ConfigError
from ppgen.inference.structure.exact.best import best_dag
from ppgen.inference.structure.exact.marginals import (
    PriorKind,
    edge_column,
    family_posterior,
    make_tables,
)
from ppgen.inference.structure.exact.order import OrderTables
from ppgen.inference.structure.exact.paths import order_paths, uniform_paths
from ppgen.inference.structure.exact.sampling import draw_by_order, draw_uniform
from ppgen.inference.structure.exact.uniform import UniformTables
from ppgen.inference.structure.families import members, unsqueeze
from ppgen.inference.structure.problem import WeightedGraphs
from ppgen.ops.dags import closure

# Up to here the descendants of every source are followed through the orders: 3^n states, seconds.
_MAX_ORDER_PATHS = 12
_PATH_DRAWS = 10_000
# Families below are not listed; 2^24 of them would hold less than 1e-8.
_LISTED = 1e-16


class ExactSource:
    """The posterior over all DAGs, from the scores of all families.

    Args:
        log_scores: score and log prior of the families, shape (n, 2^(n-1)), float64, as in
            :class:`~ppgen.inference.structure.families.DenseScores`; ``-inf`` where not allowed.
        prior: whether each DAG counts once (``"uniform"``) or once for each order that it fits (``"order"``).
        log_evidence: of the data, in nats.
        seed: of the draws that path probabilities under the order-modular prior come from above 12 nodes.
        tick: told of terms done while the sums are taken.

    Raises:
        ConfigError: no DAG has a positive weight.
    """

    def __init__(
        self,
        log_scores: Tensor,
        prior: PriorKind,
        *,
        log_evidence: Estimate | None = None,
        seed: int | None = None,
        tick: Callable[[int], object] | None = None,
    ) -> None:
        self.log_scores, self.prior = log_scores, prior
        self.num_nodes = len(log_scores)
        self.log_evidence = log_evidence
        self._seed = seed
        self._tick = tick

    @functools.cached_property
    def tables(self) -> OrderTables | UniformTables:
        """The sums over orders or DAGs; made when first asked for, also after loading."""
        tables = make_tables(self.log_scores, self.prior, self._tick)
        if not bool(tables.log_partition.isfinite()):
            raise ConfigError(
                f"constraints: no DAG on {self.num_nodes} nodes has a positive probability (log Z is "
                f"{float(tables.log_partition)}); relax the constraints or the prior"
            )
        return tables

    @property
    def log_partition(self) -> Tensor:
        """Log of the sum over DAGs of prior weight times likelihood, in nats, a scalar."""
        return self.tables.log_partition

    def family_posterior(self, node: int) -> Tensor:
        """p(P is the parent set of ``node`` | D), by the column of P in the table of scores: (2^(n-1),)."""
        return family_posterior(self.log_scores, self.tables, node)

    @functools.cached_property
    def _edges(self) -> Tensor:
        columns = [edge_column(self.family_posterior(v), v) for v in range(self.num_nodes)]
        return torch.stack(columns, 1).clamp(0.0, 1.0)

    def edge_probabilities(self) -> Tensor:
        """p(i -> j | D), shape (n, n)."""
        return self._edges.clone()

    def edge_errors(self) -> Tensor:
        """Zeros, shape (n, n): nothing was drawn at random."""
        return torch.zeros_like(self._edges)

    @functools.cached_property
    def _paths(self) -> Estimate:
        if isinstance(self.tables, UniformTables):
            return Estimate.of(uniform_paths(self.tables).clamp(0.0, 1.0), Kind.EXACT)
        if self.num_nodes <= _MAX_ORDER_PATHS:
            return Estimate.of(order_paths(self.tables).clamp(0.0, 1.0), Kind.EXACT)
        found = closure(self.sample(_PATH_DRAWS, seed=self._seed or 0).adjacency).double().mean(0)
        # A path in all draws or in none has an error too: as if it were seen, and missed, once more.
        smooth = (found * _PATH_DRAWS + 1) / (_PATH_DRAWS + 2)
        return Estimate.of(found, Kind.ESTIMATE, (smooth * (1 - smooth) / _PATH_DRAWS).sqrt())

    def path_probabilities(self) -> Estimate:
        """Probability of a directed path from i to j, shape (n, n).

        Exact, but for the order-modular prior above 12 nodes, where 10,000 drawn DAGs give an estimate
        with its standard errors.
        """
        return self._paths

    def parent_sets(self, node: int) -> tuple[Tensor, Tensor]:
        """Parent sets of ``node``, bool (F, n), and their probabilities (F,), most probable first.

        Sets less probable than 1e-16 are left out.
        """
        families = self.family_posterior(node)
        columns = (families > _LISTED).nonzero()[:, 0]
        values, order = families[columns].sort(descending=True, stable=True)
        return members(unsqueeze(columns[order], node), self.num_nodes), values

    def map_graph(self) -> Tensor:
        """The DAG of the largest score times family prior, bool (n, n).

        Under the uniform prior it is the most probable DAG. Under the order-modular prior the posterior also
        has the number of linear extensions as a factor, which is left out here.
        """
        return best_dag(self.log_scores).adjacency

    def sample(self, num: int, *, seed: int | None = None) -> WeightedGraphs:
        """Independent draws from the posterior, with equal weights."""
        if num < 1:
            raise ConfigError(f"num: expected a positive integer, got {num}")
        generator = make_generator(seed, self.log_scores.device)
        tables = self.tables
        if isinstance(tables, OrderTables):
            adjacency = draw_by_order(self.log_scores, tables, num, generator)
        else:
            adjacency = draw_uniform(self.log_scores, tables, num, generator)
        return WeightedGraphs(adjacency, self.log_scores.new_full((num,), -math.log(num)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The scores, the edge probabilities and the evidence; sums are taken again when needed."""
        tensors = {"log_scores": self.log_scores, "edges": self._edges}
        plain: dict[str, Any] = {"prior": self.prior, "seed": self._seed, "evidence_kind": None}
        if self.log_evidence is not None:
            tensors["log_evidence"] = self.log_evidence.value
            tensors["log_evidence_error"] = self.log_evidence.std_error
            plain["evidence_kind"] = str(self.log_evidence.kind)
        return tensors, plain

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Self:
        """The source that :meth:`state` was asked of.

        Raises:
            CheckpointError: tensors or values that do not fit together.
        """
        try:
            scores, edges, prior = tensors["log_scores"], tensors["edges"], plain["prior"]
            num_nodes = len(edges)
            fits = scores.shape == (num_nodes, 1 << (num_nodes - 1)) and edges.shape == (num_nodes, num_nodes)
            if not fits or prior not in ("uniform", "order"):
                raise CheckpointError(
                    f"an exact posterior needs log_scores (n, 2^(n-1)), edges (n, n) and a prior, got shapes "
                    f"{tuple(scores.shape)}, {tuple(edges.shape)} and {prior!r}; the file is damaged"
                )
            evidence = None
            if plain["evidence_kind"] is not None:
                value, error = tensors["log_evidence"], tensors["log_evidence_error"]
                evidence = Estimate.of(value, plain["evidence_kind"], error)
            source = cls(scores, prior, log_evidence=evidence, seed=plain["seed"])
        except KeyError as error:
            raise CheckpointError(f"an exact posterior lacks {error}; the file is damaged") from error
        source.__dict__["_edges"] = edges
        return source


def make_generator(seed: int | None, device: torch.device) -> torch.Generator:
    """A generator of its own; without a seed, its seed is drawn from torch's global generator."""
    generator = torch.Generator(device)
    return generator.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
