r"""Scores of categorical variables: BDeu, K2, BIC and AIC.

With :math:`N_{jk}` rows in which the parents are in configuration j of q and the node at level k of r, and
Dirichlet parameters :math:`\alpha_{jk}`, :math:`\alpha_j = \sum_k \alpha_{jk}`, the marginal likelihood of
a node is

.. math::
    \log \beta = \sum_j \Big[ \log\Gamma(\alpha_j) - \log\Gamma(N_j + \alpha_j)
        + \sum_k \log\Gamma(N_{jk} + \alpha_{jk}) - \log\Gamma(\alpha_{jk}) \Big].

**Interventions.** Rows in which the node was set count as follows. *Perfect*: not at all. *Imperfect*: for a
second table with the same parents and an independent prior of the same form. *Soft*: for a second table
as well, whose prior is pushed towards the level t by w pseudo-counts, :math:`\alpha_{jt} + w` in every
configuration j; w = 0 is an imperfect intervention, and :math:`w \to \infty` a perfect one, if all set cells
are at t (the pushing operator of Markowetz, Grossmann & Spang 2005). A node without any row left has score 0
with every set of parents.

Sources: Heckerman, Geiger & Chickering (1995); Cooper & Herskovits (1992); Eaton & Murphy (2007).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.structure.scores.counting import CountTerm, Rows, distinct, sums_over_cells
from ppgen.inference.structure.scores.cubes import Lattice
from ppgen.inference.structure.scores.functions import (
    Advance,
    SetFunction,
    Term,
    cardinalities,
    columns,
    silent,
)
from ppgen.inference.structure.scores.parts import Part, PartScore, check_discrete, mechanisms
from ppgen.inference.structure.scores.products import all_subsets
from ppgen.inference.structure.scores.subsets import count_subsets
from ppgen.inference.structure.table import Intervention, Table

# A set counted for itself takes about as long as so many of a walk over all of them.
_SETS_OF_A_WALK = 4


class Counts(SetFunction):
    """h by counting rows."""

    def __init__(self, rows: Rows, term: CountTerm) -> None:
        self.rows, self.term = rows, term
        self.device = rows.codes.device

    def sets(self, sets: Tensor, advance: Advance = silent) -> Tensor:
        """See :meth:`SetFunction.sets`."""
        return sums_over_cells(self.rows, self.term, sets, advance)

    def combinations(
        self, candidates: Sequence[int], size: int, extra: Sequence[int] = (), advance: Advance = silent
    ) -> Tensor:
        """See :meth:`SetFunction.combinations`."""
        return all_subsets(self.rows, self.term, candidates, size, extra, advance)

    def lattice(
        self, num: int, extra: Sequence[int] = (), largest: int | None = None, advance: Advance = silent
    ) -> Tensor:
        """See :meth:`SetFunction.lattice`."""
        largest = num if largest is None else min(num, largest)
        if count_subsets(num, largest) * _SETS_OF_A_WALK < 1 << num:
            return super().lattice(num, extra, largest, advance)
        return Lattice(self.rows, self.term, num, extra, largest, advance).run()


@dataclass(frozen=True)
class Counted(CountTerm):
    """A term of counts, with its function."""

    def function(self, table: Table, rows: Tensor) -> SetFunction:
        """See :meth:`Term.function`."""
        codes = columns(table)[rows].long()
        return Counts(distinct(codes, cardinalities(table)), self)


@dataclass(frozen=True)
class Dirichlet(Counted):
    r""":math:`\log\Gamma(N + \alpha) - \log\Gamma(\alpha)`, with alpha = per_table / cells + per_cell."""

    per_table: float
    per_cell: float

    def parameter(self, cells: Tensor) -> Tensor:
        """Of the Dirichlet distribution, the same in all cells."""
        return self.per_table / cells + self.per_cell

    def values(self, counts: Tensor, parameter: Tensor) -> Tensor:
        """See :meth:`CountTerm.values`."""
        return torch.lgamma(counts + parameter) - torch.lgamma(parameter)


@dataclass(frozen=True)
class Fitted(Counted):
    """N log N, less a penalty for each cell but one: the largest log likelihood, up to what cancels."""

    penalty: float

    def parameter(self, cells: Tensor) -> Tensor:
        """None."""
        return torch.zeros_like(cells)

    def values(self, counts: Tensor, parameter: Tensor) -> Tensor:
        """See :meth:`CountTerm.values`."""
        return torch.xlogy(counts, counts) + parameter

    def constant(self, cells: Tensor) -> Tensor:
        """See :meth:`CountTerm.constant`."""
        return -self.penalty * (cells - 1)


@dataclass(frozen=True)
class _Dirichlet(PartScore):
    def check(self, table: Table) -> None:
        """See :meth:`Score.check`."""
        check_discrete(table, self.name)
        check_pushed(table)

    @abstractmethod
    def _prior(self) -> tuple[float, float]:
        """Pseudo-counts of a table, divided among its cells, and further ones of each cell."""

    def parts(self, table: Table, node: int) -> list[Part]:
        """See :meth:`PartScore.parts`."""
        table_counts, cell_counts = self._prior()
        levels = table.cardinalities[node]
        cell, column = Dirichlet(table_counts, cell_counts), Dirichlet(table_counts, levels * cell_counts)
        parts = [
            part
            for rows in mechanisms(table, node)
            for part in (Part(1, rows, True, cell), Part(-1, rows, False, column))
        ]
        push = table.push
        pushed = Dirichlet(table_counts, cell_counts + push)
        return parts + pushed_parts(
            table, node, cell, pushed, Dirichlet(table_counts, column.per_cell + push)
        )


@dataclass(frozen=True)
class BDeu(_Dirichlet):
    r"""Marginal likelihood with :math:`\alpha_{jk}` = ess / (q r): score-equivalent, uniform prior.

    Args:
        equivalent_sample_size: ess, > 0; small values favour sparse graphs.
    """

    equivalent_sample_size: float = 1.0
    name = "bdeu"

    def __post_init__(self) -> None:
        check_positive(self.equivalent_sample_size, "equivalent_sample_size")

    def _prior(self) -> tuple[float, float]:
        return self.equivalent_sample_size, 0.0


@dataclass(frozen=True)
class K2(_Dirichlet):
    r"""Marginal likelihood with :math:`\alpha_{jk}` = 1, a uniform prior; not score-equivalent."""

    name = "k2"

    def _prior(self) -> tuple[float, float]:
        return 0.0, 1.0


@dataclass(frozen=True)
class _Penalised(PartScore):
    def check(self, table: Table) -> None:
        """See :meth:`Score.check`."""
        check_discrete(table, self.name)
        if table.intervention is Intervention.SOFT:
            raise ConfigError(
                f"interventions: soft interventions are prior counts, and {self.name} has no prior; "
                "use 'bdeu', 'bde' or 'k2', or Imperfect interventions"
            )

    @abstractmethod
    def _penalty(self, num_rows: int) -> float:
        """Of one parameter."""

    def parts(self, table: Table, node: int) -> list[Part]:
        """See :meth:`PartScore.parts`."""
        parts = []
        for rows in mechanisms(table, node):
            term = Fitted(self._penalty(int(rows.sum())))
            parts += [Part(1, rows, True, term), Part(-1, rows, False, term)]
        return parts


@dataclass(frozen=True)
class BIC(_Penalised):
    r"""Largest log likelihood less :math:`\tfrac12 \log N` for each of the q (r - 1) parameters.

    N is the number of rows that count for the node; a second table, of imperfect interventions, is penalised
    for its own parameters with its own number of rows (Schwarz 1978).
    """

    name = "bic"

    def _penalty(self, num_rows: int) -> float:
        return 0.5 * math.log(num_rows)


@dataclass(frozen=True)
class AIC(_Penalised):
    """Largest log likelihood less 1 for each of the q (r - 1) parameters (Akaike 1974)."""

    name = "aic"

    def _penalty(self, num_rows: int) -> float:
        return 1.0


def pushed_parts(table: Table, node: int, cell: Term, pushed: Term, column: Term) -> list[Part]:
    """Parts of the rows in which a soft intervention set ``node``.

    Args:
        table: with its interventions.
        node: the node.
        cell: term of the cells of the family whose level is not the one pushed to.
        pushed: term of those whose level is.
        column: term of the parents' configurations.
    """
    if table.intervention is not Intervention.SOFT or table.pushed_to is None:
        return []
    clamped = table.clamped[:, node]
    there = table.codes[:, node] == table.pushed_to[node]
    parts = [
        Part(1, clamped & there, True, pushed),
        Part(1, clamped & ~there, True, cell),
        Part(-1, clamped, False, column),
    ]
    return [part for part in parts if bool(part.rows.any())]


def check_pushed(table: Table) -> None:
    """Raise where it is not known to which level a soft intervention pushes."""
    if table.intervention is not Intervention.SOFT:
        return
    targets = table.clamped.any(0)
    unknown = targets if table.pushed_to is None else targets & (table.pushed_to < 0)
    if bool(unknown.any()):
        names = ", ".join(table.names[i] for i in unknown.nonzero()[:, 0].tolist())
        raise ConfigError(
            f"interventions: the level that soft interventions push {names} to is unknown; "
            "give it in Soft(levels={...}), or use Imperfect"
        )


def check_positive(value: float, argument: str) -> None:
    """Raise where a number is not positive and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{argument}: expected a positive number, got {value!r}")
