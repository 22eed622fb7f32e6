r"""What the coordinates of a datum can be, and how discrete data meet densities.

Five kinds of values are told apart:

* ``real``: any real number;
* ``binary``: 0 or 1;
* ``grid``: ``levels`` equally spaced values, stored as :math:`k / (L - 1)` for
  :math:`k = 0, \dots, L - 1`, so that 0 is black and 1 is white;
* ``count``: 0, 1, 2, ... without an end;
* ``table``: each coordinate is a variable of its own: a level number :math:`0, \dots, L_d - 1`, or any
  real number where :math:`L_d = 0`.

With ``missing``, a coordinate may also be NaN, which stands for one that was not observed. Families that can
sum or integrate such coordinates out exactly take such data; the others refuse them.

A family with a density on the reals meets discrete data through *uniform
dequantisation* (Theis, van den Oord & Bethge 2016): it sees
:math:`y = (k + u) / L` with :math:`u \sim U[0, 1)^D`, and

.. math:: \log P(k) \ge E_u[\log p(y)] - D \log L .

So a density gives a lower bound on the log-probability of the levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError, ShapeError


@dataclass(frozen=True)
class Values:
    """The set of values that each coordinate of a datum can take.

    Attributes:
        kind: ``"real"``, ``"binary"``, ``"grid"``, ``"count"`` or ``"table"``.
        levels: number of levels: 2 for binary, ``None`` for real numbers, counts and tables.
        cardinalities: of a table, the number of levels of each coordinate, 0 for real ones.
        missing: whether NaN stands for a missing coordinate.
    """

    kind: Literal["real", "binary", "grid", "count", "table"]
    levels: int | None = None
    cardinalities: tuple[int, ...] = ()
    missing: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("real", "binary", "grid", "count", "table"):
            raise ConfigError(
                f"kind: expected 'real', 'binary', 'grid', 'count' or 'table', got {self.kind!r}"
            )
        if (self.kind == "table") != bool(self.cardinalities) or any(c < 0 for c in self.cardinalities):
            raise ConfigError(
                "cardinalities: expected numbers of levels (0: real), one a coordinate, of a table alone; "
                f"got {self.cardinalities} for {self.kind} values"
            )
        if self.kind == "table" and self.levels is not None:
            raise ConfigError(f"levels: a table has cardinalities instead, got {self.levels}; leave it out")
        if self.kind == "binary" and self.levels not in (None, 2):
            raise ConfigError(f"levels: binary values have 2, got {self.levels}; leave it out")
        if self.kind in ("real", "count") and self.levels is not None:
            raise ConfigError(f"levels: {self.kind} values have none, got {self.levels}; leave it out")
        if self.kind == "binary":
            object.__setattr__(self, "levels", 2)
        if self.kind == "grid" and (self.levels is None or self.levels < 2):
            raise ConfigError(f"levels: a grid needs an integer of 2 or more, got {self.levels}")

    @property
    def discrete(self) -> bool:
        """Whether a datum has a probability mass rather than a density."""
        return all(self.cardinalities) if self.kind == "table" else self.kind != "real"

    def __str__(self) -> str:
        if self.kind == "table":
            text = f"table of {len(self.cardinalities)} variables"
        else:
            text = f"grid of {self.levels} levels" if self.kind == "grid" else self.kind
        return f"{text} with missing ones" if self.missing else text

    def within(self, other: Values) -> bool:
        """Whether data of these values are data of ``other`` as they stand: the same, or without NaN."""
        return self in (other, replace(other, missing=False))

    def check(self, x: Tensor, name: str = "x") -> None:
        """Raise :class:`~ppgen.errors.DataError` where ``x`` is not made of these values."""
        if self.missing:  # zero is a value of every kind
            x = torch.where(x.isnan(), 0.0, x)
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).sum())
            raise DataError(
                f"{name}: expected finite numbers, got {bad} NaN or infinite of {x.numel()}; "
                "drop or impute those rows first"
            )
        if self.kind == "table":
            self._check_table(x, name)
        if self.kind == "count" and bool(((x < 0) | (x != x.round())).any()):
            count = int(((x < 0) | (x != x.round())).sum())
            raise DataError(
                f"{name}: expected counts 0, 1, 2, ..., but {count} of {x.numel()} numbers are not, the "
                f"range is [{float(x.min()):.4g}, {float(x.max()):.4g}]; model them as real numbers, or undo "
                "their scaling"
            )
        if self.levels is None:
            return
        steps = x * (self.levels - 1)
        tolerance = max(1e-3, 4 * self.levels * torch.finfo(x.dtype).eps)
        off_grid = (steps - steps.round()).abs() > tolerance
        outside = (x < 0) | (x > 1)
        if bool((off_grid | outside).any()):
            count = int((off_grid | outside).sum())
            raise DataError(
                f"{name}: expected values of the {self} (k/{self.levels - 1} in [0, 1]), but {count} "
                f"of {x.numel()} are not, the range is [{float(x.min()):.4g}, {float(x.max()):.4g}]; "
                "declare the values with datasets.from_arrays(..., levels=...) or rescale them"
            )

    def _check_table(self, x: Tensor, name: str) -> None:
        flat = x.reshape(len(x), -1)
        if flat.shape[1] != len(self.cardinalities):
            raise ShapeError(
                f"{name}: expected {len(self.cardinalities)} variables a row, "
                f"got {flat.shape[1]}; give all columns"
            )
        largest = flat.new_tensor(self.cardinalities) - 1
        wrong = (flat < 0) | (flat > largest) | (flat != flat.round())
        wrong &= largest >= 0
        if bool(wrong.any()):
            column = int(wrong.any(0).nonzero()[0, 0])
            row = int(wrong[:, column].nonzero()[0, 0])
            raise DataError(
                f"{name}: expected level numbers 0 to {int(largest[column])} in column {column}, got "
                f"{float(flat[row, column]):.4g} in row {row}; number the levels from 0 "
                "(a model's from_frame does)"
            )

    def points(self, num_dims: int) -> list[Tensor] | None:
        """Values of each of ``num_dims`` coordinates, float64; ``None`` unless all are discrete."""
        if self.kind == "table":
            numbers = [torch.arange(c, dtype=torch.float64) for c in self.cardinalities]
            return numbers if self.discrete else None
        if self.levels is None:
            return None
        return [torch.linspace(0, 1, self.levels, dtype=torch.float64)] * num_dims

    def indices(self, x: Tensor) -> Tensor:
        """Level numbers ``k`` (int64) of grid values ``x``, same shape."""
        if self.levels is None:
            raise ConfigError(f"values: {self} values have no level numbers on one grid; use a grid")
        return (x * (self.levels - 1)).round().long()

    def dequantise(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``(k + u) / L`` in [0, 1) for grid values ``x``, ``k + u`` for counts; real ones stay."""
        if self.kind == "count":
            return x + torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        if self.levels is None:
            return x
        noise = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        # Keeps k + u inside its cell after rounding, in float32 too.
        margin = 2 * self.levels * torch.finfo(x.dtype).eps
        return ((x * (self.levels - 1)).round() + noise.clamp(margin, 1 - margin)) / self.levels

    def quantise(self, y: Tensor) -> Tensor:
        """The grid values whose cells ``y`` falls into (the inverse of :meth:`dequantise`)."""
        if self.kind == "count":
            return y.floor().clamp_min(0)
        if self.levels is None:
            return y
        return (y * self.levels).floor().clamp(0, self.levels - 1) / (self.levels - 1)

    def log_cell_volume(self, num_dims: int) -> float:
        """``-D log L``: log volume of one dequantisation cell, in nats; 0 for real values and counts."""
        return 0.0 if self.levels is None else -num_dims * math.log(self.levels)


REAL = Values("real")
BINARY = Values("binary")


def grid(levels: int) -> Values:
    """Values on ``levels`` equally spaced points of [0, 1]."""
    return BINARY if levels == 2 else Values("grid", levels)


def table_values(cardinalities: Sequence[int], on_grid: bool) -> Values:
    """Values of variables with so many levels (0: real), as simple a kind as says it.

    Args:
        cardinalities: number of levels of each variable.
        on_grid: whether all have one number of levels and lie on its grid in [0, 1], as images do; else
            level numbers are meant.
    """
    kinds = set(cardinalities)
    if kinds == {0}:
        return REAL
    if kinds == {2}:
        return BINARY
    if on_grid:
        return grid(cardinalities[0])
    return Values("table", cardinalities=tuple(cardinalities))


def bridge(data: Values, model: Values, name: str = "data") -> Callable[[Tensor], Tensor]:
    """The map that turns batches of ``data`` values into what a model of ``model`` values sees.

    It is the identity where both agree, uniform dequantisation where a density on
    the reals meets discrete data. The noise comes from torch's global generator
    (fresh noise at each call).

    Args:
        data: values of the data.
        model: values that the model is for.
        name: what the data are called in messages.

    Raises:
        DataError: a model of discrete values meets data of other values, or one that takes no missing
            values meets data that have some.
    """
    if data.within(model):
        return lambda x: x
    if data.missing and not model.missing:
        raise DataError(
            f"{name}: the data have missing values (NaN), which this model cannot sum out; drop or impute "
            "those rows first, or take a family that can, such as HiddenMarkov"
        )
    if model.kind == "real" and data.kind != "table":
        return data.dequantise
    hint = (
        "binarise the data (dataset.binarised())"
        if model.kind == "binary"
        else f"declare the data on that grid, or build the model for {data}"
    )
    raise DataError(f"{name}: the model is for {model} values, the data are {data}; {hint}")
