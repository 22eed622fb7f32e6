"""Sequences of different lengths, padded to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen.datasets.arrays import from_arrays
from ppgen.datasets.declare import Levels, declare_values
from ppgen.datasets.partition import Share
from ppgen.datasets.split import DataSet
from ppgen.datasets.tensors import as_tensor
from ppgen.errors import DataError, ShapeError


def sequences(
    items: Sequence[Any],
    y: Any = None,
    *,
    levels: Levels = "auto",
    num_steps: int | None = None,
    validation: Share = 0.1,
    test: Share = 0.1,
    seed: int = 0,
    name: str = "sequences",
    dtype: torch.dtype = torch.float32,
) -> DataSet:
    """A data set of sequences, each padded at its end with NaN to T steps.

    Steps of nothing but NaN at the end are beyond the end of a sequence; NaN before that is missing.
    What is said of values, splits and seeds is as in :func:`~ppgen.datasets.from_arrays`.

    Args:
        items: one array a sequence, of shape ``(T_n,)`` or ``(T_n, D)``, all with one D; NaN is missing.
        y: labels or features of a context, one row a sequence; or features of each step, one array of shape
            ``(T_n, F)`` a sequence, which are padded as the sequences are.
        levels: what the numbers are; ``"auto"`` goes by the type of all sequences together.
        num_steps: T; the longest sequence unless given.
        validation: the share for validation: a fraction, or a number of sequences.
        test: the same for the test split.
        seed: chooses the sequences.
        name: for messages and reports.
        dtype: floating-point type of x.

    Returns:
        Splits with x of shape ``(N, T)`` or ``(N, T, D)`` whose values may be missing.

    Raises:
        DataError: no sequences, empty or all-missing ones, or numbers that are not of the levels.
        ShapeError: sequences of different widths, or longer than ``num_steps``; features of other steps.
    """
    arrays = [as_tensor(item, f"{name}: item {i}")[0] for i, item in enumerate(items)]
    if not arrays:
        raise DataError(f"{name}: expected at least one sequence, got none")
    widths = {array.shape[1:] for array in arrays}
    if len(widths) > 1 or arrays[0].ndim not in (1, 2):
        raise ShapeError(
            f"{name}: expected sequences of shape (T_n,) or (T_n, D) with one D, got "
            f"{sorted({tuple(array.shape) for array in arrays})[:5]}"
        )
    longest = max(map(len, arrays))
    steps = longest if num_steps is None else num_steps
    if longest > steps:
        raise ShapeError(
            f"num_steps: the longest sequence has {longest} steps, got {num_steps}; cut it first"
        )
    for i, array in enumerate(arrays):
        if array.numel() == 0 or bool(array.isnan().all()):
            raise DataError(
                f"{name}: sequence {i} of shape {tuple(array.shape)} holds no number; leave it out"
            )
        if bool(array[-1:].isnan().all()):
            raise DataError(
                f"{name}: sequence {i} ends in a step of nothing but NaN, which counts as beyond "
                "its end; cut it off"
            )
    if _has_steps(y):
        y = _padded_features(y, [len(array) for array in arrays], steps, name, dtype)
    every = torch.cat(arrays)
    unknown = every.isnan()
    known, values, _, _ = declare_values(torch.where(unknown, 0, every), levels, dtype, name)
    parts = known.masked_fill(unknown, torch.nan).split([len(array) for array in arrays])
    return from_arrays(
        _padded(parts, steps),
        y,
        levels="count" if values.kind == "count" else values.levels,
        validation=validation,
        test=test,
        seed=seed,
        name=name,
        dtype=dtype,
        missing=True,
    )


def _padded(parts: Sequence[Tensor], steps: int) -> Tensor:
    return torch.stack([torch.cat([p, p.new_full((steps - len(p), *p.shape[1:]), torch.nan)]) for p in parts])


def _has_steps(y: Any) -> bool:
    """Whether y is a list of one array of features a sequence."""
    return isinstance(y, (list, tuple)) and any(len(getattr(each, "shape", ())) > 1 for each in y)


def _padded_features(
    y: Sequence[Any], lengths: list[int], steps: int, name: str, dtype: torch.dtype
) -> Tensor:
    """Features (N, T, F) of each step, NaN beyond the end."""
    parts = [as_tensor(each, f"{name}: y of item {i}")[0].to(dtype) for i, each in enumerate(y)]
    if len(parts) != len(lengths):
        raise ShapeError(f"y: expected features of {len(lengths)} sequences, got {len(parts)}")
    for i, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        if part.shape != (length, *parts[0].shape[1:2]):
            raise ShapeError(
                f"y: expected one row of features for each of the {length} steps of sequence {i}, shape "
                f"{(length, *parts[0].shape[1:2])}, got {tuple(part.shape)}"
            )
    return _padded(parts, steps)
