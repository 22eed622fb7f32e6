"""What the gradient methods ask of a problem before they start."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError
from ppgen.inference.structure.gradient.moments import free_variances
from ppgen.inference.structure.table import Intervention, Table


def check_table(table: Table, method: str) -> None:
    """Raise where a table does not fit a method for continuous variables under perfect interventions.

    Raises:
        ConfigError: categorical columns, or interventions that the method has no place for.
        DataError: fewer than two rows, or no column.
    """
    if not table.is_continuous:
        names = [v.name for v in table.variables if v.levels is not None]
        raise ConfigError(
            f"method: {method} takes continuous variables only, and {_some(names)} "
            f"{'is' if len(names) == 1 else 'are'} categorical; use method='exact', 'order_mcmc', "
            "'partition_mcmc' or 'hill_climb', which take discrete and mixed tables"
        )
    if table.num_variables == 0 or table.num_rows < 2:
        raise DataError(
            f"table: expected 2 rows and 1 column or more, got {table.num_rows} and {table.num_variables}"
        )
    if table.agents is not None and table.agents.shape[1]:
        raise ConfigError(
            f"interventions: {method} cannot sum over the unknown targets of agents; use method='exact', or "
            "name the targets with Perfect(...)"
        )
    if table.intervention not in (Intervention.NONE, Intervention.PERFECT):
        raise ConfigError(
            f"interventions: {method} takes perfect interventions, got {table.intervention.value} ones; use "
            "method='exact' or 'order_mcmc', or Perfect(...) if the experimenter set the values"
        )


def spread(table: Table) -> Tensor:
    """Standard deviations over the cells that were not set, to divide by; 1 where there is no such cell.

    Raises:
        DataError: a constant column.
    """
    deviations = free_variances(table.values.double(), table.clamped).sqrt()
    constant = [v.name for v, s in zip(table.variables, deviations.tolist(), strict=True) if s == 0]
    if constant:
        raise DataError(
            f"table: {_some(constant)} never {'varies' if len(constant) == 1 else 'vary'} where not set, and "
            "cannot be standardised; drop such columns"
        )
    return torch.where(deviations.isnan(), 1.0, deviations)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
