r"""Local scores of the families that the sampled methods walk over.

**Pruning.** Let Q be a subset of P, both allowed as parents of v. In whatever DAG v has parents P, taking Q
instead leaves a DAG, and one with at least as many linear extensions; and the map is one to one for given P
and Q. So :math:`p(P_v = P \mid D) \le e^{\log\beta_v(P) - \log\beta_v(Q)}\, p(P_v = Q \mid D)` under both
priors over DAGs, where :math:`\beta` contains the prior's factors, and a set that weighs less than
``prune`` times one of its allowed subsets has a posterior probability below ``prune``, whatever the other
families are. Leaving out all such sets moves no probability by more than ``prune`` times their number.
(Compare de Campos & Ji 2011.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.structure.families import ListedScores
from ppgen.inference.structure.family_scores import (
    MAX_BYTES,
    agent_columns,
    checked_score,
    family_prior,
    gibibytes,
    progress_bar,
    sets_of_agents,
)
from ppgen.inference.structure.prior import FamilyPrior
from ppgen.inference.structure.problem import Problem
from ppgen.inference.structure.scores.base import Score
from ppgen.inference.structure.scores.functions import SetFunction
from ppgen.inference.structure.scores.parts import Functions, PartScore
from ppgen.inference.structure.scores.subsets import count_subsets, ranks, subsets
from ppgen.inference.structure.table import Table

#: Sets whose weight is less than this part of an allowed subset's are not listed.
PRUNE = 1e-12
# All subsets of all variables are walked over where they are at most so many times those needed.
_LATTICE = 8


def listed_scores(
    problem: Problem, *, max_parents: int = 3, prune: float = PRUNE, max_bytes: int = MAX_BYTES
) -> ListedScores:
    """Weights of families with few parents: scores times the factors of the prior over graphs.

    Args:
        problem: the table, the score, the prior and the constraints.
        max_parents: the largest number of parents; the prior or the constraints may allow fewer.
        prune: leave out sets that weigh less than this part of an allowed subset; 0 to list all. No
            probability of the posterior among the listed sizes moves by more than this times the number of
            sets left out.
        max_bytes: refuse where more memory could be needed.

    Returns:
        The sets, smallest first, and the logs of their weights.

    Raises:
        ConfigError: no score, a score that the table does not fit, more required parents than
            ``max_parents``, or too much memory.
        DataError: values that cannot be scored.
    """
    if max_parents < 0 or not 0 <= prune < 1:
        raise ConfigError(
            f"max_parents, prune: expected a number >= 0 and one in [0, 1), got {max_parents!r} and {prune!r}"
        )
    score, table = checked_score(problem)
    prior, n = family_prior(problem), table.num_variables
    largest = min(max_parents, prior.max_parents, n - 1)
    candidates = [prior.allowed_edges[:, v].nonzero()[:, 0].tolist() for v in range(n)]
    agent_sets = sets_of_agents(table)
    extras = agent_columns(agent_sets, n)
    _check_size(table, prior, candidates, largest, len(extras), max_bytes)
    with progress_bar(n, problem.progress, "variable") as bar:
        families: _Families | _Local
        if isinstance(score, PartScore):
            families = _Families(score, table, candidates, largest, extras)
        else:
            families = _Local(score, table, candidates, largest)
        rows, flat = [], prior.is_flat
        for node in range(n):
            rows.append(_node(families, prior, flat, node, prune))
            bar.update(1)
    parents, terms = zip(*rows, strict=True)
    if agent_sets is None:
        return ListedScores(parents, tuple(t[:, 0] for t in terms))
    return ListedScores(parents, tuple(t.logsumexp(1) for t in terms), agent_sets.to(table.device), terms)


def _check_size(
    table: Table,
    prior: FamilyPrior,
    candidates: Sequence[Sequence[int]],
    largest: int,
    num_agent_sets: int,
    max_bytes: int,
) -> None:
    for node, name in enumerate(table.names):
        if (required := int(prior.required_edges[:, node].sum())) > largest:
            raise ConfigError(
                f"max_parents: {name} has {required} required parents, the limit is {largest}; raise it"
            )
    num = sum(count_subsets(len(one), largest) for one in candidates)
    # Each row of the answer, and the tables of all sets of variables while it is made.
    needed = 8 * num * (largest + 2 + num_agent_sets) + 8 * num_agent_sets * count_subsets(
        len(candidates), largest + 1
    )
    if needed > max_bytes:
        raise ConfigError(
            f"max_parents: {num:,} families of at most {largest} parents take up to {gibibytes(needed)}, the "
            f"limit is {gibibytes(max_bytes)}; use max_parents={largest - 1}, or forbid edges"
        )


@dataclass(frozen=True)
class _Layout:
    """All sets of at most ``largest`` of some candidates, smallest first, by their positions.

    Attributes:
        positions: shape (F, largest), filled up with -1.
        starts: the first row of each size, and one beyond the last of all.
        smaller: for each size, shape (F_size, size): the rows of the sets with one member less, counted
            from the first of their size.
    """

    positions: Tensor
    starts: tuple[int, ...]
    smaller: tuple[Tensor, ...]

    @classmethod
    def of(cls, num: int, largest: int, device: torch.device) -> _Layout:
        """The layout for ``num`` candidates."""
        positions, smaller, starts = [], [], [0]
        for size in range(min(largest, num) + 1):
            sets = subsets(num, size, device)
            rest = [ranks(torch.cat([sets[:, :out], sets[:, out + 1 :]], dim=1)) for out in range(size)]
            smaller.append(torch.stack(rest, dim=1) if rest else sets)
            positions.append(torch.nn.functional.pad(sets, (0, largest - size), value=-1))
            starts.append(starts[-1] + len(sets))
        return cls(torch.cat(positions), tuple(starts), tuple(smaller))

    def best_smaller(self, weights: Tensor) -> Tensor:
        """For each set, the largest of the weights (F,) of its proper subsets; ``-inf`` for the empty one."""
        result, best = torch.full_like(weights, -math.inf), weights[:0]
        for size, rows in enumerate(self.smaller):
            block = slice(self.starts[size], self.starts[size + 1])
            if size:
                result[block] = best[rows].amax(1)
            best = torch.maximum(weights[block], result[block])
        return result


def _node(
    families: _Families | _Local, prior: FamilyPrior, flat: bool, node: int, prune: float
) -> tuple[Tensor, Tensor]:
    """Listed sets of a node, (F, largest), and their log weights for each set of agents, (F, Q)."""
    layout, sets, terms = families.node(node)
    if not flat:
        terms += prior.log_listed_prior(node, sets)[:, None]
    weights = terms.logsumexp(1)
    keep = weights.isfinite()
    if prune > 0:
        keep &= weights >= layout.best_smaller(weights) + math.log(prune)
    return sets[keep], terms[keep]


class _Candidates:
    """The sets of every node's candidates."""

    def __init__(self, table: Table, candidates: Sequence[list[int]], largest: int) -> None:
        self.table, self.candidates, self.largest = table, candidates, largest
        self._layouts: dict[int, _Layout] = {}

    def of(self, node: int) -> tuple[_Layout, Tensor]:
        """The layout of a node's sets, and the sets as columns, (F, largest), filled up with -1."""
        num, device = len(self.candidates[node]), self.table.device
        if num not in self._layouts:
            self._layouts[num] = _Layout.of(num, self.largest, device)
        # The last entry is what -1 finds.
        columns = torch.tensor([*self.candidates[node], -1], dtype=torch.int64, device=device)
        return self._layouts[num], columns[self._layouts[num].positions]


class _Families(_Candidates):
    """Scores of the candidates' subsets, of scores made of parts.

    The function of a part is evaluated either on all sets of variables, for all nodes at once, or on
    those of each node's candidates: whichever means fewer sets. Nodes that were set in rows of their own
    have functions of their own.
    """

    def __init__(
        self,
        score: PartScore,
        table: Table,
        candidates: Sequence[list[int]],
        largest: int,
        extras: Sequence[Sequence[int]],
    ) -> None:
        super().__init__(table, candidates, largest)
        n, self.extras = table.num_variables, extras
        functions = Functions(table)
        self.parts = [
            [(part.sign, part.joint, functions(part)) for part in score.parts(table, node)]
            for node in range(n)
        ]
        sets: dict[SetFunction, int] = {}
        for node, parts in enumerate(self.parts):
            for _, _, function in parts:
                sets[function] = sets.get(function, 0) + count_subsets(len(candidates[node]), largest)
        every = count_subsets(n, largest + 1)
        self.shared = {function for function, num in sets.items() if every <= num}
        self.tables: dict[tuple[SetFunction, int], Tensor] = {}
        # Numbers of sets, the sets of smaller sizes before them: row p has C(p, 1), C(p, 2), ..., the last
        # row stands for no member.
        binomials = [[math.comb(p, i + 1) for i in range(largest + 1)] for p in range(n)]
        self.binomials = torch.tensor([*binomials, [0] * (largest + 1)], device=table.device)
        starts = [count_subsets(n, size - 1) if size else 0 for size in range(largest + 2)]
        self.starts = torch.tensor(starts, device=table.device)

    def node(self, node: int) -> tuple[_Layout, Tensor, Tensor]:
        """The sets of a node, and their log scores (F, Q)."""
        layout, sets = self.of(node)
        index = {False: self._numbers(sets), True: self._numbers(sets, node)}
        terms = torch.full(
            (len(sets), len(self.extras)),
            -math.log(len(self.extras)),
            dtype=torch.float64,
            device=sets.device,
        )
        for sign, joint, function in self.parts[node]:
            for q, extra in enumerate(self.extras):
                if function in self.shared:
                    values = self._shared(function, q)[index[joint]]
                else:
                    fixed = [*extra, node] if joint else extra
                    sizes = range(len(layout.smaller))
                    values = torch.cat(
                        [function.combinations(self.candidates[node], s, fixed) for s in sizes]
                    )
                terms[:, q] += sign * values
        return layout, sets, terms

    def _numbers(self, sets: Tensor, node: int | None = None) -> Tensor:
        """Rows of sets, (F, largest), or of their families, among all sets of variables by size."""
        place = torch.arange(sets.shape[1], device=sets.device)
        size = (sets >= 0).sum(1)
        if node is None:
            return self.starts[size] + self.binomials[sets, place].sum(1)
        # Members above the node move up by one place.
        before = (sets >= 0) & (sets < node)
        rest = self.binomials[sets, place + (~before).long()].sum(1)
        return self.starts[size + 1] + rest + self.binomials[node, before.sum(1)]

    def _shared(self, function: SetFunction, q: int) -> Tensor:
        """Values of all sets of variables, by size."""
        if (function, q) not in self.tables:
            n, extra = self.table.num_variables, self.extras[q]
            sizes = range(min(n, self.largest + 1) + 1)
            if 1 << n <= _LATTICE * count_subsets(n, sizes[-1]):
                lattice = function.lattice(n, extra, sizes[-1])
                parts = [lattice[(1 << subsets(n, size, self.table.device)).sum(1)] for size in sizes]
            else:
                parts = [function.combinations(range(n), size, extra) for size in sizes]
            self.tables[function, q] = torch.cat(parts)
        return self.tables[function, q]


class _Local(_Candidates):
    """Scores of the candidates' subsets, of any score."""

    def __init__(self, score: Score, table: Table, candidates: Sequence[list[int]], largest: int) -> None:
        super().__init__(table, candidates, largest)
        self.score = score

    def node(self, node: int) -> tuple[_Layout, Tensor, Tensor]:
        """The sets of a node, and their log scores (F, 1)."""
        layout, sets = self.of(node)
        lists = [[member for member in one if member >= 0] for one in sets.tolist()]
        return layout, sets, self.score.local(self.table, node, lists)[:, None].clone()
