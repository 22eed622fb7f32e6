"""What a posterior over graphs and its table tell of mechanisms: graphs, and cells that count."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError, DataWarning
from ppgen.inference.structure.problem import GraphSource
from ppgen.inference.structure.reading import read_table
from ppgen.inference.structure.table import Table


def table_behind(posterior: Any, data: Any, interventions: Any) -> Table:
    """The table that a posterior was learnt from, from what the user has of it.

    Args:
        posterior: perhaps with an attribute ``table``.
        data: a Table; or what :func:`~ppgen.inference.structure.reading.read_table` reads.
        interventions: what was set in each row, as ``read_table`` takes it. Where neither this nor a Table is
            given, the posterior's own table is meant, if it has one.

    Raises:
        ConfigError: rows made under interventions that are not said.
        DataError: data that cannot be read, or other data than the posterior's.
    """
    if isinstance(data, Table) and interventions is None:
        return data
    own = getattr(posterior, "table", None)
    if isinstance(own, Table) and interventions is None:
        if len(data) != own.num_rows:
            raise DataError(
                f"table: expected the {own.num_rows} rows that the posterior was learnt from, got "
                f"{len(data)}; for other rows give structure.read_table(...) of them"
            )
        return own
    targets = getattr(posterior, "targets", None) or [()]
    if interventions is None and any(targets):
        raise ConfigError(
            "interventions: the posterior was learnt from rows in which variables were set; give the same "
            'interventions=... here, or the Table of read_table(table, interventions="...")'
        )
    return read_table(data, interventions=interventions)


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
        warnings.warn(
            "table: agents were at work and their targets are not known, so that all rows are taken as "
            "undisturbed by them; learn the targets first, or name them",
            DataWarning,
            stacklevel=3,
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
