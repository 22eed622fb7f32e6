"""What raw numbers stand for: their values, their labels, and what will likely disappoint."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppgen.datasets.tensors import as_tensor, check_finite, is_frame, listed
from ppgen.datasets.values import BINARY, REAL, Values, grid
from ppgen.errors import ConfigError, DataError, ShapeError

Levels = int | Literal["auto", "count"] | None

_MANY_COLUMNS = 1000  # above, collinearity is not looked for: its cost is quadratic in columns
_TOLERANCE = 1e-10  # fraction of a column's variance that others must leave unexplained


def declare_values(
    x: Tensor, levels: Levels, dtype: torch.dtype, name: str
) -> tuple[Tensor, Values, str, list[str]]:
    """``x`` in the form that :class:`~ppgen.datasets.values.Values` wants, and what it was taken for.

    Args:
        x: raw numbers: bool, uint8, int64 or floating point.
        levels: ``"auto"`` to go by the type (bool: binary; uint8: 256 levels, or binary where
            only 0 and 1 occur; integers 0 and 1: binary; all else: real), a number of levels L for
            raw numbers 0 .. L-1 or for k/(L-1) in [0, 1], ``"count"`` for 0, 1, 2, ... without an end,
            ``None`` for real numbers.
        dtype: floating-point type of the result.
        name: for messages.

    Returns:
        The values as floating point, what they are, a sentence for reports, and warnings.

    Raises:
        ConfigError: ``levels`` or ``dtype`` makes no sense.
        DataError: numbers that are not of the declared levels.
    """
    if not dtype.is_floating_point:
        raise ConfigError(f"dtype: expected a floating-point type, got {dtype}")
    if levels == "auto":
        return _by_type(x, dtype, name)
    if levels is None:
        return x.to(dtype), REAL, "Taken as real numbers.", _rounding(x, dtype, name)
    if levels == "count":
        counts = Values("count")
        counts.check(x.to(dtype), name)
        return x.to(dtype), counts, "Taken as counts.", _rounding(x, dtype, name)
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ConfigError(
            f'levels: expected an integer of 2 or more, "auto", "count" or None, got {levels!r}'
        )
    values = grid(levels)
    low, high = float(x.min()), float(x.max())
    if x.is_floating_point() and low >= 0 and high <= 1:
        scaled = x.to(dtype)
        values.check(scaled, name)
        # Snapped, so that a value and its level number agree to the last bit.
        return values.indices(scaled).to(dtype) / (levels - 1), values, f"Taken as {values} in [0, 1].", []
    whole = not x.is_floating_point() or bool((x == x.round()).all())
    if not whole or low < 0 or high > levels - 1:
        raise DataError(
            f"{name}: levels={levels} means whole numbers 0 .. {levels - 1}, or k/{levels - 1} in [0, 1]; "
            f"got {'whole' if whole else 'fractional'} numbers from {low:.6g} to {high:.6g}; "
            "give the right number of levels, or levels=None for real numbers"
        )
    note = f"Whole numbers 0 .. {levels - 1} divided by {levels - 1}: {values}."
    return x.to(dtype) / (levels - 1), values, note, []


def _by_type(x: Tensor, dtype: torch.dtype, name: str) -> tuple[Tensor, Values, str, list[str]]:
    if x.dtype == torch.bool:
        return x.to(dtype), BINARY, "Booleans: binary.", []
    high, low = float(x.max()), float(x.min())
    if not x.is_floating_point() and low >= 0 and high <= 1:
        return x.to(dtype), BINARY, "Whole numbers 0 and 1: binary.", []
    if x.dtype == torch.uint8:
        warnings = []
        if high < 128:
            warnings.append(
                f"{name}: bytes taken as 256 levels, but the largest is {high:.0f}; if that is white, "
                f"declare levels={high + 1:.0f}"
            )
        return x.to(dtype) / 255, grid(256), "Bytes divided by 255: grid of 256 levels.", warnings
    warnings = _rounding(x, dtype, name)
    whole = not x.is_floating_point() or bool((x == x.round()).all())
    if whole and low >= 0 and high <= 255:
        warnings.append(
            f"{name}: whole numbers {low:.0f} .. {high:.0f} taken as real; a density on discrete values can "
            f"grow without bound; declare levels={max(high, 1) + 1:.0f}, or levels=None if real is meant"
        )
    return x.to(dtype), REAL, "Taken as real numbers.", warnings


def _rounding(x: Tensor, dtype: torch.dtype, name: str) -> list[str]:
    """A warning where integers are too large to be told apart in ``dtype``."""
    limit = 2 / torch.finfo(dtype).eps
    if x.is_floating_point() or float(x.abs().max()) <= limit:
        return []
    return [
        f"{name}: integers up to {int(x.abs().max())} are rounded, {dtype} is exact to {limit:.0f}; "
        "subtract an offset first, or use dtype=torch.float64"
    ]


def declare_labels(
    y: Any, dtype: torch.dtype, name: str = "y", *, missing_steps: bool = False
) -> tuple[Tensor, str]:
    """Labels or context as a tensor, and a sentence on how text was encoded.

    Whole numbers in one column or in rows (labels of a datum, or of each item of a sequence) and text in one
    column become int64 (text by sorted order); all else becomes ``dtype``, as features of a context.
    With ``missing_steps``, sequences of features, shape (N, T, F), may hold NaN, as those that end early do.

    Raises:
        DataError: missing labels; no labels of a usable type.
    """
    array: Any = None
    if not isinstance(y, Tensor):
        array = (y if y.ndim == 1 else y.squeeze(1)).to_numpy() if is_frame(y) else np.asarray(y)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
    if array is not None and array.ndim == 1 and array.dtype.kind in "OUS":
        missing = [i for i, v in enumerate(array) if v is None or v != v]
        if missing:
            raise DataError(
                f"{name}: expected a label a row, {len(missing)} missing, row(s) {listed(missing)}; drop them"
            )
        classes, codes = np.unique(array.astype(str), return_inverse=True)
        pairs = listed([f"{text} = {code}" for code, text in enumerate(classes)])
        return torch.tensor(codes.astype(np.int64)), f"Labels: {pairs}."
    labels, columns = as_tensor(y if array is None else array, name)
    if not (missing_steps and labels.ndim > 2):
        check_finite(labels, name, columns)
    if labels.ndim == 2 and labels.shape[1] == 1 and not labels.is_floating_point():
        labels = labels.squeeze(1)
    whole = labels.ndim <= 2 and not labels.is_floating_point()
    return labels.to(torch.int64 if whole else dtype), ""


def declare_shape(x: Tensor, event_shape: tuple[int, ...] | None, name: str) -> tuple[Tensor, str]:
    """``x`` with one datum of shape ``event_shape``; by default byte images get channels first.

    Bytes of shape (N, H, W) become (N, 1, H, W), and (N, H, W, C) with 1, 3 or 4 channels at the
    end become (N, C, H, W). All else keeps its shape.

    Raises:
        ShapeError: a datum has another number of coordinates than ``event_shape``.
    """
    if event_shape is not None:
        shape = torch.Size(event_shape)
        if x[0].numel() != shape.numel() or shape.numel() == 0:
            raise ShapeError(
                f"event_shape: {tuple(shape)} has {shape.numel()} coordinates, a datum of {name} has "
                f"{x[0].numel()} in shape {tuple(x.shape[1:])}; they must agree"
            )
        return x.reshape(len(x), *shape), ""
    if x.dtype == torch.uint8 and x.ndim == 3:
        return x[:, None], "Grey images: a channel was put in front."
    if x.dtype == torch.uint8 and x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return x.permute(0, 3, 1, 2).contiguous(), "Channels were moved to the front."
    return x, ""


def column_warnings(
    x: Tensor, columns: list[str] | None, name: str, max_columns: int = _MANY_COLUMNS
) -> list[str]:
    r"""Warnings that name the constant columns of a real table (N, D) and the collinear ones.

    A column is collinear where the columns before it explain all but :math:`10^{-10}` of its
    variance (elimination in the correlation matrix, float64). Cost
    :math:`O(N D^2 + D^3)`; tables of more than ``max_columns`` are searched for constants only.
    """
    if x.ndim != 2 or len(x) < 2:
        return []
    names = columns or [str(i) for i in range(x.shape[1])]
    constant = (x == x[0]).all(0)
    found = []
    if bool(constant.any()):
        hits = [names[i] for i in constant.nonzero().squeeze(-1).tolist()]
        found.append(
            f"{name}: column(s) {listed(hits)} are constant; a density there is unbounded: drop them"
        )
    varying = (~constant).nonzero().squeeze(-1)
    if not 2 <= len(varying) <= max_columns:
        return found
    if len(x) <= len(varying):
        found.append(
            f"{name}: {len(x)} rows for {len(varying)} columns: every covariance of them is singular; bring "
            "more rows, or fewer columns"
        )
        return found
    hits = [
        f"{names[int(varying[j])]} (from {listed([names[int(varying[i])] for i in sources])})"
        for j, sources in _dependent(x[:, varying])
    ]
    if hits:
        found.append(
            f"{name}: column(s) {listed(hits)} are linear in others; a density is unbounded along "
            "them: drop them"
        )
    return found


def _dependent(x: Tensor) -> list[tuple[int, list[int]]]:
    """Columns that are linear in earlier ones, each with those that it is made of."""
    largest = x.abs().amax(0).double()  # squares of what is huge or tiny would be infinite or 0
    mean = (x / largest).double().mean(0)
    gram = sum(
        ((c := chunk / largest - mean).mT @ c for chunk in x.split(65536)),
        start=torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device),
    )
    scale = gram.diagonal().sqrt()
    correlation = gram / scale / scale[:, None]
    left = correlation.clone()
    kept: list[int] = []
    found = []
    for j in range(len(left)):
        if float(left[j, j]) >= _TOLERANCE:
            left.addr_(left[:, j].clone(), left[j].clone(), alpha=-1 / float(left[j, j]))
            kept.append(j)
            continue
        weights = torch.linalg.lstsq(correlation[kept][:, kept], correlation[kept, j]).solution
        found.append((j, [i for i, w in zip(kept, weights.tolist(), strict=True) if abs(w) > 1e-4]))
    return found
