r"""Functions of sets of variables, of which scores are differences.

Every score here is :math:`\log \beta_v(P) = \sum_i s_i\, h_i(S_i)` with signs s and each :math:`S_i` either
the parents P or the family :math:`P \cup v`: a marginal likelihood is the ratio of those of the family and
of the parents. A *term* says what h is, and for one choice of rows gives a :class:`SetFunction`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ppgen.inference.structure.scores.subsets import count_subsets, subsets
from ppgen.inference.structure.table import Table

Advance = Callable[[int], object]


def silent(done: int) -> None:
    """Take no notice of progress."""


class SetFunction(ABC):
    """Values h(S) for sets of columns; agents, where there are any, are columns n, n + 1, ...

    Attributes:
        device: of the data and of all values.
    """

    device: torch.device

    @abstractmethod
    def sets(self, sets: Tensor, advance: Advance = silent) -> Tensor:
        """Values of sets of one size.

        Args:
            sets: shape (F, m), int64, the members in any order.
            advance: told how many sets have been done.

        Returns:
            Shape (F,), float64, nats.
        """

    def combinations(
        self, candidates: Sequence[int], size: int, extra: Sequence[int] = (), advance: Advance = silent
    ) -> Tensor:
        """Values of all subsets of ``candidates`` of one size, each joined with the columns of ``extra``.

        Args:
            candidates: columns, none of them in ``extra``.
            size: of the subsets.
            extra: columns that every set has.
            advance: told how many sets have been done.

        Returns:
            Shape (C(len(candidates), size),), in the order of
            :func:`~ppgen.inference.structure.scores.subsets.subsets`.
        """
        columns = torch.tensor(list(candidates), dtype=torch.int64, device=self.device)
        chosen = columns[subsets(len(candidates), size, self.device)]
        fixed = torch.tensor(list(extra), dtype=torch.int64, device=self.device).expand(len(chosen), -1)
        return self.sets(torch.cat([chosen, fixed], dim=1), advance)

    def lattice(
        self, num: int, extra: Sequence[int] = (), largest: int | None = None, advance: Advance = silent
    ) -> Tensor:
        """Values of all subsets of the first ``num`` columns, each joined with ``extra``.

        Args:
            num: how many columns.
            extra: columns that every set has, none of them among the first ``num``.
            largest: subsets with more members are left out; their values mean nothing.
            advance: told how many sets have been done.

        Returns:
            Shape (2^num,); bits of the index are the members.
        """
        largest = num if largest is None else min(num, largest)
        result = torch.zeros(1 << num, dtype=torch.float64, device=self.device)
        for size in range(largest + 1):
            index = (1 << subsets(num, size, self.device)).sum(-1)
            result[index] = self.combinations(range(num), size, extra, advance)
        return result


def lattice_size(num: int, largest: int | None) -> int:
    """How many sets :meth:`SetFunction.lattice` reports to ``advance``."""
    return count_subsets(num, num if largest is None else largest)


class Term(Protocol):
    """What h is; hashable, equal where h is the same."""

    def function(self, table: Table, rows: Tensor) -> SetFunction:
        """The function of some of the rows, a mask of shape (N,)."""


def columns(table: Table) -> Tensor:
    """The values with the agents as further columns of 0 and 1, shape (N, n + A)."""
    return table.values if table.agents is None else torch.cat([table.values, table.agents.double()], dim=1)


def cardinalities(table: Table) -> tuple[int, ...]:
    """Levels of :func:`columns`; 0 for continuous ones. Agents have 2."""
    agents = 0 if table.agents is None else table.agents.shape[1]
    return (*table.cardinalities, *[2] * agents)
