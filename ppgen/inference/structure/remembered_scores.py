r"""Scores of families as a greedy search asks for them, one by one, worked out many at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ppgen.errors import PpgenError
from ppgen.inference.structure.family_prior import FamilyPrior
from ppgen.inference.structure.family_scores import sets_of_agents
from ppgen.inference.structure.scores.base import Score
from ppgen.inference.structure.table import Table

# Stands for -inf where a search takes differences; far below any score, and sums of it stay finite.
_NEVER = -1e30


class RememberedScores:
    r""":math:`\log \beta_v(P) + \log \rho_v(P)`, remembered, and on a miss computed with its siblings.

    A search that asks for a set with one more parent than before asks next for the others with one more. All
    of them go through the score in one call. Unknown agents are summed out, as in
    :func:`~ppgen.inference.structure.family_scores.dense_scores`.

    Args:
        table: the data.
        score: local score.
        prior: of families, constraints included.

    Attributes:
        num_refused: how many families the score refused, as those with too large a table.
    """

    def __init__(self, table: Table, score: Score, prior: FamilyPrior) -> None:
        self.table, self.score, self.prior = table, score, prior
        self.num_refused = 0
        self._agent_sets = sets_of_agents(table)
        sets = [[]] if self._agent_sets is None else [s.nonzero()[:, 0].tolist() for s in self._agent_sets]
        self._extras = [[table.num_variables + agent for agent in agents] for agents in sets]
        self._terms: list[dict[frozenset[int], Tensor]] = [{} for _ in range(table.num_variables)]
        self._totals: list[dict[frozenset[int], float]] = [{} for _ in range(table.num_variables)]
        self._priors: list[dict[frozenset[int], float]] = [{} for _ in range(table.num_variables)]
        self._last: list[frozenset[int] | None] = [None] * table.num_variables
        self._linkable = prior.allowed_edges | prior.allowed_edges.T

    @property
    def num_families(self) -> int:
        """How many families were scored."""
        return sum(map(len, self._totals))

    def of(self, node: int, parents: frozenset[int]) -> float:
        """Score and prior of a family; very low, not ``-inf``, where it is not allowed."""
        return max(self._of_data(node, parents) + self._priors[node][parents], _NEVER)

    def of_class(self, node: int, parents: frozenset[int]) -> float:
        """The score, with those constraints that do not hang on directions.

        For searches over equivalence classes, which score a family with directions that the graph need not
        have in the end: links forbidden both ways, and the number of parents.
        """
        allowed = self._linkable[list(parents), node].all() and len(parents) <= self.prior.max_parents
        return self._of_data(node, parents) if allowed else _NEVER * (1 + len(parents))

    def of_graphs(self, graphs: Tensor) -> Tensor:
        """Score and prior of whole DAGs, bool (S, n, n); shape (S,), float64, on the CPU."""
        totals = torch.zeros(len(graphs), dtype=torch.float64)
        for node in range(self.table.num_variables):
            families, which = _families(graphs, node)
            self._compute(node, families)
            values = [self._totals[node][f] + self._priors[node][f] for f in families]
            totals += torch.tensor(values, dtype=torch.float64)[which]
        return totals

    def agent_probabilities(self, graphs: Tensor, log_weights: Tensor) -> Tensor | None:
        """p(agent acts on variable), shape (A, n), averaged over graphs; ``None`` without agents."""
        if self._agent_sets is None:
            return None
        result = torch.zeros(self._agent_sets.shape[1], self.table.num_variables, dtype=torch.float64)
        weights = log_weights.softmax(0).cpu()
        for node in range(self.table.num_variables):
            families, which = _families(graphs, node)
            self._compute(node, families)
            share = torch.zeros(len(families), dtype=torch.float64).index_add_(0, which, weights)
            posterior = torch.stack([self._terms[node][f] for f in families]).softmax(-1)
            result[:, node] = share @ posterior @ self._agent_sets.double()
        return result

    def _of_data(self, node: int, parents: frozenset[int]) -> float:
        known = self._totals[node]
        if parents not in known:
            others = frozenset(self._linkable[:, node].nonzero()[:, 0].tolist())
            wanted = [parents]
            if not any(parents | {other} in known for other in others - parents):
                # Not a parent less than before, so one more: than in the set asked for last, or in the best.
                bases = [parents - {p} for p in parents] or [parents]
                last = self._last[node]
                base = last if last in bases else max(bases, key=lambda s: known.get(s, -math.inf))
                wanted += [base, *(base | {other} for other in sorted(others - base))]
            self._compute(node, [s for s in wanted if len(s) <= self.prior.max_parents or s == parents])
        self._last[node] = parents
        return known[parents]

    def _compute(self, node: int, families: Sequence[frozenset[int]]) -> None:
        missing = [f for f in dict.fromkeys(families) if f not in self._totals[node]]
        if not missing:
            return
        sets = [sorted(f) for f in missing]
        try:
            terms = self._terms_of(node, sets)
        except PpgenError:
            # One of them is too large a table; a search can do without that one.
            terms = torch.cat([self._alone(node, one) for one in sets])
        totals = terms.logsumexp(-1) - math.log(len(self._extras))
        members = torch.zeros(len(sets), self.table.num_variables, dtype=torch.bool)
        for row, one in zip(members, sets, strict=True):
            row[one] = True
        priors = self.prior.log_family_prior(node, members)
        self._totals[node].update(zip(missing, totals.tolist(), strict=True))
        self._priors[node].update(zip(missing, priors.tolist(), strict=True))
        if self._agent_sets is not None:
            self._terms[node].update(zip(missing, terms, strict=True))

    def _terms_of(self, node: int, sets: list[list[int]]) -> Tensor:
        """Scores with each set of agents beside the parents, shape (len(sets), Q), on the CPU."""
        asked = [[*one, *extra] for one in sets for extra in self._extras]
        return self.score.local(self.table, node, asked).double().cpu().reshape(len(sets), -1)

    def _alone(self, node: int, parents: list[int]) -> Tensor:
        try:
            return self._terms_of(node, [parents])
        except PpgenError:
            if not parents:
                raise
            self.num_refused += 1
            return torch.full((1, len(self._extras)), _NEVER, dtype=torch.float64)


def _families(graphs: Tensor, node: int) -> tuple[list[frozenset[int]], Tensor]:
    """The distinct parent sets of a node, and which of them each graph has."""
    sets, which = graphs[:, :, node].cpu().unique(dim=0, return_inverse=True)
    return [frozenset(row.nonzero()[:, 0].tolist()) for row in sets], which
