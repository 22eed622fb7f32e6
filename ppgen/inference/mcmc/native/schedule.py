"""Which operations share loops, and in which order.

Operations whose outermost loops have the same extent share one loop if what one reads of another lies at
the same index of that loop; the same then holds, recursively, for the loops inside. So a matrix product,
what is done to each of its rows, and the product with the transposed matrix become one pass over the
matrix, and what is computed for a row is kept for that row only.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ppgen.inference.mcmc.native.program import Access, Buffer, Operation, coordinates

#: More operations than this in a row are split, for the compiler's time grows faster than their number.
MAX_STRAIGHT = 600


@dataclass(eq=False)
class Segment:
    """A loop, or operations one after the other.

    Attributes:
        extent: of the loop; None where there is none.
        operations: all operations inside.
        body: what a loop holds.
        depth: number of loops around.
        tile: how many iterations are done together; more than one only outermost.
        position: of the outermost segments, their order.
        guard: masks without whose lanes the loop need not run.
    """

    extent: int | None
    depth: int
    operations: list[Operation] = field(default_factory=list)
    body: list[Segment] = field(default_factory=list)
    tile: int = 1
    position: int = -1
    guard: tuple[Access, ...] = ()


Edges = dict[Operation, list[tuple[Operation, int]]]


def live(operations: Sequence[Operation], outputs: Sequence[Buffer]) -> list[Operation]:
    """The operations that the outputs need, in order."""
    needed: set[Operation] = set()
    pending = [op for buffer in outputs for op in buffer.writers]
    while pending:
        op = pending.pop()
        if op in needed:
            continue
        needed.add(op)
        pending += op.after
        for buffer in [*(access.buffer for access in op.reads()), *op.whole, *op.written()]:
            pending += buffer.writers
    return [op for op in operations if op in needed]


def edges(operations: Sequence[Operation]) -> Edges:
    """For each operation those that it needs, each with the number of loops that the two can share."""
    result: Edges = {}
    for op in operations:
        shared: dict[Operation, int] = {}
        for earlier in op.after:
            shared[earlier] = 0
        for buffer in op.whole:
            for writer in buffer.writers:
                shared[writer] = 0
        for access in op.reads():
            writers = access.buffer.writers
            for writer in writers:
                if writer is op:
                    continue
                number = 0
                if len(writers) == 1:
                    number = shared_loops(writer, op, coordinates(access, op.domain))
                shared[writer] = min(shared.get(writer, number), number)
        result[op] = list(shared.items())
    return result


def shared_loops(writer: Operation, reader: Operation, place: list[tuple[int, dict[int, int]]] | None) -> int:
    """How many outermost loops two operations can share; the reader's element lies at ``place``."""
    if place is None or writer.target is None or writer.form not in ("map", "reduce", "scan"):
        return 0
    strides = [stride for _, stride in writer.target.buffer.dims()]
    shared = 0
    for loop in range(min(len(writer.domain), len(reader.domain))):
        step = writer.target.strides[loop]
        if writer.domain[loop] != reader.domain[loop] or step not in strides:
            break
        own = strides.index(step)
        if writer.reduced and writer.reduced[loop]:
            break
        if place[own] != (0, {loop: 1}):
            break
        if any(loop in terms for other, (_, terms) in enumerate(place) if other != own):
            break
        shared += 1
    return shared


def schedule(operations: Sequence[Operation], needs: Edges, depth: int = 0) -> list[Segment]:
    """The operations, in order, as loops."""
    segments = _Segments(needs, depth)
    for op in operations:
        segments.place(op)
    segments.sink(operations)
    result = []
    for operation_list in segments.contents(operations):
        first = operation_list[0]
        if first.form == "call" or len(first.domain) <= depth:
            result += _straight(operation_list, depth)
        else:
            guard = first.guard if first.guard_depth == depth else ()
            segment = Segment(first.domain[depth], depth, operation_list, guard=guard)
            segment.body = schedule(operation_list, needs, depth + 1)
            if depth == 0:
                segment.tile = _tile(segment)
            result.append(segment)
    if depth == 0:
        for position, segment in enumerate(result):
            segment.position = position
    return result


def _straight(operations: list[Operation], depth: int) -> list[Segment]:
    size = MAX_STRAIGHT if depth == 0 else len(operations)
    return [Segment(None, depth, operations[i : i + size]) for i in range(0, len(operations), size)]


#: What operations of one loop have in common: its extent and guard; of a call, its number.
Key = tuple[int, tuple[tuple[Buffer, int], ...]] | int


def _key(op: Operation, depth: int) -> Key | None:
    if op.form == "call":
        return op.number
    if len(op.domain) <= depth:
        return None
    guard = op.guard if op.guard_depth == depth else ()
    return op.domain[depth], tuple((mask.buffer, mask.offset) for mask in guard)


class _Segments:
    """Segments of one level, in order, that operations are placed into."""

    def __init__(self, needs: Edges, depth: int) -> None:
        self.needs, self.depth = needs, depth
        self.keys: list[Key | None] = []
        self.by_key: dict[Key | None, list[int]] = defaultdict(list)
        self.position: dict[Operation, int] = {}

    def fuse(self, earlier: Operation, later: Operation, shared: int) -> bool:
        key = _key(earlier, self.depth)
        if key != _key(later, self.depth) or isinstance(key, int):
            return False
        return key is None or shared > self.depth

    def place(self, op: Operation) -> None:
        first = 0
        for earlier, shared in self.needs[op]:
            if earlier in self.position:
                apart = 0 if self.fuse(earlier, op, shared) else 1
                first = max(first, self.position[earlier] + apart)
        key = _key(op, self.depth)
        known = self.by_key[key]
        found = bisect.bisect_left(known, first)
        if found == len(known):
            known.append(len(self.keys))
            self.keys.append(key)
        self.position[op] = known[found]

    def sink(self, operations: Sequence[Operation]) -> None:
        """Move operations to the only segment that reads them, if they can share its loop."""
        readers: dict[Operation, list[tuple[Operation, int]]] = defaultdict(list)
        for op in operations:
            for earlier, shared in self.needs[op]:
                readers[earlier].append((op, shared))
        for op in reversed(operations):
            if _key(op, self.depth) is None or not readers[op]:
                continue
            inside = [(r, s) for r, s in readers[op] if r in self.position]
            places = {self.position[r] for r, _ in inside}
            alone = len(inside) == len(readers[op]) and len(places) == 1
            if alone and all(self.fuse(op, r, s) for r, s in inside):
                self.position[op] = places.pop()

    def contents(self, operations: Sequence[Operation]) -> list[list[Operation]]:
        filled: list[list[Operation]] = [[] for _ in self.keys]
        for op in operations:
            filled[self.position[op]].append(op)
        return [content for content in filled if content]


def _tile(segment: Segment) -> int:
    """Iterations of an outermost loop to do together: products then read one factor once for all."""
    inner = [op for op in segment.operations if len(op.domain) > 1]
    extent = segment.extent or 0
    products = any(op.product or op.form == "reduce" for op in inner)
    if not products or extent < 4 or len(inner) > 6 or any(op.heavy or op.form == "scan" for op in inner):
        return 1
    for tile in (8, 7, 6, 5, 4):
        if extent % tile == 0:
            return tile
    return 8 if extent > 16 else 4
