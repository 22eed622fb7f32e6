"""What a learner is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ppgen.contract import Estimate
from ppgen.inference.structure.prior import Constraints, GraphPrior
from ppgen.inference.structure.scores.base import Score
from ppgen.inference.structure.table import Table


@dataclass(frozen=True)
class Problem:
    """A table, the score of a family, the prior over graphs, and what is known of the edges.

    Attributes:
        table: the data, on the device that the work is done on.
        score: local score; ``None`` for methods that need none (tests, continuous optimisation).
        prior: over graphs.
        constraints: edges that must or cannot be there.
        progress: whether to show progress on stderr.
    """

    table: Table
    score: Score | None
    prior: GraphPrior
    constraints: Constraints
    progress: bool = True


@dataclass(frozen=True)
class WeightedGraphs:
    """Graphs drawn from a posterior, perhaps with weights.

    Attributes:
        adjacency: shape (S, n, n), bool; ``[s, i, j]`` is the edge i -> j.
        log_weights: shape (S,), normalised: their logsumexp is 0; equal where the draws need no weights.
    """

    adjacency: Tensor
    log_weights: Tensor


@runtime_checkable
class GraphSource(Protocol):
    """A distribution over DAGs, as a learner leaves it; :class:`GraphPosterior` gives it names and a face.

    Adjacency matrices are bool with ``[i, j]`` the edge i -> j; probabilities are float64.
    """

    num_nodes: int
    log_evidence: Estimate | None

    def edge_probabilities(self) -> Tensor:
        """p(i -> j | D), shape (n, n)."""

    def edge_errors(self) -> Tensor:
        """Monte-Carlo standard errors of :meth:`edge_probabilities`, same shape; 0 where exact."""

    def path_probabilities(self) -> Estimate:
        """Probability of a directed path from i to j, shape (n, n), with standard errors."""

    def parent_sets(self, node: int) -> tuple[Tensor, Tensor]:
        """Parent sets of a node, bool (F, n), and their posterior probabilities (F,), most probable first."""

    def map_graph(self) -> Tensor:
        """The most probable DAG, of all or of those seen, shape (n, n)."""

    def sample(self, num: int, *, seed: int | None = None) -> WeightedGraphs:
        """Draw DAGs."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values from which ``from_state`` of the class makes the source again."""


@dataclass(frozen=True)
class Learned:
    """What a method returns.

    Attributes:
        source: the distribution over graphs.
        warnings: what to doubt, one sentence each; an empty tuple where nothing.
        attributes: figures of the run (seconds, chains, acceptance, ...).
        agent_probabilities: p(agent acts on variable | D), shape (A, n), for uncertain interventions.
        draws: edges by chain and draw for ArviZ, bool (C, S, n, n), where the method has chains.
        weighted_graph: a real-valued adjacency (n, n) for methods that have coefficients.
    """

    source: GraphSource
    warnings: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    agent_probabilities: Tensor | None = None
    draws: Tensor | None = None
    weighted_graph: Tensor | None = None


@runtime_checkable
class Method(Protocol):
    """A way to learn graphs: a frozen dataclass of its options."""

    @property
    def name(self) -> str:
        """What it is called by; a class variable will do."""

    def run(self, problem: Problem, *, seed: int | None) -> Learned:
        """Learn."""
