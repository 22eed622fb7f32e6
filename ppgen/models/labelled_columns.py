"""Names of a table with classes: its columns and their levels, and the classes, which one column holds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ppgen.distributions.network.labels import Labels
from ppgen.errors import ConfigError, DataError
from ppgen.inference.structure.columns import read_column

#: What a column holds, by name: its values in order, or ``None`` for real numbers.
DeclaredLevels = Mapping[str, Sequence[Hashable] | None]


@dataclass(frozen=True)
class LabelledColumns:
    """How rows and classes as numbers become a DataFrame, and the other way.

    Attributes:
        columns: names and levels of the columns of data.
        classes: name and levels of the column of classes.
    """

    columns: Labels
    classes: Labels

    def __post_init__(self) -> None:
        if self.label in self.columns.names:
            raise ConfigError(f"label: expected a name that is none of the columns', got {self.label!r}")

    @classmethod
    def read(cls, frame: Any, label: str, levels: DeclaredLevels | None = None) -> Self:
        """What the columns of a DataFrame hold.

        Args:
            frame: numbers are real numbers, booleans have two levels, text and categories have theirs.
            label: name of the column of classes, which may also hold whole numbers, if no more than ten
                differ.
            levels: columns that are to be read otherwise.

        Raises:
            DataError: no DataFrame, columns of one name, of mixed types or without any value, infinite
                numbers, values beside the declared levels.
            ConfigError: names that are no columns; labels that are no classes.
        """
        if not hasattr(frame, "columns"):
            raise DataError(
                f"frame: expected a pandas DataFrame, got {type(frame).__name__}; "
                "ppgen.datasets.load_table(path) reads one from a file"
            )
        if not frame.columns.is_unique:
            raise DataError("frame: some columns have one name; rename them")
        names, levels = tuple(frame.columns), dict(levels or {})
        for name in (label, *levels):
            Labels(names, (None,) * len(names)).node(name)
        found: dict[str, tuple[Hashable, ...] | None] = {}
        for name in names:
            declared = levels.get(name)
            continuous = False if name == label else True if name in levels else None
            found[name] = read_column(
                frame[name], None if declared is None else tuple(declared), continuous
            ).levels
        classes = found.pop(label)
        if classes is None or not found:
            raise ConfigError(
                f"label: expected a column of classes beside columns of data, got {label!r} of "
                f"{list(names)}; numbers are classes where levels={{{label!r}: [...]}} says which"
            )
        return cls(Labels(tuple(found), tuple(found.values())), Labels((label,), (classes,)))

    @property
    def label(self) -> str:
        """Name of the column of classes."""
        return self.classes.names[0]

    def rows(self, table: Any) -> Tensor:
        """Rows (N, D), float64, of a DataFrame, or of one row as a Series or mapping, but for its class.

        Raises:
            DataError, ConfigError: as :meth:`~ppgen.distributions.network.labels.Labels.codes_of` does.
        """
        if is_table(table) and not hasattr(table, "columns"):
            table = {name: value for name, value in table.items() if name != self.label}
        return self.columns.codes_of(table)

    def labels(self, table: Any) -> Tensor | None:
        """Numbers of the classes (N,), int64, -1 where missing; ``None`` without their column.

        Raises:
            DataError: a class that there is not.
        """
        if self.label not in getattr(table, "columns", ()):
            return None
        return self.classes.from_frame(table)[:, 0].nan_to_num(-1.0).long()

    def to_frame(self, x: Tensor, y: Tensor | None) -> Any:
        """Rows (N, D), and numbers of classes where given, as a DataFrame."""
        frame = self.columns.to_frame(x)
        if y is not None:
            numbers = y[:, None].double().masked_fill(y[:, None] < 0, torch.nan)
            frame[self.label] = self.classes.to_frame(numbers)[self.label]
        return frame

    def shares(self, table: Any, probabilities: Tensor) -> Any:
        """Probabilities (N, K) of the classes of a table's rows, as a DataFrame."""
        import pandas

        classes = pandas.Index(self.classes.levels[0] or (), name=self.label)
        return pandas.DataFrame(probabilities.cpu().numpy(), columns=classes, index=_index(table))

    def named(self, table: Any, numbers: Tensor) -> Any:
        """Classes of a table's rows from their numbers (N,), as a Series."""
        import pandas

        classes = self.classes.levels[0] or ()
        return pandas.Series([classes[k] for k in numbers.tolist()], index=_index(table), name=self.label)


def is_table(rows: Any) -> bool:
    """Whether rows come with names: a DataFrame, or one row as a Series or a mapping."""
    return isinstance(rows, Mapping) or hasattr(rows, "to_dict")


def _index(table: Any) -> Any:
    """What the rows of a table are called; one row has none."""
    return table.index if hasattr(table, "columns") else range(1)
