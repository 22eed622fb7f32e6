"""From whatever holds the user's numbers (array, frame, torch data set) to one tensor, checked."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ppgen.errors import ConfigError, DataError, ShapeError

_SHOWN = 5  # how many columns or rows a message lists


def listed(items: list[Any]) -> str:
    """``items`` for a message, the first few by name and the rest by count."""
    shown = ", ".join(map(str, items[:_SHOWN]))
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"


def as_tensor(data: Any, name: str = "x") -> tuple[Tensor, list[str] | None]:
    """The numbers in ``data`` as a tensor of bool, uint8, int64 or floating point, and column names.

    Args:
        data: torch tensor, numpy array, pandas frame or series, or nested lists of numbers.
        name: the argument's name, for messages.

    Raises:
        DataError: not numbers, or numbers of a kind that has no density (complex, dates);
            names the columns.
    """
    if isinstance(data, Tensor):
        return _plain_tensor(data, name), None
    if is_frame(data):
        frame = data.to_frame() if data.ndim == 1 else data
        return _from_numpy(_frame_to_numpy(frame, name), name), [str(c) for c in frame.columns]
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise DataError(
            f"{name}: expected an array, every datum of one shape, but rows differ in length ({error}); "
            "pad or cut them to one length"
        ) from error
    return _from_numpy(array, name), None


def is_frame(data: Any) -> bool:
    """Whether ``data`` is a pandas frame or series (without importing pandas)."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame | pandas.Series)


def check_finite(x: Tensor, name: str, columns: list[str] | None = None) -> None:
    """Raise :class:`~ppgen.errors.DataError` with count, columns and rows of NaN and infinities."""
    if not x.is_floating_point():
        return
    bad = ~torch.isfinite(x.reshape(len(x), -1))
    if not bool(bad.any()):
        return
    rows = bad.any(1).nonzero().squeeze(-1).tolist()
    where = bad.any(0).nonzero().squeeze(-1).tolist()
    labels = [columns[i] for i in where] if columns else where
    raise DataError(
        f"{name}: expected finite numbers, got {int(bad.sum())} NaN or infinite of {x.numel()}, "
        f"in column(s) {listed(labels)} and row(s) {listed(rows)}; drop those rows, or impute them first"
    )


def collate(data: Dataset[Any], max_items: int | None = None) -> tuple[Any, Any | None]:
    """All items of a torch data set, stacked: (x, y), y ``None`` where items are x alone.

    Args:
        data: map-style or iterable; an item is x, ``(x,)`` or ``(x, y)``, each a tensor, an array,
            an image that numpy can read, or a number. The whole is held in memory.
        max_items: stop after so many; needed for iterable data sets, which may never end.

    Raises:
        ConfigError: an iterable data set without ``max_items``.
        DataError: no items, items of another form, or one that could not be read; it is named.
        ShapeError: items that differ in shape.
    """
    if max_items is not None and max_items < 1:
        raise ConfigError(f"max_items: expected a positive integer, got {max_items}")
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        if max_items is None:
            raise ConfigError(
                f"max_items: {type(data).__name__} is iterable and may never end; say how many items to "
                "take, as in datasets.as_split(data, max_items=10_000)"
            )
        source: Iterator[Any] = itertools.islice(iter(data), max_items)
    else:
        size = len(data) if max_items is None else min(len(data), max_items)
        source = (data[i] for i in range(size))
    items: list[Any] = []
    try:
        items.extend(source)
    except Exception as error:
        raise DataError(
            f"x: item {len(items)} of {type(data).__name__} could not be read "
            f"({type(error).__name__}: {error}); mend or leave out that item"
        ) from error
    if not items:
        raise DataError(f"x: expected at least one item, {type(data).__name__} has none")
    if isinstance(items[0], dict):
        raise DataError(
            f"x: items of {type(data).__name__} are dicts with keys {listed(list(items[0]))}; wrap the data "
            "set so that an item is x or (x, y)"
        )
    pairs = [item if isinstance(item, tuple | list) else (item,) for item in items]
    lengths = {len(pair) for pair in pairs}
    if lengths not in ({1}, {2}):
        raise DataError(
            f"x: expected items x, (x,) or (x, y), {type(data).__name__} gives tuples of "
            f"length {listed(sorted(lengths))}"
        )
    y = _stack([pair[1] for pair in pairs], "y") if lengths == {2} else None
    return _stack([pair[0] for pair in pairs], "x"), y


def _stack(items: list[Any], name: str) -> Any:
    if not all(isinstance(item, Tensor) for item in items):
        items = [np.asarray(item) for item in items]
    shapes = sorted({tuple(item.shape) for item in items})
    if len(shapes) > 1:
        raise ShapeError(
            f"{name}: expected items of one shape, got {listed(shapes)}; crop, pad or resize them first"
        )
    return torch.stack(items) if isinstance(items[0], Tensor) else np.stack(items)


def _plain_tensor(x: Tensor, name: str) -> Tensor:
    if x.is_complex() or x.is_quantized or x.layout != torch.strided:
        raise DataError(
            f"{name}: expected a dense tensor of real numbers, got {x.dtype} in layout {x.layout}; "
            "use x.to_dense(), or stack real and imaginary parts as columns"
        )
    if x.is_floating_point() or x.dtype in (torch.bool, torch.uint8):
        return x.detach()
    return x.to(torch.int64)


def _from_numpy(array: Any, name: str) -> Tensor:
    if array.dtype.kind == "O":
        array = _object_to_float(array, name)
    if array.dtype.kind in "bf":
        # Half, single and double stay; wider floats have no torch type.
        return torch.tensor(
            array.astype(array.dtype.newbyteorder("=")) if array.itemsize <= 8 else array.astype(np.float64)
        )
    if array.dtype.kind in "iu":
        if array.dtype == np.uint8:
            return torch.tensor(array)
        if array.dtype == np.uint64 and array.size and int(array.max()) > 2**63 - 1:
            raise DataError(
                f"{name}: integers up to {int(array.max())} do not fit 64 bits with a sign; "
                "scale them to floating point first"
            )
        return torch.tensor(array.astype(np.int64))
    if array.dtype.names:
        raise DataError(
            f"{name}: expected an array of numbers, got a structured array with fields "
            f"{listed(list(array.dtype.names))}; stack the numeric ones as columns"
        )
    raise DataError(
        f"{name}: expected numbers, got an array of dtype {array.dtype}; encode text as numbers, "
        "turn dates into differences, and split complex numbers into two columns"
    )


def _object_to_float(array: Any, name: str) -> Any:
    """Object arrays whose every entry is a number; others are refused with their columns named."""
    flat = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
    numeric = (bool, int, float, np.number, np.bool_)
    bad = [
        i for i in range(flat.shape[1]) if not all(isinstance(v, numeric) or v is None for v in flat[:, i])
    ]
    if bad or flat.size == 0:
        wrong = (v for i in bad for v in flat[:, i] if not (isinstance(v, numeric) or v is None))
        kinds = sorted({type(v).__name__ for v in wrong})
        raise DataError(
            f"{name}: expected numbers, got an object array with {listed(kinds)} in column(s) {listed(bad)}; "
            "drop or encode those columns, and densify sparse matrices"
        )
    return array.astype(np.float64)  # None becomes NaN, which is refused by name later


def _frame_to_numpy(frame: Any, name: str) -> Any:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    bad = [
        f"{column} ({kind})"
        for column, kind in frame.dtypes.items()
        if not (is_numeric_dtype(kind) or is_bool_dtype(kind)) or getattr(kind, "kind", "") == "c"
    ]
    if bad:
        raise DataError(
            f"{name}: expected columns of numbers, got other types in {listed(bad)}; "
            "drop them (drop=[...] for files), encode them as numbers, or name one as the label"
        )
    array = frame.to_numpy()
    # Columns of mixed or nullable types come as objects; NA becomes NaN, which is refused by name later.
    return frame.to_numpy(dtype=np.float64, na_value=np.nan) if array.dtype.kind == "O" else array
