r"""Counts of all small sets of variables by matrix products.

With indicators of levels as columns, the count of a cell of :math:`A \cup B` is an inner product of an
indicator of a cell of A and one of a cell of B, so that a matrix product counts the tables of many sets in
one go, and the fastest code there is does the counting. Sets :math:`a < b < \dots < d` of m positions are cut
into a left part (the first one or, where m is 4 or more, two), a tail (the last one, where m is 3 or more)
and the stem between: one product for each stem gives the sets of all left parts below it and all tails
above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.structure.scores.counting import (
    CountTerm,
    Lookup,
    Rows,
    check_cells,
    elements,
    joint_ids,
    sums_over_cells,
)
from ppgen.inference.structure.scores.functions import Advance, silent
from ppgen.inference.structure.scores.subsets import ranks, subsets

# Nanoseconds of one core: a multiplication within a product, a row counted into a table by its code, and what
# a table costs that is counted so, beside its rows. Only their ratios matter, and only for speed.
_MULTIPLY, _COUNT, _EACH = 0.03, 15.0, 2000.0
# Columns of the left matrix: at least so many, and as many as fit this many numbers.
_LEAST_COLUMNS, _LEFT = 64, 2**24
# Whole numbers below these bounds are exact.
_EXACT = {torch.float32: 2**24, torch.float64: 2**53}


def all_subsets(
    rows: Rows,
    term: CountTerm,
    candidates: Sequence[int],
    size: int,
    extra: Sequence[int],
    advance: Advance = silent,
) -> Tensor:
    """Values of all subsets of ``candidates`` of one size, each joined with ``extra``, in their order.

    Sets of variables with so many levels that products would be slow are counted by their codes.
    """
    if size == 0:
        sets = torch.tensor([list(extra)], dtype=torch.int64, device=rows.codes.device)
        return sums_over_cells(rows, term, sets, advance)
    ordered = sorted(range(len(candidates)), key=lambda p: rows.cardinalities[candidates[p]])
    small = _num_small(rows, [rows.cardinalities[candidates[p]] for p in ordered], size, rows.cells(extra))
    if small == len(candidates):
        return _Products(rows, term, candidates, size, extra, advance).run()
    columns = torch.tensor([candidates[p] for p in ordered], dtype=torch.int64, device=rows.codes.device)
    chosen = subsets(len(candidates), size, rows.codes.device)
    # Sets of small variables only come first in this order.
    split = math.comb(small, size)
    fixed = torch.tensor(list(extra), dtype=torch.int64, device=rows.codes.device)
    large = torch.cat([columns[chosen[split:]], fixed.expand(len(chosen) - split, -1)], dim=1)
    parts = [sums_over_cells(rows, term, large, advance)]
    if split:
        few = [candidates[p] for p in ordered[:small]]
        parts.insert(0, _Products(rows, term, few, size, extra, advance).run())
    positions = torch.tensor(ordered, dtype=torch.int64, device=rows.codes.device)
    result = torch.empty(len(chosen), dtype=torch.float64, device=rows.codes.device)
    result[ranks(positions[chosen].sort(dim=1).values)] = torch.cat(parts)
    return result


def _num_small(rows: Rows, cardinalities: Sequence[int], size: int, extra_cells: int) -> int:
    """Of variables in order of their levels, how many are best counted by products."""
    num = len(cardinalities)
    by_code = len(rows.codes) * _COUNT + _EACH
    # Cells of all tables of the first variables: elementary symmetric polynomials of their levels.
    cells = [1.0] + [0.0] * size
    best, least = 0, math.comb(num, size) * by_code
    for small, cardinality in enumerate(cardinalities, start=1):
        for degree in range(size, 0, -1):
            cells[degree] += cells[degree - 1] * cardinality
        products = cells[size] * extra_cells * len(rows.codes) * _MULTIPLY
        cost = products + (math.comb(num, size) - math.comb(small, size)) * by_code
        if small >= size and cost < least:
            best, least = small, cost
    return best


@dataclass(frozen=True)
class _Left:
    """A block of left parts whose largest positions are ``tops``.

    Attributes:
        tops: the first and one beyond the last of these positions.
        matrix: shape (K, U): an indicator of each cell of each part.
        owner: shape (K,): the part of each cell, counted from the first of the block.
        start: the number of the first part of the block.
    """

    tops: tuple[int, int]
    matrix: Tensor
    owner: Tensor
    start: int


class _Products:
    def __init__(
        self,
        rows: Rows,
        term: CountTerm,
        candidates: Sequence[int],
        size: int,
        extra: Sequence[int],
        advance: Advance,
    ) -> None:
        self.rows, self.candidates, self.size = rows, list(candidates), size
        self.advance = advance
        device = rows.codes.device
        self.left_size, self.tail = (2 if size >= 4 else 1), size >= 3
        self.stem_size = size - self.left_size - self.tail
        self.levels = [rows.cardinalities[c] for c in candidates]
        self.dtype = _exact_dtype(device, rows.total)
        self.codes = rows.codes[:, self.candidates].T.contiguous()
        # Indicators of all levels, one candidate after another.
        self.ends = [0]
        for cardinality in self.levels:
            self.ends.append(self.ends[-1] + cardinality)
        offsets = torch.tensor(self.ends[:-1], device=device)
        self.indicators = torch.zeros(self.ends[-1], len(rows.codes), dtype=self.dtype, device=device)
        self.indicators.scatter_(0, self.codes + offsets[:, None], 1.0)
        self.variable = torch.repeat_interleave(torch.tensor(self.levels, device=device))
        fixed = [rows.cardinalities[c] for c in extra]
        self.extra_ids, self.extra_cells = joint_ids(rows.codes[:, list(extra)], fixed)
        self.all = subsets(len(candidates), size, device)
        cells = torch.tensor(self.levels, dtype=torch.float64, device=device)[self.all].prod(-1)
        cells = cells * float(rows.cells(extra))
        check_cells(cells)
        self.lookup = Lookup(term, cells, rows.total)
        self.result = self.lookup.constants.clone()

    def run(self) -> Tensor:
        stems = subsets(len(self.candidates), self.stem_size).tolist()
        for left in self._lefts():
            for stem in stems:
                self._stem(left, stem)
        return self.result

    def _lefts(self) -> Iterator[_Left]:
        """The left parts in blocks, of consecutive largest positions."""
        num = len(self.candidates)
        limit = max(_LEAST_COLUMNS, _LEFT // len(self.rows.codes))
        # What must follow the largest position of a left part.
        tops = range(self.left_size - 1, num - self.stem_size - self.tail)
        blocks, owners, columns, first = list[Tensor](), list[Tensor](), 0, tops.start
        for top in tops:
            start = math.comb(top, self.left_size) - math.comb(first, self.left_size)
            indicators = self.indicators[self.ends[top] : self.ends[top + 1]]
            if self.left_size == 1:
                blocks.append(indicators)
                owners.append(torch.full((len(indicators),), start, device=indicators.device))
            else:
                below = self.indicators[: self.ends[top]]
                blocks.append((indicators[:, None] * below).flatten(0, 1))
                owners.append((self.variable[: self.ends[top]] + start).repeat(len(indicators)))
            columns += len(blocks[-1])
            if columns >= limit or top == tops[-1]:
                begin = math.comb(first, self.left_size)
                yield _Left((first, top + 1), torch.cat(blocks), torch.cat(owners), begin)
                blocks, owners, columns, first = [], [], 0, top + 1

    def _stem(self, left: _Left, stem: list[int]) -> None:
        """All sets of a left part of this block, this stem, and a tail."""
        num = len(self.candidates)
        top = min(left.tops[1], stem[0] if stem else num)
        parts = math.comb(top, self.left_size) - left.start
        if parts <= 0:
            return
        width = int((left.owner < parts).sum()) if top < left.tops[1] else len(left.owner)
        columns = [self.candidates[p] for p in stem]
        ids, cells = self.extra_ids, self.extra_cells
        for position, column in zip(stem, columns, strict=True):
            ids = ids * self.rows.cardinalities[column] + self.codes[position]
            cells *= self.rows.cardinalities[column]
        right = torch.zeros(cells, len(ids), dtype=self.dtype, device=ids.device)
        right.scatter_(0, ids[None], self.rows.weights[None].to(self.dtype))
        base = left.start + sum(math.comb(p, self.left_size + 1 + i) for i, p in enumerate(stem))
        if not self.tail:
            self._count(left, width, parts, right[:, None], torch.tensor([base], device=ids.device))
            return
        for tails in self._tails(stem[-1] + 1, width * cells):
            # (cells of stem and extra, levels of the tails, rows)
            factors = right[:, None] * self.indicators[self.ends[tails[0]] : self.ends[tails[-1] + 1]]
            starts = [base + math.comb(p, self.size) for p in tails]
            self._count(
                left,
                width,
                parts,
                factors,
                torch.tensor(starts, device=ids.device),
                [self.levels[p] for p in tails],
            )

    def _tails(self, first: int, columns: int) -> Iterator[list[int]]:
        """The tails from ``first`` on, in groups whose products are of a good size."""
        limit = elements(self.rows.codes.device) * 2
        group, levels = list[int](), 0
        for tail in range(first, len(self.candidates)):
            if group and (levels + self.levels[tail]) * columns > limit:
                yield group
                group, levels = [], 0
            group.append(tail)
            levels += self.levels[tail]
        if group:
            yield group

    def _count(
        self,
        left: _Left,
        width: int,
        parts: int,
        right: Tensor,
        starts: Tensor,
        levels: Sequence[int] | None = None,
    ) -> None:
        """Add up f over the cells of ``parts`` left parts by ``len(starts)`` tails, of so many levels."""
        device = right.device
        counts = left.matrix[:width] @ right.flatten(0, 1).T
        numbers = starts + torch.arange(parts, device=device)[:, None]
        key = self.lookup.key(numbers)[left.owner[:width]]
        if levels is None:
            values = self.lookup(counts, key).sum(1, keepdim=True)
        else:
            tail = torch.repeat_interleave(torch.tensor(levels, device=device))
            counts = counts.view(width, len(right), -1)
            values = self.lookup(counts, key[:, None, tail]).sum(1)
            values = values.new_zeros(width, len(starts)).index_add_(1, tail, values)
        sums = values.new_zeros(parts, values.shape[1]).index_add_(0, left.owner[:width], values)
        self.result[numbers] += sums
        self.advance(numbers.numel())


def _exact_dtype(device: torch.device, total: int) -> torch.dtype:
    """The fastest dtype in which products of indicators and weights are exact."""
    # Elsewhere, or on request, products in float32 may round their factors to fewer bits.
    plain = device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if plain and total < _EXACT[torch.float32] else torch.float64
