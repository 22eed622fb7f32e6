r"""Counts of all subsets of variables at once.

The table of a set of variables T by f further ones, with one more level "summed out" added to each of the
latter, holds the tables of all :math:`2^f` sets :math:`T \cup F'` as blocks. It is made by f sums, instead
of counting the rows :math:`2^f` times; and where T is large, only its cells that occur are kept. All subsets
of n variables are visited by splitting on one variable after another (in T, or left out) until this *cube*
fits the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.structure.scores.counting import CountTerm, Lookup, Rows, compact, elements, joint_ids
from ppgen.inference.structure.scores.functions import Advance


@dataclass(frozen=True)
class _Free:
    """The variables not yet split on, in the order of the walk.

    Attributes:
        cardinalities: of these variables.
        cells: of their joint table.
        size: of their cube, the product of cardinality + 1.
        codes: shape (U,): the cell of each row.
        block: shape (size,): for each place of the cube, the number of the subset whose table it is in.
        bits: shape (2^f,): the members of these subsets.
    """

    cardinalities: tuple[int, ...]
    cells: int
    size: int
    codes: Tensor
    block: Tensor
    bits: Tensor


class Lattice:
    """One walk over all subsets.

    Args:
        rows: what is counted.
        term: f and c.
        num: subsets are of the first ``num`` columns.
        extra: columns in every set.
        largest: sets with more members, ``extra`` not counted, may be passed over.
        advance: told how many sets are done.
    """

    def __init__(
        self, rows: Rows, term: CountTerm, num: int, extra: Sequence[int], largest: int, advance: Advance
    ) -> None:
        self.rows, self.largest, self.advance = rows, largest, advance
        self.by_column = rows.codes.T.contiguous()
        device = rows.codes.device
        # Splitting on variables with many levels first leaves small cubes of many variables.
        self.order = sorted(range(num), key=lambda c: -rows.cardinalities[c])
        self.limit = elements(device)
        cells = torch.full((1,), float(rows.cells(extra)), dtype=torch.float64, device=device)
        for column in range(num):
            cells = torch.cat([cells, cells * rows.cardinalities[column]])
        self.lookup = Lookup(term, cells, rows.total)
        self.result = self.lookup.constants.clone()
        # Sizes of the cubes of the variables not yet split on.
        self.sizes = [math.prod(rows.cardinalities[c] + 1 for c in self.order[d:]) for d in range(num + 1)]
        self.free: dict[int, _Free] = {}
        chosen = list(extra)
        self.start = joint_ids(rows.codes[:, chosen], [rows.cardinalities[c] for c in chosen])

    def run(self) -> Tensor:
        """Values of all subsets, shape (2^num,)."""
        # Depth, members of T, how many, the cell of T of each row, and how many occur.
        stack = [(0, 0, 0, *self.start)]
        last = len(self.order)
        while stack:
            depth, mask, size, ids, num = stack.pop()
            leaf = last if size == self.largest else depth
            if leaf == last or num * self.sizes[leaf] <= self.limit:
                if leaf not in self.free:
                    self.free[leaf] = self._free(leaf)
                self._cube(self.free[leaf], mask, ids, num)
                self.advance(1 << (last - depth))
                continue
            column = self.order[depth]
            stack.append((depth + 1, mask, size, ids, num))
            cardinality = self.rows.cardinalities[column]
            joint = compact(ids * cardinality + self.by_column[column], num * cardinality)
            stack.append((depth + 1, mask | 1 << column, size + 1, *joint))
        return self.result

    def _free(self, depth: int) -> _Free:
        columns = self.order[depth:]
        device = self.rows.codes.device
        cardinalities = tuple(self.rows.cardinalities[c] for c in columns)
        codes = torch.zeros(len(self.rows.codes), dtype=torch.int64, device=device)
        block = torch.zeros(1, dtype=torch.int64, device=device)
        bits = torch.zeros(1, dtype=torch.int64, device=device)
        for position, (column, cardinality) in enumerate(zip(columns, cardinalities, strict=True)):
            codes = codes * cardinality + self.by_column[column]
            member = torch.full((cardinality + 1,), 1 << position, dtype=torch.int64, device=device)
            member[-1] = 0
            block = (block[:, None] + member).flatten()
            bits = torch.cat([bits, bits | 1 << column])
        return _Free(cardinalities, self.rows.cells(columns), self.sizes[depth], codes, block, bits)

    def _cube(self, free: _Free, mask: int, ids: Tensor, num: int) -> None:
        """Fill in the values of the sets T and any of the free variables; T has ``num`` cells."""
        counts = torch.zeros(free.cells * num, dtype=torch.int64, device=ids.device)
        counts.scatter_add_(0, free.codes * num + ids, self.rows.weights)
        done = 1
        for cardinality in free.cardinalities:
            cube = counts.view(done, cardinality, -1)
            counts = torch.cat([cube, cube.sum(1, keepdim=True)], dim=1)
            done *= cardinality + 1
        sets = free.bits | mask
        key = self.lookup.key(sets)[free.block]
        values = self.lookup(counts.view(free.size, num), key[:, None]).sum(1)
        self.result[sets] += torch.zeros(len(sets), dtype=torch.float64, device=ids.device).index_add_(
            0, free.block, values
        )
