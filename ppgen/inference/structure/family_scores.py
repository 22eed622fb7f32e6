r"""Local scores of all families, or of those that a method needs.

Agents that act on unknown variables are summed out:
:math:`\log \beta_v(P) = \log \sum_Q \beta_v(P \cup Q)\, p(Q)` over the sets Q of at most ``max_agents``
agents, all alike a priori (Eaton & Murphy 2007, with the agents as binary parents; that they are roots and
not explained themselves makes the sum exact).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ppgen.errors import ConfigError
from ppgen.inference.structure.families import DenseScores, ListedScores, members, unsqueeze
from ppgen.inference.structure.prior import FamilyPrior, compile_prior
from ppgen.inference.structure.problem import Problem
from ppgen.inference.structure.scores.base import Score
from ppgen.inference.structure.scores.functions import lattice_size
from ppgen.inference.structure.scores.parts import Functions, PartScore
from ppgen.inference.structure.table import Table

#: Above this many bytes, nothing is allocated.
MAX_BYTES = 8 * 2**30

_Scores = TypeVar("_Scores", DenseScores, ListedScores)


def dense_bytes(num_nodes: int, num_agent_sets: int = 1) -> int:
    """Memory that :func:`dense_scores` takes at most, in bytes."""
    kept = 1 if num_agent_sets == 1 else 1 + num_agent_sets
    return 8 * ((kept * num_nodes << max(0, num_nodes - 1)) + (4 << num_nodes))


def dense_scores(problem: Problem, *, max_bytes: int = MAX_BYTES) -> DenseScores:
    """Scores of every variable with every set of others as parents, by counting each subset once.

    Args:
        problem: the table, the score, and the largest number of parents. The prior over graphs and the
            other constraints are not part of the scores: see :func:`add_prior`.
        max_bytes: refuse where more memory would be needed.

    Returns:
        Log scores; ``-inf`` for sets larger than the prior and constraints allow.

    Raises:
        ConfigError: no score, a score that the table does not fit, or too much memory.
        DataError: values that cannot be scored.
    """
    score, table = checked_score(problem)
    agent_sets = sets_of_agents(table)
    n, num_sets = table.num_variables, 1 if agent_sets is None else len(agent_sets)
    if (needed := dense_bytes(n, num_sets)) > max_bytes:
        raise ConfigError(
            f"table: the scores of all {n} * 2^{n - 1} families of {n} variables take {gibibytes(needed)}"
            f"{f' with {num_sets} sets of agents' if num_sets > 1 else ''}, the limit is "
            f"{gibibytes(max_bytes)}; use method='order_mcmc' or 'partition_mcmc'"
        )
    largest = family_prior(problem).max_parents
    terms = torch.zeros(num_sets, n, 1 << (n - 1), dtype=torch.float64, device=table.device)
    extras = agent_columns(agent_sets, n)
    if isinstance(score, PartScore):
        _dense_parts(score, table, largest, extras, terms, problem.progress)
    else:
        _dense_local(score, table, terms, problem.progress)
    if largest < n - 1:
        size = torch.zeros(1, dtype=torch.int64, device=table.device)
        for _ in range(n - 1):
            size = torch.cat([size, size + 1])
        terms.masked_fill_(size > largest, -math.inf)
    if agent_sets is None:
        return DenseScores(terms[0])
    terms -= math.log(num_sets)
    by_family = terms.permute(1, 2, 0).contiguous()
    return DenseScores(by_family.logsumexp(-1), agent_sets.to(table.device), by_family)


def sets_of_agents(table: Table) -> Tensor | None:
    """The sets of agents that may act on one variable, smallest first, bool (Q, A); ``None`` without."""
    if table.agents is None or not table.agents.shape[1]:
        return None
    num = table.agents.shape[1]
    chosen = [
        q for size in range(min(table.max_agents, num) + 1) for q in itertools.combinations(range(num), size)
    ]
    result = torch.zeros(len(chosen), num, dtype=torch.bool)
    for row, agents in zip(result, chosen, strict=True):
        row[list(agents)] = True
    return result


def family_prior(problem: Problem) -> FamilyPrior:
    """The problem's prior and constraints, for the variables of its table."""
    return compile_prior(problem.prior, problem.constraints, problem.table.names)


def log_priors(problem: Problem, scores: _Scores) -> _Scores:
    r"""The prior's factors :math:`\log \rho_v(P)`, constraints included, of the families that ``scores`` has.

    Returns:
        The same layout, without agents.
    """
    prior = family_prior(problem)
    if isinstance(scores, DenseScores):
        device = scores.log_scores.device
        return DenseScores(torch.stack([prior.log_dense_prior(v, device) for v in range(prior.num_nodes)]))
    logs = tuple(prior.log_listed_prior(v, parents) for v, parents in enumerate(scores.parents))
    return ListedScores(scores.parents, logs)


def add_prior(scores: DenseScores, problem: Problem) -> DenseScores:
    """Scores times the prior's factors: the weights of families in the posterior."""
    prior = family_prior(problem)
    if prior.is_flat:
        return scores
    priors = log_priors(problem, scores).log_scores
    terms = scores.agent_terms
    return replace(
        scores,
        log_scores=scores.log_scores + priors,
        agent_terms=None if terms is None else terms + priors[..., None],
    )


def checked_score(problem: Problem) -> tuple[Score, Table]:
    """The problem's score and table, which fit each other."""
    if problem.score is None:
        raise ConfigError("score: expected a score such as BDeu(), got None")
    problem.score.check(problem.table)
    if sets_of_agents(problem.table) is not None and not isinstance(problem.score, PartScore):
        raise ConfigError(f"score: {problem.score.name} does not know of agents; use 'bdeu'")
    return problem.score, problem.table


def agent_columns(agent_sets: Tensor | None, num_nodes: int) -> list[list[int]]:
    """The columns of each set of agents: they follow the variables."""
    if agent_sets is None:
        return [[]]
    return [(row.nonzero()[:, 0] + num_nodes).tolist() for row in agent_sets]


def _dense_parts(
    score: PartScore,
    table: Table,
    largest: int,
    extras: Sequence[Sequence[int]],
    terms: Tensor,
    progress: bool,
) -> None:
    """Add to ``terms`` (Q, n, 2^(n-1)) the parts of the score, each lattice made once."""
    n = table.num_variables
    functions = Functions(table)
    users: dict[Any, list[tuple[int, int, bool]]] = {}
    for node in range(n):
        for part in score.parts(table, node):
            users.setdefault(functions(part), []).append((node, part.sign, part.joint))
    total = len(users) * len(extras) * lattice_size(n, None)
    with progress_bar(total, progress, "set") as bar:
        for function, uses in users.items():
            for index, extra in enumerate(extras):
                lattice = function.lattice(n, extra, min(n, largest + 1), bar.update)
                for node, sign, joint in uses:
                    # Bit ``node`` is the middle dimension; without it the others are in the layout's order.
                    halves = lattice.view(-1, 2, 1 << node)
                    terms[index, node].view(-1, 1 << node).add_(halves[:, int(joint)], alpha=sign)


def _dense_local(score: Score, table: Table, terms: Tensor, progress: bool) -> None:
    """Fill ``terms`` (1, n, 2^(n-1)) by the score's own way."""
    n = table.num_variables
    with progress_bar(n, progress, "variable") as bar:
        for node in range(n):
            inside = members(unsqueeze(torch.arange(1 << (n - 1)), node), n)
            terms[0, node] = score.local(table, node, [row.nonzero()[:, 0].tolist() for row in inside])
            bar.update(1)


def progress_bar(total: int, progress: bool, unit: str) -> tqdm[Any]:
    """A bar on stderr that is gone when done."""
    return tqdm(total=total, disable=not progress, unit=unit, desc="scores", leave=False, unit_scale=True)


def gibibytes(num: float) -> str:
    """A number of bytes, for people."""
    return f"{num / 2**30:.3g} GiB"
