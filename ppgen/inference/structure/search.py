r"""Greedy searches through pgmpy as methods: one graph, and the graphs that the data cannot tell from it.

A search ends in one graph, but data alone do not tell apart the DAGs of a Markov equivalence class. What the
methods here give back is therefore a distribution over the class of the graph that was found: each member
that the constraints allow, weighted by its score and prior (PC has no score: all alike). A score that is the
same for the whole class, as BDeu and BIC are without interventions, makes that uniform; interventional data
tip it towards the directions that they support. How sure one can be of the class itself it does not say:
:class:`~ppgen.inference.structure.bootstrap.Bootstrap` of the same method does, or a posterior.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError, DataWarning, PpgenWarning, SamplingWarning
from ppgen.inference import pgmpy_adapter
from ppgen.inference.structure.family_prior import FamilyPrior
from ppgen.inference.structure.graph_samples import SampledSource
from ppgen.inference.structure.orientation import (
    arrows_of_colliders,
    complete,
    extensions,
    nearest,
    with_knowledge,
)
from ppgen.inference.structure.prior import compile_prior
from ppgen.inference.structure.problem import Learned, Problem
from ppgen.inference.structure.remembered_scores import RememberedScores
from ppgen.inference.structure.table import Table
from ppgen.inference.structure.warned import warn
from ppgen.ops.dags import cpdag, unique_graphs

# Members of a class whose scores differ by less, in nats, count as alike: the rounding of sums over rows.
_SAME = 1e-6
_ONE_GRAPH = (
    "{} gives the class of one graph, and its probabilities say nothing of other classes; a bootstrap or a "
    "posterior (method='exact', 'partition_mcmc') says how sure an edge is"
)


@dataclass(frozen=True)
class HillClimb:
    """Hill climbing over DAGs with a list of forbidden moves back (pgmpy's ``HillClimbSearch``).

    Every score and every kind of intervention works, and constraints are kept in each step. It ends in a
    local maximum, often some edges away from the best graph; ``method="exact"`` gives the best where it fits.

    Attributes:
        tabu_length: how many of the latest steps may not be undone.
        min_improvement: the search stops at steps that gain less, in nats.
        max_members: up to how many DAGs of the class are listed; beyond, as many are drawn.
    """

    tabu_length: int = 100
    min_improvement: float = 1e-4
    max_members: int = 1000
    name: ClassVar[str] = "hill_climb"

    def __post_init__(self) -> None:
        _check_positive(tabu_length=self.tabu_length, max_members=self.max_members)
        _check_non_negative(min_improvement=self.min_improvement)

    def run(self, problem: Problem, *, seed: int | None = None) -> Learned:
        """Learn; ``seed`` is for drawing from classes with more than ``max_members`` DAGs.

        Raises:
            ConfigError: no score, or constraints that contradict each other.
        """
        start = time.perf_counter()
        prior, scores = _prepare(problem, "hill climbing")
        graph = _climb(scores, prior, self)
        doubts = _Doubts("hill climbing")
        doubts.about_prior(prior)
        members, log_weights, figures = _members(
            cpdag(graph), prior, scores, graph, self.max_members, seed, doubts
        )
        doubts.about_refused(scores)
        figures["num_families"] = scores.num_families
        return doubts.learned(problem.table, members, log_weights, start, figures, scores)


@dataclass(frozen=True)
class GES:
    """Greedy equivalence search (Chickering 2002; pgmpy's ``GES``), from class to class of DAGs.

    With enough data and a score that does not tell members of a class apart it finds the class of the truth.
    The search itself uses only the rows in which nothing was set, since interventions tell members apart; it
    warns of it. All rows, with their interventions, then weigh the members of the class.

    The search keeps pairs apart that constraints forbid in both directions, and the limit on parents. Where
    no member of the class meets the other constraints, hill climbing goes on from the nearest DAG that does,
    and a warning says so.

    Attributes:
        min_improvement: the search stops at steps that gain less, in nats.
        max_members: up to how many DAGs of the class are listed; beyond, as many are drawn.
    """

    min_improvement: float = 1e-6
    max_members: int = 1000
    name: ClassVar[str] = "ges"

    def __post_init__(self) -> None:
        _check_positive(max_members=self.max_members)
        _check_non_negative(min_improvement=self.min_improvement)

    def run(self, problem: Problem, *, seed: int | None = None) -> Learned:
        """Learn; ``seed`` is for drawing from classes with more than ``max_members`` DAGs.

        Raises:
            ConfigError: no score, or constraints that contradict each other.
            DataError: no rows without interventions.
        """
        start = time.perf_counter()
        prior, scores = _prepare(problem, "GES")
        doubts = _Doubts("GES")
        doubts.about_prior(prior)
        rows = doubts.observational(problem.table)
        searched = scores if rows is problem.table else RememberedScores(rows, scores.score, prior)
        graph = pgmpy_adapter.ges(
            problem.table.num_variables, searched.of_class, min_improvement=self.min_improvement
        )
        known = with_knowledge(graph, prior)
        fits = torch.equal(known | known.T, graph | graph.T)
        found = _members(known, prior, scores, None, self.max_members, seed, doubts) if fits else None
        if found is None or not len(found[0]):
            doubts.say(
                SamplingWarning,
                "no DAG in the class that GES found meets the constraints: hill climbing went on from the "
                "nearest one that does",
            )
            nearby = _within_parents(nearest(known, prior), prior, scores)
            graph = _climb(scores, prior, HillClimb(), nearby)
            found = _members(cpdag(graph), prior, scores, graph, self.max_members, seed, doubts)
        members, log_weights, figures = found
        doubts.about_refused(scores)
        figures["num_families"] = scores.num_families
        return doubts.learned(problem.table, members, log_weights, start, figures, scores)


@dataclass(frozen=True)
class PC:
    """The PC algorithm (Spirtes & Glymour; the stable variant), links by tests with pgmpy's code.

    No score and no prior are used. Only rows in which nothing was set enter the tests; a warning says how
    many are left out. Links that constraints forbid are taken out and required ones put in, directions
    follow the constraints, and of too many parents those with the weakest links go. Where arrows contradict
    each other, which finite samples bring about, the DAG that breaks fewest of them is taken, and a warning
    says so.

    Attributes:
        significance: pairs with a p-value at or above it count as independent.
        test: name of the test: ``chi_square`` (default), ``g_sq``, ... for discrete data, ``pearsonr``
            (default), ``fisher_z``, ... for continuous, ``pillai`` for mixed data, which is slow.
        max_conditioning: the largest number of variables to condition on.
        max_members: up to how many DAGs of the class are listed; beyond, as many are drawn.
    """

    significance: float = 0.01
    test: str | None = None
    max_conditioning: int = 5
    max_members: int = 1000
    name: ClassVar[str] = "pc"

    def __post_init__(self) -> None:
        _check_positive(max_members=self.max_members)
        _check_non_negative(max_conditioning=self.max_conditioning)
        if not 0 < self.significance < 1:
            raise ConfigError(f"significance: expected a number between 0 and 1, got {self.significance!r}")

    def run(self, problem: Problem, *, seed: int | None = None) -> Learned:
        """Learn; ``seed`` is for drawing from classes with more than ``max_members`` DAGs.

        Raises:
            ConfigError: a test that is not for these data, or constraints that contradict each other.
            DataError: no rows without interventions.
        """
        start = time.perf_counter()
        table = problem.table
        prior = compile_prior(problem.prior, problem.constraints, table.names)
        doubts = _Doubts("PC")
        if not compile_prior(problem.prior, type(problem.constraints)(), table.names).is_flat:
            doubts.say(DataWarning, "PC uses no prior: of the prior, only edges of probability 0 and 1 count")
        rows = doubts.observational(table)
        links, separating = pgmpy_adapter.pc_skeleton(
            rows, test=self.test, significance=self.significance, max_conditioning=self.max_conditioning
        )
        allowed = prior.allowed_edges & ~prior.required_edges.T
        graph = with_knowledge(arrows_of_colliders(links, separating, allowed), prior)
        closed = complete(graph)
        members, log_weights, figures = _members(
            graph if closed is None else closed, prior, None, None, self.max_members, seed, doubts
        )
        if not len(members):
            doubts.say(
                SamplingWarning,
                "the directions that PC found contradict each other or the constraints: the DAG that breaks "
                "fewest of them was taken",
            )
            members = _within_parents(nearest(graph, prior), prior, _Strengths(rows))[None]
            log_weights = torch.zeros(1, dtype=torch.float64)
            figures = {"num_members": 1, "all_members": True}
        return doubts.learned(table, members, log_weights, start, figures)


# -- pieces of all three --------------------------------------------------------------------


class _Doubts:
    """What to doubt of a run: said as a warning once, and kept for the result."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.sentences: list[str] = []

    def say(self, category: type[PpgenWarning], sentence: str) -> None:
        self.sentences.append(sentence)
        warn(sentence, category)

    def about_prior(self, prior: FamilyPrior) -> None:
        if prior.kind == "order":
            self.say(
                DataWarning,
                f"{self.method} takes the prior over graphs as uniform up to its factors: the order-modular "
                "weight of a graph is not a sum over families",
            )

    def observational(self, table: Table) -> Table:
        """The rows in which nothing was set."""
        touched = table.clamped.any(1)
        if table.agents is not None:
            touched = touched | table.agents.any(1)
        number = int(touched.sum())
        if number == 0:
            return table
        if number > table.num_rows - 2:
            raise DataError(
                f"interventions: {self.method} cannot use interventions and learns from the other rows, of "
                "which "
                f"{table.num_rows - number} are left of {table.num_rows}; use method='exact', 'order_mcmc' "
                "or 'hill_climb', which use all"
            )
        self.say(
            DataWarning,
            f"{self.method} cannot use interventions: {number} of {table.num_rows} rows, in which something "
            "was set, are left out of its search",
        )
        return table.rows(~touched)

    def about_refused(self, scores: RememberedScores) -> None:
        if scores.num_refused:
            self.say(
                DataWarning,
                f"{scores.num_refused} families were not looked at: their tables are larger than the score "
                "allows",
            )

    def learned(
        self,
        table: Table,
        members: Tensor,
        log_weights: Tensor,
        start: float,
        figures: dict[str, Any],
        scores: RememberedScores | None = None,
    ) -> Learned:
        agents = None if scores is None else scores.agent_probabilities(members, log_weights)
        return Learned(
            source=SampledSource(
                members.to(table.device),
                log_weights.to(table.device),
                listed=figures["all_members"],
            ),
            warnings=(*self.sentences, _ONE_GRAPH.format(self.method)),
            attributes={**figures, "seconds": time.perf_counter() - start},
            agent_probabilities=None if agents is None else agents.to(table.device),
        )


def _prepare(problem: Problem, method: str) -> tuple[FamilyPrior, RememberedScores]:
    table, score = problem.table, problem.score
    prior = compile_prior(problem.prior, problem.constraints, table.names)
    if score is None:
        raise ConfigError(f"score: {method} needs one, got None; leave it out for the default of the data")
    score.check(table)
    return prior, RememberedScores(table, score, prior)


def _climb(
    scores: RememberedScores, prior: FamilyPrior, options: HillClimb, start: Tensor | None = None
) -> Tensor:
    n = prior.num_nodes
    forbidden = ~prior.allowed_edges & ~torch.eye(n, dtype=torch.bool)
    return pgmpy_adapter.hill_climb(
        n,
        scores.of,
        forbidden=map(tuple, forbidden.nonzero().tolist()),
        required=map(tuple, prior.required_edges.nonzero().tolist()),
        max_parents=prior.max_parents,
        start=start,
        tabu_length=options.tabu_length,
        min_improvement=options.min_improvement,
    )


def _members(
    graph: Tensor,
    prior: FamilyPrior,
    scores: RememberedScores | None,
    found: Tensor | None,
    limit: int,
    seed: int | None,
    doubts: _Doubts,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """DAGs of the class of a graph that the constraints allow, with normalised log weights."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    listed = extensions(with_knowledge(graph, prior), prior, limit=limit, generator=generator)
    members, log_weights = listed.adjacency, listed.log_weights
    if scores is not None and len(members):
        values = scores.of_graphs(members)
        if float(values.max() - values.min()) > _SAME:
            if not listed.complete:
                # Draws of equal graphs are one graph, and the one that the search ended in belongs to them.
                members = unique_graphs(torch.cat([members, found[None]]) if found is not None else members)[
                    0
                ]
                values, log_weights = (
                    scores.of_graphs(members),
                    torch.zeros(len(members), dtype=torch.float64),
                )
            log_weights = log_weights + values
    if not listed.complete and len(members):
        doubts.say(
            SamplingWarning,
            f"the class that {doubts.method} found has more than {limit} DAGs: probabilities within it come "
            f"from {len(members)} of them",
        )
    log_weights = log_weights - log_weights.logsumexp(0)
    figures = {"num_members": len(members), "all_members": listed.complete}
    return members, log_weights, figures


class _Families(Protocol):
    def of(self, node: int, parents: frozenset[int]) -> float:
        """How good a family is; larger is better."""


def _within_parents(graph: Tensor, prior: FamilyPrior, scores: _Families) -> Tensor:
    """The graph without the parents that are too many, the least useful one taken out first."""
    graph = graph.clone()
    for node in range(len(graph)):
        while len(parents := frozenset(graph[:, node].nonzero()[:, 0].tolist())) > prior.max_parents:
            loose = [p for p in sorted(parents) if not prior.required_edges[p, node]]
            without = {p: scores.of(node, parents - {p}) for p in loose}
            graph[max(without, key=without.__getitem__), node] = False
    return graph


class _Strengths:
    """For PC, which has no score: how well parents go with a node, by pairwise mutual information or R^2."""

    def __init__(self, table: Table) -> None:
        self._values = table.values.cpu()
        self._cardinalities = table.cardinalities

    def of(self, node: int, parents: frozenset[int]) -> float:
        return sum(self._pair(node, p) for p in sorted(parents))

    def _pair(self, first: int, second: int) -> float:
        a, b = self._values[:, first], self._values[:, second]
        k, m = self._cardinalities[first], self._cardinalities[second]
        if not k or not m:
            return float(torch.corrcoef(torch.stack([a, b]))[0, 1].abs().nan_to_num())
        counts = torch.bincount((a * m + b).long(), minlength=k * m).reshape(k, m).double() / len(a)
        independent = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True)
        return float((torch.xlogy(counts, counts) - torch.xlogy(counts, independent)).sum())


def _check_positive(**options: int) -> None:
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}: expected a positive whole number, got {value!r}")


def _check_non_negative(**options: float) -> None:
    for name, value in options.items():
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name}: expected a finite number >= 0, got {value!r}")
