"""Tables from what users have: frames, files, arrays; with levels, missing values and interventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ppgen.datasets.tables import load_table
from ppgen.errors import ConfigError, DataError, DataWarning
from ppgen.inference.structure.columns import MISSING_LEVEL, Column, read_column
from ppgen.inference.structure.designs import Design, as_level_number, design, used_columns
from ppgen.inference.structure.discretise import DISCRETISERS, Discretiser, cut, interval_names
from ppgen.inference.structure.interventions import as_kinds
from ppgen.inference.structure.table import Intervention, Table, Variable
from ppgen.inference.structure.warned import warn

Missing = Literal["error", "drop", "level"]


def read_table(
    data: Any,
    *,
    interventions: Any = None,
    names: Sequence[str] | None = None,
    levels: Mapping[str, Sequence[Any]] | Sequence[Any] | None = None,
    continuous: Sequence[str] | bool = (),
    discretise: Literal["quantile", "hartemink"] | Discretiser | None = None,
    missing: Missing = "error",
    device: torch.device | str | None = None,
) -> Table:
    """A table of variables, checked, with the interventions under which its rows were made.

    Which columns are categorical: those with declared ``levels``; pandas categories, strings and booleans;
    and whole numbers with at most 10 distinct values. A column of pandas numbers that became floating
    point for nothing but its missing cells counts as whole numbers. All other numbers are continuous.

    Args:
        data: a pandas DataFrame; the path of a text file (see :func:`~ppgen.datasets.load_table`); an
            array or tensor, shape (N, n); or a :class:`Table`, which is passed through, with other
            interventions where they are given.
        interventions: none by default; or what was set in each row: a column's name, labels or a mask
            (see :class:`~ppgen.inference.structure.interventions.Perfect`), or one of ``Perfect``,
            ``Imperfect``, ``Soft`` and ``Uncertain``, or a list of one known kind and ``Uncertain``.
            Columns that tell it are no variables.
        names: of the columns, for arrays: all of them; by default x1, x2, ...
        levels: values of categorical columns, in order, by name; they may be absent in the data. A
            sequence instead is for every column that is not declared continuous.
        continuous: columns that are continuous although they have few whole numbers; ``True``: all
            numeric columns without declared levels.
        discretise: how to cut the continuous columns into levels: ``"quantile"``, ``"hartemink"``, or
            :class:`~ppgen.inference.structure.discretise.Quantile` or ``Hartemink`` with options.
        missing: what to do where cells are missing: raise; ``"drop"`` the rows; or a ``"level"`` of its
            own, called ``"missing"``, in each categorical column that has any.
        device: where to put the table; by default where a tensor given as data is, else the CPU.

    Raises:
        DataError: the data cannot be used: empty, fewer than two variables or rows, columns of one name
            or of no known type, missing or infinite cells, levels that were not declared, a
            categorical variable of one level, interventions that do not fit.
        ConfigError: arguments that make no sense, or name columns that are not there.

    Warns:
        DataWarning: constant columns, dropped rows, variables that were set in every row, agents that
            cannot be told apart, fewer levels than were asked for.
    """
    if missing not in ("error", "drop", "level"):
        raise ConfigError(f"missing: expected 'error', 'drop' or 'level', got {missing!r}")
    known, uncertain = as_kinds(interventions)
    if isinstance(data, Table):
        settled = {"names": names, "levels": levels, "continuous": continuous, "discretise": discretise}
        given = [name for name, value in settled.items() if value not in (None, ())]
        if given:
            raise ConfigError(
                f"{', '.join(given)}: data is a Table already; give these where it is read from a frame or "
                "file"
            )
        table = _check(data)
        _warn_constant(table)
        if interventions is not None:
            used_columns(known, uncertain, ())
            plan = design(known, uncertain, None, table.names, table.num_rows)
            table = _with_design(replace(table, pushed_to=None), plan)
        return _on(table, device)
    frame = as_frame(data, names)
    device = data.device if device is None and isinstance(data, Tensor) else device
    used = used_columns(known, uncertain, list(frame.columns))
    variables = [name for name in frame.columns if name not in used]
    _check_shape(frame, variables)
    plan = design(known, uncertain, frame, variables, len(frame))
    declared = _declared(levels, continuous, variables)
    columns = [read_column(frame[name], declared[name], _is_declared(continuous, name)) for name in variables]
    kept = _kept_rows(columns, missing)
    if kept is not None:
        columns = [replace(column, values=column.values[kept]) for column in columns]
        plan = _rows_of(plan, kept)
    if discretise is not None:
        columns = _discretised(columns, discretise)
    columns = [_without_gaps(column) for column in columns]
    for column in columns:
        _check_levels(column)
    table = Table(
        variables=tuple(Variable(column.name, column.levels) for column in columns),
        values=torch.stack([column.values for column in columns], 1),
        clamped=plan.clamped,
    )
    _warn_constant(table)
    return _on(_with_design(table, plan), device)


def as_frame(data: Any, names: Sequence[str] | None) -> Any:
    """A DataFrame whose columns are called by text, from what :func:`read_table` reads."""
    import numpy as np
    import pandas

    if isinstance(data, str | Path):
        data = load_table(Path(data))
    if isinstance(data, pandas.DataFrame):
        if names is not None:
            raise ConfigError(
                "names: these are for arrays, data has its own; leave them out or rename its columns"
            )
        frame = data.copy(deep=False)
        frame.columns = pandas.Index([str(name) for name in frame.columns], dtype=object)
    else:
        array = data.detach().cpu().numpy() if isinstance(data, Tensor) else np.asarray(data)
        if array.ndim != 2:
            raise DataError(
                f"data: expected a DataFrame, a path, or an array of shape (N, n), got {type(data).__name__} "
                f"of shape {array.shape}"
            )
        called = (
            [f"x{k + 1}" for k in range(array.shape[1])] if names is None else [str(name) for name in names]
        )
        if len(called) != array.shape[1]:
            raise ConfigError(f"names: expected {array.shape[1]}, one for each column, got {len(called)}")
        frame = pandas.DataFrame(array, columns=pandas.Index(called, dtype=object))
    twice = sorted({name for name in frame.columns if list(frame.columns).count(name) > 1})
    if twice:
        raise DataError(f"data: columns of one name: {', '.join(map(repr, twice))}; rename them")
    return frame.reset_index(drop=True)


def _check_shape(frame: Any, variables: Sequence[str]) -> None:
    if len(frame) < 2:
        raise DataError(f"data: expected two rows or more, got {len(frame)}")
    if len(variables) < 2:
        raise DataError(
            f"data: expected two variables or more, got {', '.join(variables) or 'none'}; in a file, check "
            "what separates the columns"
        )


def _is_declared(continuous: Sequence[str] | bool, name: str) -> bool | None:
    """Whether a column was declared continuous; ``None`` where all numeric ones are."""
    if isinstance(continuous, bool):
        return None if continuous else False
    return name in continuous


def _declared(
    levels: Mapping[str, Sequence[Any]] | Sequence[Any] | None,
    continuous: Sequence[str] | bool,
    variables: Sequence[str],
) -> dict[str, tuple[Any, ...] | None]:
    """Declared levels by variable."""
    if isinstance(continuous, str) or isinstance(levels, str):
        raise ConfigError(
            "levels, continuous: expected levels={'x': (...)} and continuous=['x'], got a text; "
            "put it in a list"
        )
    listed = [] if isinstance(continuous, bool) else list(continuous)
    by_name = dict(levels) if isinstance(levels, Mapping) else {}
    for argument, given in (("levels", by_name), ("continuous", listed)):
        unknown = [str(name) for name in given if name not in variables]
        if unknown:
            raise ConfigError(
                f"{argument}: no variable is called {', '.join(map(repr, unknown))}; known are "
                f"{', '.join(variables)}"
            )
    both = [name for name in listed if name in by_name]
    if both:
        raise ConfigError(f"levels, continuous: {', '.join(both)} cannot be both; choose one")
    if levels is not None and not isinstance(levels, Mapping):
        by_name = {name: levels for name in variables if name not in listed}
    return {name: tuple(by_name[name]) if name in by_name else None for name in variables}


def _kept_rows(columns: Sequence[Column], missing: Missing) -> Tensor | None:
    """The rows that stay, or ``None`` where all do."""
    gaps = {column.name: int(column.values.isnan().sum()) for column in columns}
    gaps = {name: count for name, count in gaps.items() if count}
    if not gaps or missing == "level":
        return None
    if missing == "error":
        raise DataError(
            f"data: {sum(gaps.values())} missing cells, "
            + ", ".join(f"{count} in {name}" for name, count in gaps.items())
            + "; fill them, use missing='drop' for the complete rows, or missing='level' to count "
            "missing as a level of a categorical variable"
        )
    kept = ~torch.stack([column.values for column in columns], 1).isnan().any(1)
    count = int(kept.sum())
    if count < 2:
        raise DataError(
            f"data: {count} of {len(kept)} rows are complete, expected two or more; use missing='level', or "
            f"leave out columns with many missing cells ({', '.join(gaps)})"
        )
    warn(
        f"data: {len(kept) - count} of {len(kept)} rows have missing cells (in {', '.join(gaps)}) and were "
        "dropped",
        DataWarning,
    )
    return kept


def _rows_of(plan: Design, kept: Tensor) -> Design:
    agents = None if plan.agents is None else plan.agents[kept]
    return replace(plan, clamped=plan.clamped[kept], agents=agents)


def _discretised(columns: Sequence[Column], how: str | Discretiser) -> list[Column]:
    chooser = DISCRETISERS[how]() if isinstance(how, str) and how in DISCRETISERS else how
    if not isinstance(chooser, Discretiser) or isinstance(chooser, type):
        raise ConfigError(
            f"discretise: expected {' or '.join(map(repr, DISCRETISERS))}, Quantile(...) or Hartemink(...), "
            f"got {how!r}"
        )
    chosen = [column for column in columns if column.levels is None]
    others = [column for column in columns if column.levels is not None]
    if not chosen:
        return list(columns)
    codes = [column.values.nan_to_num(nan=-1.0).long() for column in others]
    num_rows = len(chosen[0].values)
    points = chooser.cuts(
        torch.stack([column.values for column in chosen], 1),
        torch.stack(codes, 1) if codes else torch.zeros(num_rows, 0, dtype=torch.int64),
    )
    result = {}
    for column, at in zip(chosen, points, strict=True):
        if len(at) + 1 < chooser.num_levels and len(at):
            warn(
                f"discretise: {column.name} has too many equal values for {chooser.num_levels} levels, and "
                f"got {len(at) + 1}",
                DataWarning,
            )
        numbers = cut(column.values, at).double()
        result[column.name] = Column(
            column.name, torch.where(numbers < 0, torch.nan, numbers), interval_names(at)
        )
    return [result.get(column.name, column) for column in columns]


def _without_gaps(column: Column) -> Column:
    """Missing cells of a categorical column as a level of their own."""
    gaps = column.values.isnan()
    if not gaps.any():
        return column
    if column.levels is None:
        raise DataError(
            f"data: {int(gaps.sum())} missing cells in {column.name}, which is continuous, so that "
            "missing='level' cannot count them as a level; discretise, or use missing='drop'"
        )
    if MISSING_LEVEL in column.levels:
        raise DataError(
            f"data: {column.name} has missing cells and a level called {MISSING_LEVEL!r}; rename that level"
        )
    values = torch.where(gaps, float(len(column.levels)), column.values)
    return Column(column.name, values, (*column.levels, MISSING_LEVEL))


def _check_levels(column: Column) -> None:
    if column.levels is not None and len(column.levels) == 1:
        raise DataError(
            f"data: {column.name} has one level, {column.levels[0]!r}, so that nothing depends on it; leave "
            "the column out, or declare more levels"
        )


def _warn_constant(table: Table) -> None:
    constant = (table.values == table.values[:1]).all(0).tolist()
    for name, same in zip(table.names, constant, strict=True):
        if same:
            warn(
                f"data: {name} is constant, so that nothing can be learnt about its edges; leave the column "
                "out",
                DataWarning,
            )


def _with_design(table: Table, plan: Design) -> Table:
    """The table with its interventions, which are checked against its variables."""
    pushed_to = None
    if plan.intervention is Intervention.SOFT:
        touched = plan.clamped.any(0).tolist()
        numbers = []
        for variable, was_set in zip(table.variables, touched, strict=True):
            if was_set and variable.levels is None:
                raise DataError(
                    f"interventions: Soft pushes towards levels, but {variable.name} is continuous; "
                    "discretise it, or use Perfect or Imperfect"
                )
            numbers.append(as_level_number(variable, plan.push_levels))
        pushed_to = torch.tensor(numbers)
    if plan.intervention is Intervention.PERFECT:
        always = [
            name for name, was_set in zip(table.names, plan.clamped.all(0).tolist(), strict=True) if was_set
        ]
        if always:
            warn(
                f"interventions: {', '.join(always)} was set in every row, so that no row is left to learn "
                "its parents from",
                DataWarning,
            )
    device = table.device
    return replace(
        table,
        clamped=plan.clamped.to(device),
        intervention=plan.intervention,
        push=plan.push,
        pushed_to=None if pushed_to is None else pushed_to.to(device),
        agents=None if plan.agents is None else plan.agents.to(device),
        agent_names=plan.agent_names,
        max_agents=plan.max_agents,
    )


def _check(table: Table) -> Table:
    """The table, if its values are finite and its level numbers are known."""
    if not table.values.isfinite().all():
        raise DataError(
            f"data: the Table has {int((~table.values.isfinite()).sum())} cells that are not finite"
        )
    for variable, column in zip(table.variables, table.values.T, strict=True):
        if (
            variable.levels is not None
            and not ((column >= 0) & (column < variable.cardinality) & (column == column.round())).all()
        ):
            raise DataError(
                f"data: {variable.name} of the Table has values other than its level numbers 0 to "
                f"{variable.cardinality - 1}"
            )
    return table


def _on(table: Table, device: torch.device | str | None) -> Table:
    if device is None:
        return table
    from ppgen.inference.trainee import find_device

    return table.to(find_device(device))
