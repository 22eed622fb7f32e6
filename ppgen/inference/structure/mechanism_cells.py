"""What a posterior over graphs and its table tell of mechanisms: graphs, and cells that count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError, DataWarning
from ppgen.inference.structure.columns import read_column
from ppgen.inference.structure.problem import GraphSource
from ppgen.inference.structure.reading import as_frame, read_table
from ppgen.inference.structure.table import Table, Variable
from ppgen.inference.structure.warned import warn


def table_behind(posterior: Any, data: Any, interventions: Any) -> Table:
    """The table that a posterior was learnt from, from what the user has of it.

    Args:
        posterior: perhaps with an attribute ``table``.
        data: a Table; or what :func:`~ppgen.inference.structure.reading.read_table` reads.
        interventions: what was set in each row, as ``read_table`` takes it. Where neither this nor a Table is
            given, the posterior's own table is meant, if it has one and the data are its rows.

    Raises:
        ConfigError: rows made under interventions that are not said.
        DataError: data that cannot be read, or other data than the posterior's.
    """
    if isinstance(data, Table) and interventions is None:
        return data
    own = getattr(posterior, "table", None)
    if isinstance(own, Table) and interventions is None:
        _check_same(own, data)
        return own
    targets = getattr(posterior, "targets", None) or [()]
    if interventions is None and any(targets):
        raise ConfigError(
            "interventions: the posterior was learnt from rows in which variables were set; give the same "
            'interventions=... here, or the Table of read_table(table, interventions="...")'
        )
    table = read_table(data, interventions=interventions)
    if isinstance(own, Table) and table.variables != own.variables:
        wrong = [v.name for v, known in zip(table.variables, own.variables, strict=False) if v != known]
        raise ConfigError(
            f"table: {', '.join(wrong[:3]) or 'it'} differs in name or levels from what the posterior was "
            "learnt from; leave interventions out for the same rows, or give structure.read_table(...) with "
            "the same levels"
        )
    return table


def _check_same(own: Table, data: Any) -> None:
    """Raise where data are not the rows of the posterior's own table, as far as can be told.

    Rows with missing cells may have been dropped, and columns cut into levels.
    """
    named = isinstance(data, str | Path) or hasattr(data, "columns")
    fits = not named and getattr(data, "shape", (0, 0))[1:] == (own.num_variables,)
    frame = as_frame(data, own.names if fits else None)
    if lacking := [name for name in own.names if name not in frame.columns]:
        raise DataError(
            f"table: has no column {', '.join(map(repr, lacking[:3]))}; give the table that the posterior "
            "was learnt from"
        )
    frame = frame[list(own.names)]
    whole = frame.dropna() if len(frame) > own.num_rows else frame
    if len(whole) != own.num_rows:
        raise DataError(
            f"table: expected the {own.num_rows} rows that the posterior was learnt from, got {len(frame)}; "
            "for other rows give structure.read_table(...) of them"
        )
    for variable, values in zip(own.variables, own.values.T.cpu(), strict=True):
        if not _agrees(whole[variable.name], variable, values):
            raise DataError(
                f"table: {variable.name} has other values than in the rows that the posterior was learnt "
                "from; for other rows give structure.read_table(...) of them"
            )


def _agrees(series: Any, variable: Variable, values: Tensor) -> bool:
    levels = variable.levels
    if levels and series.dtype.kind in "iuf" and all(isinstance(level, str) for level in levels):
        return True  # cut into levels
    try:
        read = read_column(series, levels, None if levels else True).values
    except DataError:
        return False
    return bool((read.isnan() | (read == values)).all())


def graphs_and_agents(posterior: Any, table: Table) -> tuple[GraphSource, Tensor | None]:
    """The distribution over graphs behind a posterior, and what is known of agents' targets, shape (A, n).

    Args:
        posterior: a :class:`~ppgen.inference.structure.posterior.GraphPosterior`, what a method returned,
            or a source.
        table: the table that it was learnt from.

    Raises:
        ConfigError: a posterior over other variables.
    """
    names = getattr(posterior, "names", table.names)
    learned = getattr(posterior, "learned", posterior)
    source: GraphSource = getattr(learned, "source", learned)
    if tuple(names) != table.names:
        raise ConfigError(
            f"table: expected the variables of the posterior in their order, {list(names)}, got "
            f"{list(table.names)}; give the table that it was learnt from"
        )
    return source, getattr(learned, "agent_probabilities", None)


def disturbed_cells(table: Table, agent_probabilities: Tensor | None = None) -> Tensor:
    """Cells that say nothing about the mechanism of their variable, bool (N, n).

    Those that were set, however it was done, and those of variables that an agent at work in the row acts
    on with probability above one half.

    Args:
        table: the data.
        agent_probabilities: p(agent acts on variable), shape (A, n); ``None`` where not known.

    Warns:
        DataWarning: agents were at work and nothing is known of their targets.
    """
    if table.agents is None or not table.agents.shape[1]:
        return table.clamped
    if agent_probabilities is None:
        warn(
            "table: agents were at work and their targets are not known, so that all rows are taken as "
            "undisturbed by them; learn the targets first, or name them",
            DataWarning,
        )
        return table.clamped
    acts = (torch.as_tensor(agent_probabilities, device=table.device) > 0.5).double()
    return table.clamped | (table.agents.double() @ acts > 0)


def rows_disturbed_only_at(table: Table, node: int) -> Tensor:
    """Rows in which nothing but, perhaps, one variable was set, bool (N,).

    Agents may act on anything, so rows with one at work do not count.
    """
    others = table.clamped.clone()
    others[:, node] = False
    quiet = ~others.any(-1)
    return quiet if table.agents is None else quiet & ~table.agents.any(-1)
