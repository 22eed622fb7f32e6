r"""Counts of a table's cells, and sums of a function of the counts.

For discrete scores, :math:`h(S) = c(S) + \sum_{cells} f(N_{cell})` where f depends on S only through the
number of cells, and f(0) = 0, so that cells without rows need no work.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.structure.scores.functions import Advance, silent

# Codes of cells are 64-bit numbers.
MAX_CELLS = 2**62
# Numbers in the largest temporary: what fits a processor's cache, and what fills a GPU.
_ELEMENTS = {"cpu": 2**17, "other": 2**24}
# Values of f are looked up where all of them fit this many numbers, and computed where they do not.
_LOOKUP = 2**22
# Cells are counted where they are at most this many a row, and found by sorting where they are more.
_CELLS_PER_ROW = 4


def elements(device: torch.device) -> int:
    """How many numbers a temporary should have."""
    return _ELEMENTS["cpu" if device.type == "cpu" else "other"]


class CountTerm(ABC):
    """f and c of a discrete score."""

    @abstractmethod
    def parameter(self, cells: Tensor) -> Tensor:
        """What f depends on beside the count, from the number of cells, float64, any shape."""

    @abstractmethod
    def values(self, counts: Tensor, parameter: Tensor) -> Tensor:
        """f, float64; 0 where the count is 0."""

    def constant(self, cells: Tensor) -> Tensor:
        """c, from the numbers of cells."""
        return torch.zeros_like(cells)


@dataclass(frozen=True)
class Rows:
    """Distinct rows of level numbers, and how often each occurs.

    Attributes:
        codes: shape (U, n), int64.
        weights: shape (U,), int64.
        cardinalities: of the columns.
    """

    codes: Tensor
    weights: Tensor
    cardinalities: tuple[int, ...]

    @property
    def total(self) -> int:
        """Number of rows, repeats counted."""
        return int(self.weights.sum())

    def cells(self, columns: Sequence[int]) -> int:
        """Number of cells of the table of these columns."""
        return math.prod(self.cardinalities[c] for c in columns)


def compact(codes: Tensor, size: int) -> tuple[Tensor, int]:
    """Codes in 0..size-1 numbered anew, in the same order and without gaps, and how many there are."""
    if size > max(4 * elements(codes.device), 8 * len(codes)):
        found, inverse = torch.unique(codes, return_inverse=True)
        return inverse, len(found)
    present = torch.zeros(size, dtype=torch.int64, device=codes.device)
    present[codes] = 1
    number = present.cumsum(0)
    return number[codes] - 1, int(number[-1])


def distinct(codes: Tensor, cardinalities: Sequence[int]) -> Rows:
    """Collapse equal rows of level numbers, shape (N, n) with N >= 1."""
    ids, num = joint_ids(codes, cardinalities)
    weights = torch.bincount(ids, minlength=num)
    first = torch.empty(num, dtype=torch.int64, device=codes.device)
    first[ids] = torch.arange(len(codes), device=codes.device)
    return Rows(codes[first], weights, tuple(cardinalities))


def joint_ids(codes: Tensor, cardinalities: Sequence[int]) -> tuple[Tensor, int]:
    """Number the distinct rows of ``codes``: each row's number, and how many there are."""
    ids, num = torch.zeros(len(codes), dtype=torch.int64, device=codes.device), 1
    for column, cardinality in enumerate(cardinalities):
        ids, num = compact(ids * cardinality + codes[:, column], num * cardinality)
    return ids, num


class Lookup:
    """f of counts for tables of several sizes.

    Args:
        term: f.
        cells: shape (F,), float64: number of cells of each set.
        total: the largest count.
    """

    def __init__(self, term: CountTerm, cells: Tensor, total: int) -> None:
        self.term = term
        self.constants = term.constant(cells)
        self._parameters, self._row = torch.unique(term.parameter(cells), return_inverse=True)
        self._width = total + 1
        self._table: Tensor | None = None
        if len(self._parameters) * self._width <= _LOOKUP:
            counts = torch.arange(self._width, dtype=torch.float64, device=cells.device)
            self._table = term.values(counts, self._parameters[:, None]).flatten()
            self._row = (self._row * self._width).int()

    def key(self, sets: Tensor | slice) -> Tensor:
        """What :meth:`__call__` needs to know of sets, int32 or int64."""
        return self._row[sets]

    def __call__(self, counts: Tensor, key: Tensor) -> Tensor:
        """Values of f for integer counts, with keys of a shape that broadcasts to theirs."""
        if self._table is None:
            return self.term.values(counts.double(), self._parameters[key])
        index = counts.int() + key
        # With 32-bit indices this is several times faster than any other way to read a table.
        return self._table.index_select(0, index.flatten()).view(index.shape)


def check_cells(cells: Tensor) -> None:
    """Raise where a table has more cells than codes can tell apart."""
    if cells.numel() and float(cells.max()) > MAX_CELLS:
        raise ConfigError(
            f"table: a family with {float(cells.max()):.3g} joint states has too many states to be counted "
            f"(limit {MAX_CELLS:.3g}); merge levels, or allow fewer parents"
        )


def sums_over_cells(rows: Rows, term: CountTerm, sets: Tensor, advance: Advance = silent) -> Tensor:
    """h(S) for sets of columns, (F, m), by counting each set's cells; shape (F,)."""
    device = rows.codes.device
    cardinalities = torch.tensor(rows.cardinalities, dtype=torch.float64, device=device)[sets]
    cells = cardinalities.prod(-1)
    check_cells(cells)
    lookup = Lookup(term, cells, rows.total)
    result = lookup.constants.clone()
    few = cells <= _CELLS_PER_ROW * len(rows.codes)
    weights = None if bool((rows.weights == 1).all()) else rows.weights
    for index, dense in ((few.nonzero()[:, 0], True), ((~few).nonzero()[:, 0], False)):
        for chunk in index.split(max(1, elements(device) // len(rows.codes))):
            if not len(chunk):
                continue
            codes = cell_codes(rows, sets[chunk])
            if dense:
                counts, owner = _counted(codes, cells[chunk].long(), weights)
            else:
                counts, owner, _ = runs(codes, rows.weights)
            values = lookup(counts, lookup.key(chunk)[owner])
            sums = torch.zeros(len(chunk), dtype=torch.float64, device=device).index_add_(0, owner, values)
            result[chunk] += sums
            advance(len(chunk))
    return result


def cell_codes(rows: Rows, sets: Tensor) -> Tensor:
    """The cell that each row falls into, for each set; shape (F, U), int64."""
    codes = torch.zeros(len(sets), len(rows.codes), dtype=torch.int64, device=sets.device)
    by_column = rows.codes.T.contiguous()
    cardinalities = torch.tensor(rows.cardinalities, device=sets.device)
    for member in sets.T:
        codes = codes.mul_(cardinalities[member, None]).add_(by_column[member])
    return codes


def _counted(codes: Tensor, cells: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Counts of all cells, one set after another, and the set of each cell."""
    ends = cells.cumsum(0)
    total = int(ends[-1])
    flat = (codes + (ends - cells)[:, None]).flatten()
    if weights is None:
        counts = torch.bincount(flat, minlength=total)
    else:
        counts = torch.zeros(total, dtype=torch.int64, device=codes.device)
        counts.scatter_add_(0, flat, weights.repeat(len(codes)))
    return counts, torch.repeat_interleave(cells, output_size=total)


def runs(codes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts of the cells that occur, by sorting.

    Args:
        codes: shape (F, U), int64.
        weights: shape (U,).

    Returns:
        Three tensors with one entry for each cell that occurs: its count, its set, and a row that is in it.
    """
    ordered, order = codes.sort(dim=1)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    flat = starts.flatten()
    run = flat.cumsum(0) - 1
    counts = torch.zeros(int(run[-1]) + 1, dtype=torch.int64, device=codes.device)
    counts.scatter_add_(0, run, weights[order].flatten())
    owner = starts.nonzero()[:, 0]
    return counts, owner, order.flatten()[flat]
