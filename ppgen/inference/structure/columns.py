"""One column of a table: whether it is categorical, its levels, its values as numbers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError

MAX_WHOLE_NUMBERS = 10
"""Columns of whole numbers with more distinct values than this are continuous."""

MISSING_LEVEL = "missing"

_SHOWN = 5


@dataclass(frozen=True)
class Column:
    """A column that was read.

    Attributes:
        name: its name.
        values: shape (N,), float64: level numbers, or numbers; NaN where missing.
        levels: of a categorical column, in order; ``None`` for a continuous one.
    """

    name: str
    values: Tensor
    levels: tuple[Hashable, ...] | None


def read_column(series: Any, levels: tuple[Any, ...] | None, continuous: bool | None) -> Column:
    """The column in a pandas Series.

    Args:
        series: named.
        levels: declared ones; ``None`` without.
        continuous: whether it was declared continuous; ``None``: it is, if it has numbers.

    Raises:
        DataError: mixed or unknown types, infinite cells, values that no declared level has, text where
            numbers were declared.
        ConfigError: declared levels that are empty, missing, or come twice.
    """
    from pandas.api import types

    series = _plain(series)
    name = str(series.name)
    if levels is not None:
        return _encode(series, _checked(levels, name))
    if isinstance(series.dtype, types.CategoricalDtype) and not continuous:
        return _encode(series, tuple(map(_scalar, series.cat.categories)))
    if types.is_bool_dtype(series.dtype) and not continuous:
        return _encode(series.astype(object), (False, True))
    if types.is_bool_dtype(series.dtype) or types.is_numeric_dtype(series.dtype):
        return _read_numbers(series, continuous)
    if continuous:
        raise DataError(
            f"data: {name} was declared continuous, but holds {series.dtype} values, such as "
            f"{series.dropna().iloc[:1].tolist()}; make them numbers"
        )
    if series.isna().all():
        raise DataError(f"data: every cell of {name} is missing; leave the column out")
    kind = types.infer_dtype(series, skipna=True)
    if kind != "string":
        raise DataError(
            f"data: {name} holds values of type {kind}, expected numbers, text, booleans or pandas "
            "categories; convert the column"
        )
    return _encode(series, tuple(sorted(series.dropna().unique().tolist())))


def _plain(series: Any) -> Any:
    """The series with numbers and booleans in columns of their own type."""
    from pandas.api import types

    if series.dtype == object:
        kind = types.infer_dtype(series, skipna=True)
        if kind == "integer":
            return series.astype("Int64")
        if kind in ("floating", "mixed-integer-float"):
            return series.astype(float)
        if kind == "boolean" and not series.isna().all():
            return series.astype("boolean")
    return series


def _read_numbers(series: Any, continuous: bool | None) -> Column:
    from pandas.api import types

    name = str(series.name)
    if types.is_complex_dtype(series.dtype):
        raise DataError(f"data: {name} holds complex numbers; split it into real columns")
    values = torch.tensor(series.to_numpy(dtype=float, na_value=float("nan")), dtype=torch.float64)
    if values.isinf().any():
        raise DataError(f"data: {int(values.isinf().sum())} infinite cells in {name}; mend or remove them")
    there = values[~values.isnan()]
    if not len(there):
        raise DataError(f"data: every cell of {name} is missing; leave the column out")
    # Whole numbers become floating point in pandas where cells are missing.
    whole = types.is_integer_dtype(series.dtype) or (
        len(there) < len(values) and bool((there == there.round()).all())
    )
    distinct = there.unique()
    if continuous is not False or not whole or len(distinct) > MAX_WHOLE_NUMBERS:
        return Column(name, values, None)
    numbers = torch.searchsorted(distinct, values.nan_to_num(nan=float(distinct[0]))).double()
    return Column(
        name,
        torch.where(values.isnan(), torch.nan, numbers),
        tuple(int(level) for level in distinct.tolist()),
    )


def _checked(levels: tuple[Any, ...], name: str) -> tuple[Hashable, ...]:
    from pandas import isna

    levels = tuple(map(_scalar, levels))
    try:
        twice = len(set(levels)) < len(levels)
    except TypeError as error:
        raise ConfigError(f"levels: {name} has levels that are no plain values: {levels!r}") from error
    if not levels or twice or any(bool(isna(level)) for level in levels):
        raise ConfigError(
            f"levels: expected one or more different values for {name}, none of them missing, got {levels!r}"
        )
    return levels


def _encode(series: Any, levels: tuple[Hashable, ...]) -> Column:
    """Level numbers of a categorical column."""
    name = str(series.name)
    number = {level: k for k, level in enumerate(levels)}
    codes, distinct = series.factorize()
    unseen = [_scalar(value) for value in distinct if _scalar(value) not in number]
    if unseen:
        more = f" and {len(unseen) - _SHOWN} more" if len(unseen) > _SHOWN else ""
        raise DataError(
            f"data: {name} has the value {', '.join(map(repr, unseen[:_SHOWN]))}{more}, which is none of its "
            f"levels {', '.join(map(repr, levels))}; add it to levels, or mend the data"
        )
    # The last entry is for missing cells, which have the code -1.
    table = torch.tensor(
        [*(float(number[_scalar(value)]) for value in distinct), torch.nan], dtype=torch.float64
    )
    return Column(name, table[torch.from_numpy(codes.copy())], levels)


def _scalar(value: Any) -> Any:
    """A numpy scalar as the Python value that it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
