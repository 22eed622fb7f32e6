"""Where each buffer lives: in a variable, in a small array inside a loop, or in the frame of a group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ppgen.inference.mcmc.native.program import Access, Buffer, Operation, coordinates
from ppgen.inference.mcmc.native.schedule import Segment

# Larger arrays are not put on the stack.
_MAX_STACK = 256


@dataclass(frozen=True)
class Storage:
    """Where a temporary is.

    Attributes:
        name: in C++.
        depth: number of outer loops that it is made anew for; their indices do not count.
        extents: of the dimensions that are left, by dimension of the buffer; others are left out.
        tile: iterations that it is kept for side by side.
        scalar: whether it is a plain variable.
        memory: whether it is whole, in the buffer's own order.
    """

    name: str
    depth: int = 0
    extents: tuple[tuple[int, int], ...] = ()
    tile: int = 1
    scalar: bool = False
    memory: bool = False


@dataclass
class Plan:
    """Where all is in a function.

    Attributes:
        storage: of each temporary.
        path: of each operation, the segments around it, outermost first.
        declared: by segment (None: the function), arrays to declare when it begins.
        frame: members of the frame: C++ type, name, number of elements.
        copies: temporaries to copy to entries of the state at the end.
        stored: temporaries that must be stored though they may be read from a variable too.
        parts: number of the C++ function that each outermost segment is in.
    """

    storage: dict[Buffer, Storage] = field(default_factory=dict)
    path: dict[Operation, tuple[Segment, ...]] = field(default_factory=dict)
    declared: dict[Segment | None, list[tuple[str, str, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    frame: list[tuple[str, str, int]] = field(default_factory=list)
    copies: list[tuple[Buffer, str]] = field(default_factory=list)
    stored: set[Buffer] = field(default_factory=set)
    parts: dict[Segment, int] = field(default_factory=dict)


def plan(
    name: str,
    segments: Sequence[Segment],
    outputs: Sequence[Buffer],
    state_base: dict[str, str],
    max_statements: int,
) -> Plan:
    """Place the temporaries of a function.

    Args:
        name: of the function; begins the names of its members of the frame.
        segments: the function.
        outputs: temporaries that are new values of the state (:attr:`Buffer.state`).
        state_base: the C++ array of each entry of the state.
        max_statements: how many operations a C++ function may have.
    """
    made = Plan()
    count, part = 0, 0
    for segment in segments:
        count += len(segment.operations)
        if count > max_statements and count > len(segment.operations):
            count, part = len(segment.operations), part + 1
        made.parts[segment] = part
        _note_paths(made, segment, ())
    reads: dict[Buffer, list[tuple[Operation, Access | None]]] = defaultdict(list)
    for op in made.path:
        for access in op.reads():
            reads[access.buffer].append((op, access))
        for buffer in op.whole:
            reads[buffer].append((op, None))
    by_state: dict[str, list[tuple[Operation, Access | None]]] = defaultdict(list)
    for buffer, readers in reads.items():
        if buffer.place == "state":
            by_state[buffer.name] += readers
    for op in made.path:
        for buffer in op.written():
            if buffer in made.storage:
                continue
            if buffer.state is not None:
                base = state_base[buffer.state]
                if _safe_in_place(made, buffer, by_state[buffer.state]):
                    made.storage[buffer] = Storage(base, memory=True)
                    made.stored.add(buffer)
                    continue
                made.copies.append((buffer, base))
            made.storage[buffer] = _place(made, name, buffer, reads[buffer], buffer in outputs)
    return made


def _note_paths(made: Plan, segment: Segment, around: tuple[Segment, ...]) -> None:
    inside = (*around, segment)
    if segment.extent is None:
        for op in segment.operations:
            made.path[op] = inside
    for inner in segment.body:
        _note_paths(made, inner, inside)


def _place(
    made: Plan, name: str, buffer: Buffer, readers: Sequence[tuple[Operation, Access | None]], output: bool
) -> Storage:
    kind = "V" if buffer.kind == "float" else "I"
    member = f"{name}{buffer.name}"
    whole = len(buffer.writers) > 1 or any(access is None for _, access in readers)
    writer = buffer.writers[0]
    target = writer.target
    if whole or target is None or writer.form in ("scatter", "scan"):
        made.stored.add(buffer)
        made.frame.append((kind, member, buffer.numel))
        return Storage(f"f.{member}", memory=True)
    path = made.path[writer]
    common = _own_depth(writer)
    for reader, _ in readers:
        common = min(common, _common(path, made.path[reader]))
    if output:
        common = 0
    elsewhere = any(made.path[reader] != path for reader, _ in readers)
    if elsewhere or output:
        made.stored.add(buffer)
    outside = {made.parts[made.path[r][0]] for r, _ in readers} != {made.parts[path[0]]}
    # Which dimensions of the buffer do the shared loops run along?
    strides = [stride for _, stride in buffer.dims()]
    gone = {strides.index(target.strides[loop]) for loop in range(common)}
    extents = tuple((d, n) for d, (n, _) in enumerate(buffer.dims()) if d not in gone)
    tile = path[0].tile if common >= 1 else 1
    size = tile
    for _, n in extents:
        size *= n
    crosses = common == 0 and (outside or (output and len(set(made.parts.values())) > 1))
    if not elsewhere and not output and writer.form == "map":
        return Storage(f"t{writer.number}", common, scalar=True)
    if not extents and not crosses:
        variable = f"{'a' if writer.form == 'reduce' else 't'}{writer.number}"
        if tile == 1:
            return Storage(variable, common, scalar=True)
        made.declared[path[common - 1]].append((kind, f"x{buffer.name}", tile))
        return Storage(f"x{buffer.name}", common, tile=tile)
    if common >= 1 and size <= _MAX_STACK:
        made.declared[path[common - 1]].append((kind, f"x{buffer.name}", size))
        return Storage(f"x{buffer.name}", common, extents, tile)
    made.frame.append((kind, member, size))
    return Storage(f"f.{member}", common, extents, tile)


def _own_depth(writer: Operation) -> int:
    return writer.first_reduced


def _common(a: tuple[Segment, ...], b: tuple[Segment, ...]) -> int:
    """Number of loops around both."""
    number = 0
    for x, y in zip(a, b, strict=False):
        if x is not y or x.extent is None:
            break
        number += 1
    return number


def _safe_in_place(made: Plan, buffer: Buffer, readers: Sequence[tuple[Operation, Access | None]]) -> bool:
    """Whether a new value may be written over the old one: all have read that before."""
    for writer in buffer.writers:
        path = made.path[writer]
        for reader, access in readers:
            read_path = made.path[reader]
            if read_path[0].position < path[0].position:
                continue
            if read_path[0].position > path[0].position:
                return False
            if read_path != path or writer.target is None or access is None or writer.form != "map":
                return False
            if not access.plain or not writer.target.plain:
                return False
            if (access.offset, access.strides) != (writer.target.offset, writer.target.strides):
                return False
            if coordinates(access, reader.domain) is None:
                return False
    return True
