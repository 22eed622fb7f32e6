r"""Continuous columns cut into levels: by quantiles, or so that what columns say of each other is kept.

A discretiser gives the cut points :math:`c_1 < \dots < c_m` of each column; x has level number
:math:`\#\{k : c_k < x\}`, so that equal values always share a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ppgen.errors import ConfigError

_CHUNK = 1 << 15

# Losses that differ by rounding only are equal.
_DECIMALS = 12


@runtime_checkable
class Discretiser(Protocol):
    """A way to choose cut points."""

    @property
    def num_levels(self) -> int:
        """The most levels that a column gets."""

    def cuts(self, columns: Tensor, others: Tensor) -> list[Tensor]:
        """Cut points of each column, increasing, each with data on both sides.

        Args:
            columns: shape (N, m), float64, the columns to cut; NaN where missing.
            others: shape (N, p), int64, level numbers of the categorical columns; -1 where missing.

        Returns:
            m tensors of at most ``num_levels - 1`` cut points; fewer where a column has too few values.
        """


@dataclass(frozen=True)
class Quantile:
    """Levels of equal frequency, as far as ties allow.

    The cut points are the k / ``num_levels`` quantiles (linear between order statistics). A value that
    many rows share stays in one level; a level that this would leave empty is not made.

    Attributes:
        num_levels: number of levels.
    """

    num_levels: int = 3

    def __post_init__(self) -> None:
        _check_num_levels(self.num_levels, "num_levels")

    def cuts(self, columns: Tensor, others: Tensor) -> list[Tensor]:
        """See :class:`Discretiser`."""
        return [_quantile_cuts(column, self.num_levels) for column in columns.T]


@dataclass(frozen=True)
class Hartemink:
    """Levels that keep the mutual information between pairs of columns (Hartemink 2001, section 3.3).

    Columns are first cut into many quantiles. Then, again and again, each column in turn merges the two
    neighbouring levels whose merging loses the least mutual information with the other columns in
    sum, until ``num_levels`` are left; of equal losses, the lowest pair. Categorical columns are partners
    that stay as they are. This is the method, and the order of merging, of bnlearn.

    Attributes:
        num_levels: number of levels in the end.
        initial_levels: number of levels in the beginning.
    """

    num_levels: int = 3
    initial_levels: int = 60

    def __post_init__(self) -> None:
        _check_num_levels(self.num_levels, "num_levels")
        _check_num_levels(self.initial_levels, "initial_levels")
        if self.initial_levels < self.num_levels:
            raise ConfigError(
                f"initial_levels: expected at least num_levels={self.num_levels}, got {self.initial_levels}"
            )

    def cuts(self, columns: Tensor, others: Tensor) -> list[Tensor]:
        """See :class:`Discretiser`."""
        cuts = [_quantile_cuts(column, self.initial_levels) for column in columns.T]
        codes = [cut(column, points) for column, points in zip(columns.T, cuts, strict=True)]
        counts = _Counts([*codes, *others.T])
        for size in range(self.initial_levels, self.num_levels, -1):
            for column, points in enumerate(cuts):
                if len(points) + 1 >= size:
                    level = int(counts.losses(column).round(decimals=_DECIMALS).argmin())
                    counts.merge(column, level)
                    cuts[column] = torch.cat([points[:level], points[level + 1 :]])
        return cuts


DISCRETISERS: dict[str, type[Quantile] | type[Hartemink]] = {"quantile": Quantile, "hartemink": Hartemink}


def cut(column: Tensor, points: Tensor) -> Tensor:
    """Level numbers of values, shape (N,), int64; -1 for NaN."""
    return torch.where(column.isnan(), -1, torch.searchsorted(points, column.contiguous()))


def interval_names(points: Tensor) -> tuple[str, ...]:
    """What the levels between cut points are called: ``("<= 1.5", "1.5 to 3", "> 3")``, in short numbers."""
    if not len(points):
        return ("any",)
    values = points.tolist()
    for digits in range(4, 18):
        ends = [f"{value:.{digits}g}" for value in values]
        if len(set(ends)) == len(ends):
            break
    between = [f"{low} to {high}" for low, high in zip(ends, ends[1:], strict=False)]
    return (f"<= {ends[0]}", *between, f"> {ends[-1]}")


def _check_num_levels(number: int, argument: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 2:
        raise ConfigError(f"{argument}: expected a whole number of at least 2 levels, got {number!r}")


def _quantile_cuts(column: Tensor, num_levels: int) -> Tensor:
    values = column[~column.isnan()].sort().values
    if not len(values):
        return values
    places = torch.arange(1, num_levels, dtype=torch.float64, device=column.device) / num_levels
    at = places * (len(values) - 1)
    low = at.floor().long()
    points = torch.lerp(values[low], values[(low + 1).clamp(max=len(values) - 1)], at - low)
    # Of cut points with the same data between them one is enough; those at the maximum split nothing.
    below = torch.searchsorted(values, points, right=True)
    new = torch.ones_like(below, dtype=torch.bool)
    new[1:] = below[1:] != below[:-1]
    return points[new & (below < len(values)) & (below > 0)]


class _Counts:
    """Joint counts of the levels of every pair of columns, which merging keeps up to date.

    Rows where either column of a pair is missing count for neither.
    """

    def __init__(self, codes: list[Tensor]) -> None:
        sizes = [max(int(column.max()) + 1, 1) for column in codes]
        first = [0]
        for size in sizes:
            first.append(first[-1] + size)
        # Where each level stands in the joint matrix, by column, and the column of each level.
        self.places = [list(range(a, b)) for a, b in zip(first, first[1:], strict=False)]
        device = codes[0].device
        self.owner = torch.arange(len(sizes), device=device).repeat_interleave(
            torch.tensor(sizes, device=device)
        )
        self.joint = torch.zeros(first[-1], first[-1], dtype=torch.float64, device=device)
        for rows in torch.stack(codes, 1).split(_CHUNK):
            one_hot = torch.zeros(len(rows), first[-1] + 1, dtype=torch.float32, device=device)
            offsets = torch.tensor(first[:-1], device=device)
            one_hot.scatter_(1, torch.where(rows >= 0, rows + offsets, first[-1]), 1.0)
            known = one_hot[:, :-1]
            # Sums of ones are exact in float32 up to 2^24.
            self.joint += (known.T @ known).double()

    def losses(self, column: int) -> Tensor:
        r"""Mutual information with the other columns, in nats and in sum, lost by merging levels a and a + 1.

        With :math:`f(x) = x \log x` and counts N of a pair of columns, :math:`N I = \sum_{ab} f(N_{ab})
        - \sum_a f(N_{a\cdot}) - \sum_b f(N_{\cdot b}) + f(N)`: only the first two sums change.

        Returns:
            Shape (levels - 1,).
        """
        block = self.joint[self.places[column]]
        levels, num_columns = len(block), len(self.places)
        others = torch.arange(num_columns, device=block.device) != column

        def by_partner(values: Tensor) -> Tensor:
            sums = torch.zeros(len(values), num_columns, dtype=values.dtype, device=values.device)
            return sums.index_add_(1, self.owner, values)[:, others]

        margins = by_partner(block)
        total = margins.sum(0)
        cells = by_partner(_merge_cost(block))
        lost = (cells - _merge_cost(margins)) / total.clamp(min=1.0)
        return lost.sum(-1) if levels > 1 else lost.new_zeros(0)

    def merge(self, column: int, level: int) -> None:
        """Add level + 1 of a column to level."""
        kept, gone = self.places[column][level], self.places[column].pop(level + 1)
        self.joint[kept] += self.joint[gone]
        self.joint[:, kept] += self.joint[:, gone]
        self.joint[gone] = 0.0
        self.joint[:, gone] = 0.0


def _merge_cost(counts: Tensor) -> Tensor:
    """f(x) + f(y) - f(x + y) of neighbouring rows, with f(x) = x log x."""
    low, high = counts[:-1], counts[1:]
    return torch.xlogy(low, low) + torch.xlogy(high, high) - torch.xlogy(low + high, low + high)
