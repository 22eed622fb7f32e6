"""The user's own data: arrays, tensors, frames and torch data sets become splits."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ppgen.datasets.declare import (
    Levels,
    column_warnings,
    declare_labels,
    declare_shape,
    declare_values,
)
from ppgen.datasets.partition import Share, balancing_labels, count_rows, partition
from ppgen.datasets.split import DataSet, Split
from ppgen.datasets.tensors import as_tensor, check_finite, collate
from ppgen.datasets.values import Values
from ppgen.errors import DataError, DataWarning, ShapeError


def from_arrays(
    x: Any,
    y: Any = None,
    *,
    levels: Levels = "auto",
    event_shape: tuple[int, ...] | None = None,
    validation: Share | Any = 0.1,
    test: Share | Any = 0.1,
    seed: int = 0,
    name: str = "data",
    dtype: torch.dtype = torch.float32,
    max_items: int | None = None,
    missing: bool = False,
) -> DataSet:
    """A data set from the user's own numbers, with deterministic splits and declared values.

    Args:
        x: numpy array, torch tensor, pandas frame or nested list of first dimension N; or a torch
            ``Dataset`` with items x or (x, y), which is read into memory.
        y: labels (whole numbers or text) or features of a context, first dimension N.
        levels: what x is: an integer L for levels 0 .. L-1 (raw, or already divided by L-1),
            ``"count"`` for 0, 1, 2, ..., ``None`` for real numbers, ``"auto"`` to go by the type: bool and
            integers 0 and 1 are binary, bytes are 256 grey levels, all else is real.
        event_shape: shape of one datum; each is reshaped to it. By default x keeps its shape,
            but byte images (N, H, W) or (N, H, W, C) become (N, C, H, W).
        validation: the share for validation: a fraction of N, a number of rows, or the data
            themselves: x, or a tuple (x, y).
        test: the same for the test split.
        seed: chooses the rows; class-balanced where y is classes. Global generators are untouched.
        name: for messages and reports.
        dtype: floating-point type of x.
        max_items: how many items to take of a torch ``Dataset``; needed for iterable ones.
        missing: NaN stands for a missing coordinate; otherwise it is an error.

    Raises:
        DataError: text, NaN or infinite numbers (named by column and row), no rows, too few rows,
            numbers that are not of the declared levels.
        ShapeError: x and y, or the given splits, do not fit each other.
        ConfigError: an argument out of its range.

    Warns:
        DataWarning: constant or collinear columns; whole numbers taken as real; integers rounded.
    """
    given = {role: data for role, data in (("validation", validation), ("test", test)) if _is_data(data)}
    parts = [_gather(x, y, name, max_items, missing)]
    parts += [_gather(*_pair(data), f"{name} {role}", max_items, missing) for role, data in given.items()]
    joined = _concatenate(parts, name)
    labels, label_note = _labels(parts, dtype, missing)
    shaped, shape_note = declare_shape(joined, event_shape, name)
    coordinates, values, value_note, remarks = _declared(shaped, levels, dtype, name, missing)
    if values.kind == "real" and not missing:
        remarks += column_warnings(coordinates, parts[0].columns, name)
    for remark in remarks:
        warnings.warn(remark, DataWarning, stacklevel=2)

    starts = torch.tensor([len(part.x) for part in parts]).cumsum(0).tolist()
    spans = zip(given, itertools.pairwise(starts), strict=True)
    rows = {role: torch.arange(*span) for role, span in spans}
    shares = {r: s for r, s in (("validation", validation), ("test", test)) if r not in given}
    sizes = [count_rows(share, starts[0], role) for role, share in shares.items()]
    own = None if labels is None else balancing_labels(labels[: starts[0]], sizes)
    *blocks, rows["train"] = partition(starts[0], sizes, seed, own)
    rows.update(zip(shares, blocks, strict=True))

    def part(role: str) -> Split:
        chosen = rows[role].to(coordinates.device)
        y_chosen = None if labels is None else labels[chosen]
        return Split(coordinates[chosen], y_chosen, values, f"{name} {role}")

    counts = ", ".join(f"{len(rows[role])} {role}" for role in ("train", "validation", "test"))
    balanced = "class-balanced, " if own is not None and sizes else ""
    how = f" ({balanced}seed {seed})" if sizes else " (as given)"
    notes = [f"{len(coordinates)} rows: {counts}{how}.", value_note, shape_note, label_note]
    return DataSet(
        name=name,
        train=part("train"),
        validation=part("validation"),
        test=part("test"),
        description=" ".join(note for note in notes if note),
    )


def as_split(
    data: Any,
    *,
    name: str = "data",
    values: Values | None = None,
    dtype: torch.dtype | None = None,
    max_items: int | None = None,
) -> Split:
    """One :class:`Split` from anything that holds data: the form that training and metrics want.

    Args:
        data: a Split (returned as it is), a DataSet (its training split), a tensor, array or
            frame, a tuple (x, y) of those, or a torch ``Dataset``. Shapes are kept.
        name: for messages.
        values: what numbers are whose type does not tell (all but bool and bytes); checked. By
            default by the rule of :func:`from_arrays`.
        dtype: floating-point type; by default a floating tensor keeps its own and all else
            becomes float32.
        max_items: how many items to take of a torch ``Dataset``; needed for iterable ones.

    Raises:
        DataError: as :func:`from_arrays`.
    """
    if isinstance(data, Split):
        return data
    if isinstance(data, DataSet):
        return data.train
    missing = values is not None and values.missing
    raw = _gather(*_pair(data), name, max_items, missing)
    if dtype is None:
        dtype = raw.x.dtype if raw.from_tensor and raw.x.is_floating_point() else torch.float32
    if values is not None and values.kind == "table":
        return Split(raw.x.to(dtype), _labels([raw], dtype, missing)[0], values, name)
    told: Levels = "auto"
    if values is not None and raw.x.dtype not in (torch.bool, torch.uint8):
        told = "count" if values.kind == "count" else values.levels or "auto"
    x, found, _, remarks = _declared(raw.x, told, dtype, name, missing)
    for remark in remarks:
        warnings.warn(remark, DataWarning, stacklevel=2)
    return Split(x, _labels([raw], dtype, missing)[0], found, name)


@dataclass(frozen=True)
class _Raw:
    """Numbers as they came: x as a tensor, y untouched."""

    x: Tensor
    y: Any
    columns: list[str] | None
    from_tensor: bool


def _is_data(argument: Any) -> bool:
    return not isinstance(argument, bool | int | float | None)


def _pair(data: Any) -> tuple[Any, Any]:
    """(x, y) of a tuple, (x, None) of all else."""
    if isinstance(data, tuple):
        if len(data) != 2:
            raise DataError(
                f"data: a tuple means (x, y), got one of length {len(data)}; pass x alone or both"
            )
        return data[0], data[1]
    return data, None


def _declared(
    x: Tensor, levels: Levels, dtype: torch.dtype, name: str, missing: bool
) -> tuple[Tensor, Values, str, list[str]]:
    """As :func:`declare_values`, where NaN may stand for what is missing."""
    if not missing:
        return declare_values(x, levels, dtype, name)
    unknown = x.isnan()
    known, values, note, remarks = declare_values(torch.where(unknown, 0, x), levels, dtype, name)
    note += f" {float(unknown.float().mean()):.2%} missing." if bool(unknown.any()) else ""
    return known.masked_fill(unknown, torch.nan), replace(values, missing=True), note, remarks


def _gather(x: Any, y: Any, name: str, max_items: int | None, missing: bool = False) -> _Raw:
    if isinstance(x, Split | DataSet):
        raise DataError(
            f"{name}: expected raw numbers, got a {type(x).__name__}, which is ready to use as it is"
        )
    if isinstance(x, DataLoader):
        raise DataError(
            f"{name}: expected the data themselves, got a torch DataLoader; pass its dataset "
            "(loader.dataset), and batch_size= to whatever makes the batches"
        )
    if isinstance(x, Dataset):
        if y is not None:
            raise DataError(
                f"{name}: y comes from the items of a torch Dataset; leave it out, or pass arrays"
            )
        x, y = collate(x, max_items)
    raw, columns = as_tensor(x, name)
    if raw.ndim == 0:
        raise ShapeError(
            f"{name}: expected an array of shape (N, *event_shape), got {type(x).__name__} {x!r}"
        )
    if raw.numel() == 0:
        raise DataError(f"{name}: expected at least one datum, got shape {tuple(raw.shape)}")
    check_finite(torch.where(raw.isnan(), 0, raw) if missing else raw, name, columns)
    if y is not None and len(y) != len(raw):
        raise ShapeError(f"{name}: x has {len(raw)} rows and y has {len(y)}; they must match")
    return _Raw(raw, y, columns, isinstance(x, Tensor))


def _concatenate(parts: list[_Raw], name: str) -> Tensor:
    """Stack x of all parts one below the other, after a check that they are of one kind."""
    first = parts[0]
    for part in parts[1:]:
        both_float = part.x.is_floating_point() and first.x.is_floating_point()
        if part.x.dtype != first.x.dtype and not both_float:
            raise DataError(
                f"{name}: all splits need one type of numbers, got {first.x.dtype} and {part.x.dtype}; "
                "scale them alike before splitting"
            )
        if part.x.shape[1:] != first.x.shape[1:]:
            raise ShapeError(
                f"{name}: all splits need one shape of datum, got {tuple(first.x.shape[1:])} and "
                f"{tuple(part.x.shape[1:])}"
            )
        if part.columns != first.columns and part.columns and first.columns:
            raise DataError(
                f"{name}: all splits need the same columns in one order, got {first.columns} "
                f"and {part.columns}"
            )
    return first.x if len(parts) == 1 else torch.cat([part.x.to(first.x.device) for part in parts])


def _labels(parts: list[_Raw], dtype: torch.dtype, missing_steps: bool = False) -> tuple[Tensor | None, str]:
    """Stack y of all parts, encoded together so that one text has one number."""
    missing = sum(part.y is None for part in parts)
    if missing == len(parts):
        return None, ""
    if missing:
        raise DataError(
            f"y: {missing} of {len(parts)} splits have no labels; give y for all of them or for none"
        )
    device = parts[0].x.device
    if len(parts) == 1:
        labels, note = declare_labels(parts[0].y, dtype, missing_steps=missing_steps)
        return labels.to(device), note
    arrays = [np.asarray(part.y.cpu() if isinstance(part.y, Tensor) else part.y) for part in parts]
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        raise ShapeError(f"y: all splits need labels of one shape, got {sorted(shapes)}")
    labels, note = declare_labels(np.concatenate(arrays), dtype)
    return labels.to(device), note
