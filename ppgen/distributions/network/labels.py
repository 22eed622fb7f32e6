"""Names of variables and of their levels, as users write them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError

#: The levels of each variable; ``None`` for a continuous one.
Levels = tuple[tuple[Hashable, ...] | None, ...]


@dataclass(frozen=True)
class Labels:
    """Names and levels of the columns of a table.

    Attributes:
        names: of the variables, all different.
        levels: of each variable, in the order of their numbers; ``None`` for a continuous one.
    """

    names: tuple[str, ...]
    levels: Levels

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names) or len(self.names) != len(self.levels):
            raise ConfigError(
                f"names: expected {len(self.levels)} different names, got "
                f"{list(self.names)}; rename the columns"
            )
        for name, levels in zip(self.names, self.levels, strict=True):
            if levels is not None and (not levels or len(set(levels)) < len(levels)):
                raise ConfigError(
                    f"levels: expected one or more different levels of {name!r}, got {list(levels)}"
                )

    def node(self, name: Any) -> int:
        """The number of a variable.

        Raises:
            ConfigError: there is none of this name.
        """
        if name in self.names:
            return self.names.index(name)
        raise ConfigError(f"no variable is called {name!r}; {_hint(name, self.names)}")

    def code(self, node: int, value: Any) -> float:
        """The level number of a level, or the number that a continuous variable is given.

        Raises:
            ConfigError: not a level, or not a finite number.
        """
        levels, name = self.levels[node], self.names[node]
        (value,) = plain([value])
        if levels is None:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"{name}: expected a finite number, got {value!r}")
            return float(value)
        if value not in levels:
            raise ConfigError(f"{name}: has no level {value!r}; {_hint(value, levels)}")
        return float(levels.index(value))

    def to_frame(self, codes: Tensor) -> Any:
        """A DataFrame of rows ``(N, n)`` of level numbers and numbers; NaN becomes a missing value."""
        import pandas

        columns: dict[str, Any] = {}
        for node, (name, levels) in enumerate(zip(self.names, self.levels, strict=True)):
            column = codes[:, node].detach().cpu().double()
            if levels is None:
                columns[name] = column.numpy()
                continue
            numbers = torch.where(column.isnan(), -1.0, column).round().long().numpy()
            columns[name] = pandas.Categorical.from_codes(numbers, categories=list(levels))
        return pandas.DataFrame(columns)

    def from_frame(self, frame: Any) -> Tensor:
        """Rows ``(N, n)``, float64, of a DataFrame with these columns; missing values become NaN.

        Raises:
            DataError: a column that is not there, a value that is no level, or no number (named with its
                row).
        """
        columns = []
        for name, levels in zip(self.names, self.levels, strict=True):
            if name not in frame.columns:
                raise DataError(f"frame: has no column {name!r}; {_hint(name, list(frame.columns))}")
            column = frame[name]
            if levels is None:
                columns.append(_numbers(column, name))
                continue
            codes = {level: float(number) for number, level in enumerate(levels)}
            found = []
            for row, (value, gone) in enumerate(zip(column, column.isna(), strict=True)):
                if not gone and value not in codes:
                    raise DataError(
                        f"frame: {name!r} has no level {value!r} (row {row}); {_hint(value, levels)}"
                    )
                found.append(math.nan if gone else codes[value])
            columns.append(torch.tensor(found, dtype=torch.float64))
        return torch.stack(columns, -1)

    def codes_of(self, rows: Any) -> Tensor:
        """Rows ``(N, n)``, float64, of a DataFrame, or one of a mapping of what is known of it by name.

        A pandas Series is such a mapping, in which missing values are unknown.

        Raises:
            DataError: none of these; for a DataFrame as :meth:`from_frame`.
            ConfigError: a name or a level that there is not.
        """
        if hasattr(rows, "columns"):
            return self.from_frame(rows)
        if not isinstance(rows, Mapping) and not hasattr(rows, "to_dict"):
            raise DataError(
                "rows: expected a tensor, a DataFrame, or a mapping of values by name, got "
                f"{type(rows).__name__}; numbers of an array go in as torch.as_tensor(rows)"
            )
        codes = torch.full((1, len(self.names)), math.nan, dtype=torch.float64)
        for node, value in self.assigned(rows, "rows").items():
            codes[0, node] = value
        return codes

    def assigned(self, values: Any, argument: str) -> dict[int, float]:
        """Node numbers and codes of values by name, in a mapping or a pandas Series.

        Raises:
            ConfigError: neither (``argument`` says of what); a name or a level that there is not.
        """
        if hasattr(values, "dropna") and not hasattr(values, "columns"):
            values = values.dropna().to_dict()
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{argument}: expected a mapping of values by name, such as {{{self.names[0]!r}: ...}}, got "
                f"{values!r}"
            )
        return {(node := self.node(name)): self.code(node, value) for name, value in values.items()}


def plain(values: Iterable[Any]) -> tuple[Any, ...]:
    """Values with numbers of numpy, pandas and torch as Python's own, which can be saved."""
    return tuple(v.item() if hasattr(v, "item") and getattr(v, "ndim", None) == 0 else v for v in values)


def _numbers(column: Any, name: Any) -> Tensor:
    """A pandas column of numbers, float64 (N,), NaN where missing."""
    import pandas

    found = pandas.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=float, na_value=math.nan)
    numbers = torch.from_numpy(found.copy())
    wrong = numbers.isinf() | (numbers.isnan() & torch.from_numpy(column.notna().to_numpy().copy()))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        (value,) = plain([column.iloc[row]])
        raise DataError(
            f"frame: {name!r} has {value!r} (row {row}), expected finite numbers; mend it, or leave a gap"
        )
    return numbers


def _hint(wanted: Any, known: Sequence[Any]) -> str:
    close = get_close_matches(str(wanted), [str(k) for k in known])
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    shown = ", ".join(repr(k) for k in known[:12])
    return f"there are {shown}{', ...' if len(known) > 12 else ''}"
