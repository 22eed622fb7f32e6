"""Names of variables and of their levels, as users write them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
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
            DataError: a column that is not there, or a value that is no level (named with its row).
        """
        columns = []
        for name, levels in zip(self.names, self.levels, strict=True):
            if name not in frame.columns:
                raise DataError(f"frame: has no column {name!r}; {_hint(name, list(frame.columns))}")
            column = frame[name]
            if levels is None:
                numbers = column.to_numpy(dtype=float, na_value=math.nan)
                columns.append(torch.from_numpy(numbers.copy()))
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
        """Rows ``(N, n)``, float64, of a DataFrame, or one of a mapping of what is known of it by name."""
        if not isinstance(rows, Mapping):
            return self.from_frame(rows)
        codes = torch.full((1, len(self.names)), math.nan, dtype=torch.float64)
        for node, value in self.assigned(rows).items():
            codes[0, node] = value
        return codes

    def assigned(self, values: Mapping[str, Any]) -> dict[int, float]:
        """Node numbers and codes of values by name."""
        return {(node := self.node(name)): self.code(node, value) for name, value in values.items()}


def _hint(wanted: Any, known: Sequence[Any]) -> str:
    close = get_close_matches(str(wanted), [str(k) for k in known])
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    shown = ", ".join(repr(k) for k in known[:12])
    return f"there are {shown}{', ...' if len(known) > 12 else ''}"
