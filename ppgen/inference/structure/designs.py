"""Interventions turned into masks over the cells and rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError, DataWarning
from ppgen.inference.structure.interventions import Known, Soft, Uncertain
from ppgen.inference.structure.table import Intervention, Variable
from ppgen.inference.structure.warned import warn

_SEPARATOR = ";"


@dataclass(frozen=True)
class Design:
    """Interventions with column numbers; fields as in :class:`~ppgen.inference.structure.table.Table`."""

    clamped: Tensor
    intervention: Intervention = Intervention.NONE
    push: float = 0.0
    push_levels: Mapping[str, Hashable] = field(default_factory=dict)
    agents: Tensor | None = None
    agent_names: tuple[str, ...] = ()
    max_agents: int = 0


def used_columns(known: Known | None, uncertain: Uncertain | None, columns: Sequence[str]) -> list[str]:
    """Columns of the data that say what was done in a row, and are no variables.

    Raises:
        ConfigError: a column that is not there.
    """
    used = []
    if known is not None and isinstance(known.targets, str):
        used.append(_column(known.targets, columns, "interventions"))
    if uncertain is not None:
        agents = uncertain.agents
        if isinstance(agents, str):
            used.append(_column(agents, columns, "agents"))
        elif _names_columns(agents, columns):
            used += list(agents)
    return used


def design(
    known: Known | None, uncertain: Uncertain | None, data: Any, names: Sequence[str], num_rows: int
) -> Design:
    """Masks of what was done in each row.

    Args:
        known: interventions with known targets.
        uncertain: agents with unknown ones.
        data: the DataFrame that names of columns refer to; ``None`` without.
        names: the variables.
        num_rows: N.

    Raises:
        DataError: unknown targets, or arrays that do not fit the table.

    Warns:
        DataWarning: agents that cannot be told apart, or are at work in no row or in all.
    """
    clamped = torch.zeros(num_rows, len(names), dtype=torch.bool)
    result = Design(clamped)
    if known is not None:
        clamped = _targets(known.targets, data, names, num_rows)
        result = Design(clamped, Intervention(type(known).__name__.lower()))
        if isinstance(known, Soft):
            levels = dict(known.levels or {})
            for name in levels:
                _known_name(name, names, "levels")
            result = Design(clamped, Intervention.SOFT, float(known.push), levels)
    if uncertain is None:
        return result
    agents, agent_names = _agents(uncertain.agents, data, num_rows)
    both = sorted(set(agent_names) & set(names))
    if both:
        agent_names = tuple(f"agent {name}" if name in both else name for name in agent_names)
    _warn_of_agents(agents, agent_names)
    return Design(
        clamped=result.clamped,
        intervention=result.intervention,
        push=result.push,
        push_levels=result.push_levels,
        agents=agents,
        agent_names=agent_names,
        max_agents=min(uncertain.max_agents, len(agent_names)),
    )


def _column(name: str, columns: Sequence[str], argument: str) -> str:
    if name in columns:
        return name
    close = get_close_matches(name, columns)
    hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(columns)}"
    if not columns:
        hint = "of a Table only the variables are left, so give labels or a mask"
    raise ConfigError(f"{argument}: the table has no column {name!r}; {hint}")


def _names_columns(agents: Any, columns: Sequence[str]) -> bool:
    return (
        isinstance(agents, list | tuple)
        and bool(agents)
        and all(isinstance(name, str) and name in columns for name in agents)
    )


def _known_name(name: Any, names: Sequence[str], argument: str) -> int:
    if name in names:
        return names.index(name)
    close = get_close_matches(str(name), names)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(names)}"
    raise DataError(f"{argument}: no variable is called {name!r}; {hint}")


def _targets(targets: Any, data: Any, names: Sequence[str], num_rows: int) -> Tensor:
    """Shape (N, n), bool: the cells that were set."""
    given = data[targets] if isinstance(targets, str) else targets
    if _ndim(given) == 2:
        mask, columns = _booleans(given, num_rows, "interventions")
        if columns is None:
            if mask.shape[1] != len(names):
                raise DataError(
                    f"interventions: expected a mask of shape ({num_rows}, {len(names)}), one column a "
                    f"variable, got {tuple(mask.shape)}"
                )
            return mask
        clamped = torch.zeros(num_rows, len(names), dtype=torch.bool)
        for place, name in enumerate(columns):
            clamped[:, _known_name(name, names, "interventions")] = mask[:, place]
        return clamped

    def meaning(token: Any) -> int | None:
        if isinstance(token, str) and token in names:
            return names.index(token)
        number = 0 if _is_none(token) else _whole(token)
        if number is None:
            if not isinstance(token, str):
                raise DataError(
                    "interventions: expected names of variables, or whole numbers that count them from 1, "
                    f"got {token!r}"
                )
            _known_name(token, names, "interventions")
        elif not _is_none(token) and any(name.strip().isdigit() for name in names):
            raise DataError(
                f"interventions: {token!r} may be the name of a variable or its number; name the variables "
                "other than by numbers, or give a mask"
            )
        elif not 0 <= number <= len(names):
            raise DataError(
                f"interventions: numbers count the {len(names)} variables from 1, and 0 is none; got {number}"
            )
        return None if not number else number - 1

    rows, places = _read_labels(given, num_rows, "interventions", meaning)
    clamped = torch.zeros(num_rows, len(names), dtype=torch.bool)
    clamped[rows, places] = True
    return clamped


def _agents(agents: Any, data: Any, num_rows: int) -> tuple[Tensor, tuple[str, ...]]:
    """Shape (N, A), bool: the agents at work; and their names."""
    if isinstance(agents, str):
        agents = data[agents]
    elif data is not None and _names_columns(agents, list(data.columns)):
        agents = data[list(agents)]
    if _ndim(agents) == 2:
        mask, columns = _booleans(agents, num_rows, "agents")
        names = tuple(columns or (f"agent {k + 1}" for k in range(mask.shape[1])))
        if not names or len(set(names)) < len(names):
            raise DataError(f"agents: expected one or more columns of different names, got {list(names)}")
        return mask, names
    found: dict[str, int] = {}

    def meaning(token: Any) -> int | None:
        number = 0 if _is_none(token) else _whole(token)
        return None if number == 0 else found.setdefault(str(token if number is None else number), len(found))

    rows, places = _read_labels(agents, num_rows, "agents", meaning)
    if not found:
        raise DataError(
            "agents: no row names an agent; give one label a row, empty only where none was at work"
        )
    mask = torch.zeros(num_rows, len(found), dtype=torch.bool)
    mask[rows, places] = True
    return mask, tuple(found)


def _read_labels(
    labels: Any, num_rows: int, argument: str, meaning: Callable[[Any], int | None]
) -> tuple[list[int], list[int]]:
    """Rows, and what the labels in them mean."""
    import pandas

    if isinstance(labels, Tensor):
        labels = labels.cpu().numpy()
    try:
        series = pandas.Series(labels).astype(object)
    except (TypeError, ValueError) as error:
        raise DataError(f"{argument}: expected a column, labels or a mask, got {type(labels)}") from error
    if len(series) != num_rows:
        raise DataError(f"{argument}: expected one label for each of {num_rows} rows, got {len(series)}")
    # Each distinct label is read once.
    codes, distinct = pandas.factorize(series)
    rows, places = [], []
    for number, label in enumerate(distinct):
        if isinstance(label, bool):
            raise DataError(
                f"{argument}: expected names in this column, got {label!r}; for true and false give a table "
                "with one such column for each"
            )
        tokens = label.split(_SEPARATOR) if isinstance(label, str) else [label]
        tokens = [token.strip() if isinstance(token, str) else token for token in tokens]
        for token in tokens:
            place = meaning(token)
            if place is not None:
                at = (codes == number).nonzero()[0].tolist()
                rows += at
                places += [place] * len(at)
    return rows, places


def _is_none(token: Any) -> bool:
    return isinstance(token, str) and token.lower() in ("", "none")


def _whole(token: Any) -> int | None:
    """The whole number that a label is or spells, if any."""
    try:
        value = float(token)
    except (TypeError, ValueError):
        return None
    return int(value) if value.is_integer() else None


def _ndim(given: Any) -> int:
    if hasattr(given, "ndim"):
        return int(given.ndim)
    if isinstance(given, list | tuple) and given:
        return 1 + (isinstance(given[0], list | tuple) or getattr(given[0], "ndim", 0) > 0)
    return 1


def _booleans(table: Any, num_rows: int, argument: str) -> tuple[Tensor, list[str] | None]:
    """A table of true and false, 1 and 0, shape (N, k), and the names of its columns."""
    import numpy

    columns = [str(name) for name in table.columns] if hasattr(table, "columns") else None
    if isinstance(table, Tensor):
        table = table.cpu()
    try:
        values = numpy.asarray(table, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{argument}: expected a table of true and false, got {error}") from error
    if len(values) != num_rows:
        raise DataError(
            f"{argument}: expected {num_rows} rows, one for each of the table's, got {len(values)}"
        )
    if not ((values == 0) | (values == 1)).all():
        raise DataError(f"{argument}: expected true and false, or 1 and 0, in every cell; got other values")
    return torch.from_numpy(values == 1), columns


def _warn_of_agents(agents: Tensor, names: Sequence[str]) -> None:
    acting = agents.sum(0).tolist()
    for name, rows in zip(names, acting, strict=True):
        if rows in (0, len(agents)):
            warn(
                f"agents: {name} is at work in {'no row' if not rows else 'every row'}, so that nothing can "
                "be learnt about its targets; leave it out",
                DataWarning,
            )
    # An agent and one that works exactly where it does not split the rows alike.
    splits = agents ^ agents[:1]
    for i in range(len(names)):
        for j in range(i):
            if 0 < acting[i] < len(agents) and bool((splits[:, i] == splits[:, j]).all()):
                where = (
                    "the same rows"
                    if acting[i] == acting[j] and bool((agents[:, i] == agents[:, j]).all())
                    else ("opposite rows")
                )
                warn(
                    f"agents: {names[j]} and {names[i]} are at work in {where} and cannot be told apart; "
                    "take them as one",
                    DataWarning,
                )


def as_level_number(variable: Variable, levels: Mapping[str, Hashable]) -> int:
    """The number of the level that a variable is pushed to; -1 where none is given.

    Raises:
        DataError: a level that the variable does not have.
    """
    if variable.name not in levels:
        return -1
    level = levels[variable.name]
    known = variable.levels or ()
    if level not in known:
        raise DataError(
            f"levels: {variable.name} has no level {level!r} to be pushed to; it has "
            f"{', '.join(map(repr, known)) or 'none, it is continuous'}"
        )
    return known.index(level)
