"""The method ``exact``: which of the exact ways fits, what it costs, and when none does."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from ppgen.contract import Estimate, Kind
from ppgen.errors import ConfigError, DataError, SamplingWarning
from ppgen.inference.structure.exact.best import columns_of
from ppgen.inference.structure.exact.order import OrderTables
from ppgen.inference.structure.exact.reweighted import draw_reweighted
from ppgen.inference.structure.exact.source import ExactSource, make_generator
from ppgen.inference.structure.exact.uniform import UniformTables
from ppgen.inference.structure.families import DenseScores
from ppgen.inference.structure.family_prior import FamilyPrior
from ppgen.inference.structure.family_scores import (
    dense_bytes,
    dense_scores,
    family_prior,
    log_priors,
    sets_of_agents,
)
from ppgen.inference.structure.graph_samples import SampledSource
from ppgen.inference.structure.problem import Learned, Problem
from ppgen.inference.structure.warned import warn

# Seconds on one core: a term of the sums over DAGs, of 3^n; one of the sums over orders, of n^2 2^n.
_SECONDS_PER_DAG_TERM = 6e-8
_SECONDS_PER_ORDER_TERM = 1e-8
# Above this rounding may be seen in probabilities.
_ROUNDING = 1e-6
_FEW_DRAWS = 100.0


@dataclass(frozen=True)
class Cost:
    """What a way takes, as estimated beforehand on one core of a present machine.

    Attributes:
        way: ``"dag sums"``, ``"order sums"`` or ``"weighted draws"``.
        gibibytes: memory for tables.
        seconds: for the sums, after the scores.
    """

    way: str
    gibibytes: float
    seconds: float


@dataclass(frozen=True)
class Exact:
    """The posterior over all DAGs by sums over their lattice, without sampling error.

    Under the order-modular prior the sums are over orders (Koivisto & Sood 2004), 23 nodes within a minute.
    Under the uniform prior they are over DAGs (Tian & He 2009), 18 nodes within half a minute; where that
    does not fit ``max_seconds``, DAGs are drawn exactly under the order-modular prior and weighted by one
    over their numbers of linear extensions, which gives estimates with standard errors.

    Attributes:
        max_memory: GiB that tables may take; estimated before anything is allocated.
        max_seconds: that the sums may take on one core; estimated beforehand as well.
        num_draws: DAGs drawn where the sums over DAGs do not fit.
    """

    max_memory: float = 8.0
    max_seconds: float = 120.0
    num_draws: int = 20_000
    name: ClassVar[str] = "exact"

    def __post_init__(self) -> None:
        for name in ("max_memory", "max_seconds"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{name}: expected a positive number, got {value!r}")
        if not isinstance(self.num_draws, int) or self.num_draws < 2:
            raise ConfigError(f"num_draws: expected an integer of 2 or more, got {self.num_draws!r}")

    def plan(self, num_nodes: int, prior: str = "uniform", *, num_agent_sets: int = 1) -> Cost:
        """The way that would be taken for so many nodes, and its cost.

        Args:
            num_nodes: number of variables.
            prior: its kind, ``"uniform"`` or ``"order"``.
            num_agent_sets: sets of agents that may act on a variable, where their targets are unknown.

        Raises:
            ConfigError: none is within the limits.
        """
        ways = _costs(num_nodes, prior, num_agent_sets)
        for cost in ways:
            if cost.gibibytes <= self.max_memory and cost.seconds <= self.max_seconds:
                return cost
        least = ways[-1]
        other = "order_mcmc" if prior == "order" else "partition_mcmc"
        raise ConfigError(
            f"method: exact sums for {num_nodes} nodes take about {_amount(least.gibibytes)} GiB and "
            f"{_amount(least.seconds)} s ({least.way}), above max_memory={self.max_memory:g} GiB or "
            f"max_seconds={self.max_seconds:g}; use method={other!r}, or raise the limits of method 'exact'"
        )

    def run(self, problem: Problem, *, seed: int | None = None) -> Learned:
        """Learn; ``seed`` is for weighted draws and, under the order prior, for paths above 12 nodes.

        Raises:
            ConfigError: too many nodes for the limits, no score, or constraints that no DAG meets.
            DataError: a score that is not a number.
        """
        if problem.score is None:
            raise ConfigError("score: method 'exact' needs one, such as structure.BDeu(1.0); got None")
        agents = sets_of_agents(problem.table)
        cost = self.plan(
            problem.table.num_variables,
            problem.prior.kind,
            num_agent_sets=1 if agents is None else len(agents),
        )
        start = time.perf_counter()
        prior = family_prior(problem)
        scores = dense_scores(problem, max_bytes=int(self.max_memory * 2**30))
        if bool(scores.log_scores.isnan().any()):
            raise DataError(
                f"score: {problem.score.name} gave NaN for a family; check the table for extremes"
            )
        scored = time.perf_counter()
        log_prior = log_priors(problem, scores).log_scores
        attributes: dict[str, Any] = {"way": cost.way, "seconds_scores": scored - start}
        if cost.way == "weighted draws":
            learned = self._by_draws(problem, prior, log_prior, scores, seed, attributes)
        else:
            learned = self._by_sums(problem, prior, log_prior, scores, seed, attributes)
        attributes["seconds_sums"] = time.perf_counter() - scored
        return learned

    def _by_sums(
        self,
        problem: Problem,
        prior: FamilyPrior,
        log_prior: Tensor,
        scores: DenseScores,
        seed: int | None,
        attributes: dict[str, Any],
    ) -> Learned:
        kind = prior.kind
        num_terms = 2 * 3**prior.num_nodes * (1 if prior.is_flat else 2)
        hidden = not problem.progress or kind == "order"
        with tqdm(
            total=num_terms, desc="sums over DAGs", disable=hidden, leave=False, unit_scale=True
        ) as bar:
            if prior.is_flat:
                log_total = torch.as_tensor(log_num_graphs(prior.num_nodes, kind), dtype=torch.float64)
            else:
                log_total = ExactSource(log_prior, kind, tick=bar.update).log_partition.cpu()
            posterior = ExactSource(log_prior.add_(scores.log_scores), kind, seed=seed, tick=bar.update)
            posterior.log_evidence = Estimate.of(posterior.log_partition.cpu() - log_total, Kind.EXACT)
        warnings = []
        if isinstance(posterior.tables, UniformTables):
            error = attributes["rounding_error"] = posterior.tables.rounding_error
            if error > _ROUNDING:
                warnings.append(
                    f"rounding in alternating sums over DAGs may have changed probabilities by {error:.1e}"
                )
                warn(warnings[-1], SamplingWarning)
        families = None
        if scores.agent_terms is not None:
            families = [posterior.family_posterior(v) for v in range(prior.num_nodes)]
        return Learned(
            source=posterior,
            warnings=tuple(warnings),
            attributes=attributes,
            agent_probabilities=None if families is None else agent_probabilities(scores, families),
        )

    def _by_draws(
        self,
        problem: Problem,
        prior: FamilyPrior,
        log_prior: Tensor,
        scores: DenseScores,
        seed: int | None,
        attributes: dict[str, Any],
    ) -> Learned:
        generator = make_generator(seed, log_prior.device)
        if prior.is_flat:
            log_total = Estimate.of(
                log_prior.new_tensor(log_num_graphs(prior.num_nodes, "uniform")), Kind.EXACT
            )
        else:
            drawn = draw_reweighted(log_prior, OrderTables(log_prior), self.num_draws, generator)
            log_total = drawn.log_partition
        log_scores = log_prior.add_(scores.log_scores)
        drawn = draw_reweighted(log_scores, OrderTables(log_scores), self.num_draws, generator)
        evidence = Estimate(
            drawn.log_partition.value - log_total.value,
            Kind.ESTIMATE,
            torch.hypot(drawn.log_partition.std_error, log_total.std_error),
        )
        attributes |= {"num_draws": self.num_draws, "effective_draws": drawn.effective_size}
        warnings = [
            f"{prior.num_nodes} nodes are too many for sums over DAGs in max_seconds={self.max_seconds:g}: "
            f"estimates from {self.num_draws} draws with weights, worth {drawn.effective_size:.0f}"
        ]
        if drawn.effective_size < _FEW_DRAWS:
            warnings.append("so few effective draws tell little; use method='partition_mcmc'")
        for sentence in warnings:
            warn(sentence, SamplingWarning)
        agents = None
        if scores.agent_terms is not None:
            agents = agent_probabilities(scores, _drawn_families(drawn.adjacency, drawn.log_weights))
        source = SampledSource(
            drawn.adjacency,
            drawn.log_weights,
            log_scores=_scores_of(log_scores, drawn.adjacency),
            log_evidence=evidence,
        )
        return Learned(source, tuple(warnings), attributes, agents)


def log_num_graphs(num_nodes: int, kind: str) -> float:
    """Log of the number of DAGs (Robinson 1973), or for ``"order"`` of pairs of an order and a DAG in it."""
    if kind == "order":
        return math.lgamma(num_nodes + 1) + num_nodes * (num_nodes - 1) / 2 * math.log(2)
    counts = [1]
    for size in range(1, num_nodes + 1):
        counts.append(
            sum(
                (-1) ** (k + 1) * math.comb(size, k) * 2 ** (k * (size - k)) * counts[size - k]
                for k in range(1, size + 1)
            )
        )
    return math.log(counts[num_nodes])


def agent_probabilities(scores: DenseScores, families: list[Tensor]) -> Tensor:
    r"""p(agent acts on v | D), :math:`\sum_P p(v, P) \sum_{Q \ni a} p(Q \mid v, P)`, shape (A, n).

    Args:
        scores: with ``agent_sets`` and ``agent_terms``.
        families: posterior of the parent sets of each node, by column, (2^(n-1),) each.
    """
    if scores.agent_sets is None or scores.agent_terms is None:
        raise ConfigError("scores: expected scores with agent_sets and agent_terms, got none")
    sets = scores.agent_sets.to(scores.agent_terms.dtype)
    columns = []
    for terms, weights in zip(scores.agent_terms, families, strict=True):
        used = (weights > 0).nonzero()[:, 0]
        columns.append(weights[used] @ terms[used].softmax(-1) @ sets)
    return torch.stack(columns, 1)


def _drawn_families(adjacency: Tensor, log_weights: Tensor) -> list[Tensor]:
    """Weighted frequencies of the parent sets of each node, by column, (2^(n-1),) each."""
    size, weights = 1 << (adjacency.shape[-1] - 1), log_weights.exp()
    return [weights.new_zeros(size).index_add_(0, column, weights) for column in columns_of(adjacency).T]


def _scores_of(log_scores: Tensor, adjacency: Tensor) -> Tensor:
    return log_scores.gather(1, columns_of(adjacency).T).sum(0)


def _costs(num_nodes: int, prior: str, num_agent_sets: int) -> list[Cost]:
    """The ways there are, the preferred one first."""
    n = num_nodes
    # Beside the scores, tables of the same size: prior or posterior, sums over subsets, and one to work in.
    table = n * 2.0 ** (n - 1) * 8 / 2**30
    scores = dense_bytes(n, num_agent_sets) / 2**30
    orders = _SECONDS_PER_ORDER_TERM * n**2 * 2.0**n
    if prior == "order":
        return [Cost("order sums", scores + 2 * table, orders)]
    return [
        Cost("dag sums", scores + 3 * table, _SECONDS_PER_DAG_TERM * 3.0**n),
        # Drawing parents goes through the stages of a transform again, for one node at a time.
        Cost("weighted draws", scores + 3 * table, 1.5 * orders),
    ]


def _amount(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"
