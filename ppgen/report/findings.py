"""Plain sentences computed from the table's figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ppgen.contract import Kind
from ppgen.report.table import Number, Row

# A difference counts from this many standard errors on.
_ERRORS = 2.0


def findings(rows: Sequence[Row], test_nll: Mapping[str, Tensor], num_dims: int) -> list[str]:
    """What the figures say, and nothing that they do not.

    For each group of rows that share their data values: the families against the best mixture
    and against independent coordinates in bits per dimension, and the families whose samples
    are nearest to the data. Then the families without figures.

    Args:
        rows: the table.
        test_nll: values and name of a row, joined by ``/``, to the negative log-likelihood of each
            test datum in nats, shape (N,). The error of a difference is that of the paired
            differences, which is smaller than the errors of the two means put together.
        num_dims: coordinates of a datum.
    """
    sentences: list[str] = []
    for values in dict.fromkeys(row.values for row in rows):
        group = [row for row in rows if row.values == values and row.status == "done"]
        where = "On binary data" if values == "binary" else f"On {values.removeprefix('grid of ')}"
        where = "On real values" if values == "real" else where
        sentences += _against_mixtures(group, test_nll, num_dims, where)
        sentences += _against_independence(group, test_nll, num_dims, where)
        sentences += _nearest(group, where)
    unmeasured = [row.title for row in rows if row.status == "failed"]
    if unmeasured:
        sentences.append(f"Not measured: {_joined(unmeasured)}; the table says why.")
    return sentences


def _against_mixtures(
    group: Sequence[Row], test_nll: Mapping[str, Tensor], num_dims: int, where: str
) -> list[str]:
    measured = [(row, row.bits_per_dim) for row in group if row.group == "family" and row.bits_per_dim]
    mixtures = [(row, number) for row, number in measured if row.has_components]
    others = [(row, number) for row, number in measured if not row.has_components]
    if not mixtures or not others:
        return []
    best, reference = min(mixtures, key=lambda pair: pair[1].value)
    better, close, worse = _compare(others, best, reference, test_nll, num_dims)
    text = f"{where}, the best mixture in bits per dimension is {best.title} ({reference})."
    if better:
        text += f" Better than it: {_joined(better)}."
    if close:
        text += f" Within {_ERRORS:g} standard errors of it: {_joined(close)}."
    if worse:
        text += f" Worse than it: {_joined(worse)}."
    bounds = {number.kind == Kind.UPPER_BOUND for _, number in [*others, (best, reference)]}
    if True in bounds:
        text += " A figure with ≤ is a bound from above, so an order among bounds is one of bounds."
    return [text]


def _against_independence(
    group: Sequence[Row], test_nll: Mapping[str, Tensor], num_dims: int, where: str
) -> list[str]:
    baseline = next((row for row in group if row.name == "factorised"), None)
    measured = [(row, row.bits_per_dim) for row in group if row.group == "family" and row.bits_per_dim]
    if baseline is None or baseline.bits_per_dim is None or not measured:
        return []
    better, close, worse = _compare(measured, baseline, baseline.bits_per_dim, test_nll, num_dims)
    if not close and not worse:
        return []
    text = f"{where}, independent coordinates have {baseline.bits_per_dim} bits per dimension."
    if close:
        text += f" Within {_ERRORS:g} standard errors of that: {_joined(close)}."
    if worse:
        text += f" Worse than that: {_joined(worse)}."
    return [text]


def _compare(
    rows: Sequence[tuple[Row, Number]],
    best: Row,
    reference: Number,
    test_nll: Mapping[str, Tensor],
    num_dims: int,
) -> tuple[list[str], list[str], list[str]]:
    """The rows that are better than the reference, too close to call, and worse, with the differences."""
    better: list[str] = []
    close: list[str] = []
    worse: list[str] = []
    for row, number in rows:
        each = [test_nll.get(f"{r.values}/{r.name}") for r in (row, best)]
        error = _paired_error(each[0], each[1]) / (num_dims * math.log(2))
        gap = reference.value - number.value
        size = Number(abs(gap), error, Kind.ESTIMATE)
        if abs(gap) <= _ERRORS * error:
            close.append(f"{row.title} ({number})")
        elif gap > 0:
            better.append(f"{row.title} ({number}; {size} less)")
        else:
            worse.append(f"{row.title} ({number}; {size} more)")
    return better, close, worse


def _paired_error(first: Tensor | None, second: Tensor | None) -> float:
    """Standard error of the mean of paired differences, in the unit of the two; infinite if unknown."""
    if first is None or second is None or first.shape != second.shape or len(first) < 2:
        return math.inf
    return float((first - second).double().std() / math.sqrt(len(first)))


def _nearest(group: Sequence[Row], where: str) -> list[str]:
    found = [(row, row.kid) for row in group if row.group == "family" and row.kid is not None]
    if len(found) < 2:
        return []
    # By the upper limit: a figure that is small by its large error alone does not come first.
    (first, smallest), *rest = sorted(found, key=lambda pair: pair[1].value + _ERRORS * pair[1].std_error)
    tied = [
        f"{row.title} ({number})"
        for row, number in rest
        if number.value - smallest.value <= _ERRORS * math.hypot(number.std_error, smallest.std_error)
    ]
    text = f"{where}, samples of {first.title} are nearest to the data by kernel distance ({smallest})"
    if tied:
        text += f", too close to call with {_joined(tied)}"
    return [text + "."]


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
