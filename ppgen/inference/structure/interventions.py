"""Interventions as users write them.

The four kinds are those of Eaton & Murphy (2007), "Exact Bayesian structure learning from uncertain
interventions": perfect, imperfect and soft interventions have known targets; the targets of uncertain
ones are learnt, each agent being a further root of the graph that may point at variables.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from ppgen.errors import ConfigError


@dataclass(frozen=True)
class Perfect:
    """The value of a set cell is the experimenter's: it says nothing about the variable's mechanism.

    Attributes:
        targets: which cells were set: the name of a column that names the variable set in each row, one
            such label a row, or a mask. Labels: empty or missing where nothing was set, several
            targets separated by ``;``; whole numbers count the variables from 1, and 0 is none. Masks:
            shape (N, n), true where set, an array or a DataFrame whose columns are variables
            (those without a column were never set).
    """

    targets: Any


@dataclass(frozen=True)
class Imperfect:
    """Set cells follow another mechanism with the same parents, learnt apart from the natural one.

    Attributes:
        targets: as in :class:`Perfect`.
    """

    targets: Any


@dataclass(frozen=True)
class Soft:
    """Set cells follow the mechanism, pushed towards a level by extra Dirichlet counts.

    A variable is pushed to one level in all rows in which it was set. For categorical variables.

    Attributes:
        targets: as in :class:`Perfect`.
        push: extra pseudo-counts at that level, > 0.
        levels: the level that each target is pushed to, by name. A target without one has an unknown
            direction, which tables may have (as -1) and scores refuse.
    """

    targets: Any
    push: float
    levels: Mapping[str, Hashable] | None = None

    def __post_init__(self) -> None:
        push = self.push
        if isinstance(push, bool) or not isinstance(push, int | float) or not 0 < push < float("inf"):
            raise ConfigError(f"push: expected a positive number of pseudo-counts, got {push!r}")


@dataclass(frozen=True)
class Uncertain:
    """Agents at work in some rows, what they act on unknown.

    Attributes:
        agents: which agents were at work: the name of a column that names the agent in each row
            (empty, missing or 0 for none; several separated by ``;``), one such label a row, names
            of several columns of 0 and 1, or a table of them, shape (N, A): an array or a DataFrame
            whose columns are the agents.
        max_agents: the largest number of agents that may act on one variable. Posteriors depend on it.
    """

    agents: Any
    max_agents: int = 1

    def __post_init__(self) -> None:
        number = self.max_agents
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(f"max_agents: expected a whole number >= 1, got {number!r}")


Known = Perfect | Imperfect | Soft


def as_kinds(interventions: Any) -> tuple[Known | None, Uncertain | None]:
    """What the user gave, as known and uncertain interventions; a bare column or mask is perfect.

    Raises:
        ConfigError: more than one of a kind.
    """
    given = interventions if isinstance(interventions, list | tuple) else [interventions]
    if not given or not any(isinstance(one, Known | Uncertain) for one in given):
        return (None if interventions is None else Perfect(interventions)), None
    known = [one for one in given if isinstance(one, Known)]
    uncertain = [one for one in given if isinstance(one, Uncertain)]
    if len(known) > 1 or len(uncertain) > 1 or len(known) + len(uncertain) < len(given):
        raise ConfigError(
            "interventions: expected at most one of Perfect, Imperfect and Soft, and at most one Uncertain, "
            f"got {', '.join(type(one).__name__ for one in given)}"
        )
    return (known[0] if known else None), (uncertain[0] if uncertain else None)
