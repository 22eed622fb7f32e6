"""A table of variables with the interventions under which its rows were made.

:class:`Table` is what scores and learners see: one tensor of values, and which of its cells were set
by an experimenter. :func:`~ppgen.inference.structure.reading.read_table` makes one from what users have.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor


@dataclass(frozen=True)
class Variable:
    """One column.

    Attributes:
        name: its name.
        levels: the values of a categorical variable, in order; ``None`` for a continuous one.
    """

    name: str
    levels: tuple[Hashable, ...] | None = None

    @property
    def cardinality(self) -> int:
        """Number of levels; 0 for a continuous variable."""
        return 0 if self.levels is None else len(self.levels)


class Intervention(StrEnum):
    """What setting a variable does to its mechanism p(x | parents)."""

    #: no cell was set
    NONE = "none"
    #: the value is the experimenter's: set cells say nothing about the mechanism
    PERFECT = "perfect"
    #: set cells follow another mechanism with the same parents, learnt apart
    IMPERFECT = "imperfect"
    #: set cells follow the mechanism, pushed towards a level by extra Dirichlet counts
    SOFT = "soft"


@dataclass(frozen=True)
class Table:
    """N rows of n variables, with the interventions behind them.

    Attributes:
        variables: the columns.
        values: shape (N, n), float64: level numbers 0, 1, ... of categorical variables, numbers of
            continuous ones.
        clamped: shape (N, n), bool: whether the cell was set by intervention.
        intervention: what setting a cell does.
        push: for soft interventions, the extra pseudo-counts at the level that a set cell is pushed to.
        pushed_to: for soft interventions, the level number of each variable, shape (n,); -1 where unknown.
        agents: shape (N, A), bool: which agents were at work in a row, their targets unknown; A may be 0.
        agent_names: their names.
        max_agents: the largest number of agents that may act on one variable.
    """

    variables: tuple[Variable, ...]
    values: Tensor
    clamped: Tensor
    intervention: Intervention = Intervention.NONE
    push: float = 0.0
    pushed_to: Tensor | None = None
    agents: Tensor | None = None
    agent_names: tuple[str, ...] = ()
    max_agents: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(v.name for v in self.variables)

    @property
    def num_rows(self) -> int:
        """N."""
        return self.values.shape[0]

    @property
    def num_variables(self) -> int:
        """n, agents not counted."""
        return self.values.shape[1]

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of levels of each variable; 0 for continuous ones."""
        return tuple(v.cardinality for v in self.variables)

    @property
    def is_discrete(self) -> bool:
        """Whether every variable is categorical."""
        return all(v.levels is not None for v in self.variables)

    @property
    def is_continuous(self) -> bool:
        """Whether every variable is continuous."""
        return all(v.levels is None for v in self.variables)

    @property
    def codes(self) -> Tensor:
        """The values as level numbers, int64, shape (N, n)."""
        return self.values.long()

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    def to(self, device: torch.device | str) -> Table:
        """The same table on another device."""
        moved = {
            name: tensor.to(device)
            for name in ("values", "clamped", "pushed_to", "agents")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def rows(self, index: Tensor) -> Table:
        """Some of the rows, by a boolean mask or indices (with repeats, as a bootstrap has them)."""
        agents = None if self.agents is None else self.agents[index]
        return replace(self, values=self.values[index], clamped=self.clamped[index], agents=agents)
