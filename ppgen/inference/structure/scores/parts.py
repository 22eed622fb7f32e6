r"""Scores that are differences of functions of sets: what all scores here have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError
from ppgen.inference.structure.scores.functions import SetFunction, Term
from ppgen.inference.structure.table import Intervention, Table


@dataclass(frozen=True)
class Part:
    r"""One term :math:`s\, h(S)` of a score.

    Attributes:
        sign: s, 1 or -1.
        rows: which rows count, shape (N,), bool; one at least.
        joint: whether S is the family, :math:`P \cup v`, rather than the parents P.
        term: h.
    """

    sign: int
    rows: Tensor
    joint: bool
    term: Term

    def key(self) -> Hashable:
        """Equal for parts with the same function of sets."""
        return self.term, self.rows.cpu().numpy().tobytes()


@dataclass
class Functions:
    """The functions of sets of one table, each made once."""

    table: Table
    _made: dict[Hashable, SetFunction] = field(default_factory=dict)

    def __call__(self, part: Part) -> SetFunction:
        """The function of a part."""
        key = part.key()
        if key not in self._made:
            self._made[key] = part.term.function(self.table, part.rows)
        return self._made[key]


class PartScore(ABC):
    """A score made of parts, and thereby known to the fast ways to score many families."""

    name: str

    @abstractmethod
    def check(self, table: Table) -> None:
        """Raise :class:`~ppgen.errors.DataError` or ``ConfigError`` where the table does not fit."""

    @abstractmethod
    def parts(self, table: Table, node: int) -> list[Part]:
        """The parts of the score of ``node``; none where no row says anything of it, and the score is 0."""

    def local(self, table: Table, node: int, parents: Sequence[Sequence[int]]) -> Tensor:
        """Scores of ``node`` with each of these parent sets, shape (len(parents),), float64.

        Agents of the table can be parents as well: their numbers follow those of the variables.

        Raises:
            ConfigError: a parent that is not a column, comes twice, or is the node itself.
        """
        agents = 0 if table.agents is None else table.agents.shape[1]
        for one in parents:
            if (
                len(set(one)) < len(one)
                or node in one
                or not set(one) <= set(range(table.num_variables + agents))
            ):
                raise ConfigError(
                    f"parents: expected distinct columns other than {node}, below "
                    f"{table.num_variables + agents}, got {list(one)}"
                )
        functions, parts = Functions(table), self.parts(table, node)
        result = torch.zeros(len(parents), dtype=torch.float64, device=table.device)
        for size in {len(one) for one in parents}:
            index = [i for i, one in enumerate(parents) if len(one) == size]
            sets = torch.tensor([list(parents[i]) for i in index], dtype=torch.int64, device=table.device)
            sets = sets.view(len(index), size)
            family = torch.nn.functional.pad(sets, (0, 1), value=node)
            for part in parts:
                result[index] += part.sign * functions(part).sets(family if part.joint else sets)
        return result


def mechanisms(table: Table, node: int) -> list[Tensor]:
    """The rows, as masks, that follow the natural mechanism of ``node``, and those with one of their own.

    Rows in which a perfect intervention set the node are in neither, and groups without rows are left out.
    """
    natural = ~table.clamped[:, node]
    if table.intervention is Intervention.NONE:
        natural = torch.ones_like(natural)
    groups = [natural, ~natural] if table.intervention is Intervention.IMPERFECT else [natural]
    return [rows for rows in groups if bool(rows.any())]


def check_not_empty(table: Table) -> None:
    """Raise where there are no rows or no columns."""
    if not table.num_rows or not table.num_variables:
        raise DataError(
            f"table: expected at least one row and one column, got {table.num_rows} x {table.num_variables}"
        )


def check_discrete(table: Table, score: str) -> None:
    """Raise where a column is not categorical, or a value is not the number of a level."""
    check_not_empty(table)
    continuous = [v.name for v in table.variables if v.levels is None]
    if continuous:
        raise ConfigError(
            f"score: {score} is for categorical variables, but {_names(continuous)} "
            f"{'is' if len(continuous) == 1 else 'are'} continuous; discretise, or use 'bge' or "
            "'conditional_gaussian_bic'"
        )
    _check_levels(table, range(table.num_variables))


def check_continuous(table: Table, score: str) -> None:
    """Raise where a column is categorical, a value is not finite, or the interventions make no sense."""
    check_not_empty(table)
    discrete = [v.name for v in table.variables if v.levels is not None]
    if discrete:
        raise ConfigError(
            f"score: {score} is for continuous variables, but {_names(discrete)} "
            f"{'is' if len(discrete) == 1 else 'are'} categorical; use 'bdeu' or 'conditional_gaussian_bic'"
        )
    check_finite(table, range(table.num_variables))
    check_not_soft(table, score)


def check_mixed(table: Table, score: str) -> None:
    """Raise where a value does not fit its column, or the interventions make no sense."""
    check_not_empty(table)
    _check_levels(table, [i for i, v in enumerate(table.variables) if v.levels is not None])
    check_finite(table, [i for i, v in enumerate(table.variables) if v.levels is None])
    check_not_soft(table, score)


def check_not_soft(table: Table, score: str) -> None:
    """Raise for soft interventions."""
    if table.intervention is Intervention.SOFT:
        raise ConfigError(
            f"interventions: soft interventions are extra counts at a level and have no meaning for {score}; "
            "use Imperfect, or a discrete table with 'bdeu'"
        )


def check_finite(table: Table, columns: Sequence[int]) -> None:
    """Raise where a value of these columns is not finite."""
    bad = [table.names[c] for c in columns if not bool(table.values[:, c].isfinite().all())]
    if bad:
        raise DataError(f"table: expected finite numbers, but {_names(bad)} has NaN or infinite values")


def _check_levels(table: Table, columns: Sequence[int]) -> None:
    for column in columns:
        values, variable = table.values[:, column], table.variables[column]
        if not bool(((values >= 0) & (values < variable.cardinality) & (values == values.floor())).all()):
            raise DataError(
                f"table: values of {variable.name} are not level numbers 0..{variable.cardinality - 1}; "
                "make the table by read_table, with all levels declared"
            )


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
