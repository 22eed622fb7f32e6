"""Loops that no lane needs are skipped.

Where ``where(mask, new, old)`` keeps the old value of a state in all lanes, the new value need not be
computed, and neither what only it needs. A kernel that works in masks (trees that double, proposals that
are taken) does most of its work for few of its steps. So each loop gets, as its *guard*, masks outside
whose lanes nothing looks at its results, if there are such masks that are known before it begins.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ppgen.inference.mcmc.native.program import Access, Buffer, Operation, coordinates
from ppgen.inference.mcmc.native.schedule import shared_loops

# More masks than this are not worth asking.
_MOST = 6
_SELECT, _AND = "select(({0}), ({1}), ({2}))", "({0}) & ({1})"

#: A mask, by what tells elements apart: its buffer, offset, and stride along the outermost loop.
Mask = tuple[Buffer, int, int]
#: The masks outside whose lanes nothing looks at a result; None where it is always looked at.
Demand = frozenset[Mask] | None


def set_guards(
    operations: Sequence[Operation], always: Collection[str], without: Collection[Operation]
) -> None:
    """Set :attr:`Operation.guard` of each operation in a loop, where it can be skipped.

    Args:
        operations: a function, every operation after those that it needs.
        always: entries of the state that are known to be true in some lane.
        without: operations that must not be skipped.
    """
    exact: set[Buffer] = set()
    while True:
        chosen = _chosen(operations, _demands(operations, always, exact), without)
        masks = {mask[0] for guard in chosen.values() for mask in guard}
        if masks <= exact:
            break
        # What a guard looks at must be right in all lanes.
        exact |= masks
    union: dict[tuple[int, ...], set[Mask]] = {}
    for op, guard in chosen.items():
        if _varies(guard):
            # Loops inside one loop are few and short: they stay together.
            union.setdefault(op.domain, set()).update(guard)
    for op, guard in chosen.items():
        whole = union[op.domain] if _varies(guard) else guard
        op.guard = tuple(
            Access(buffer, offset, (stride,) + (0,) * (len(op.domain) - 1))
            for buffer, offset, stride in sorted(whole, key=lambda m: (m[0].place, m[0].name, m[1]))
        )
    _write_after_read(operations)


def _varies(guard: Collection[Mask]) -> bool:
    return any(stride for _, _, stride in guard)


def _demands(
    operations: Sequence[Operation], always: Collection[str], exact: Collection[Buffer]
) -> dict[Operation, Demand]:
    found: dict[Operation, Demand] = {op: frozenset() for op in operations}
    for op in reversed(operations):
        buffer = op.written()[0]
        if buffer.state is not None:
            mask = _mask(op, 0) if _keeps_old(op) else None
            _need(found, op, None if mask is None else frozenset({mask}))
        if op.form not in ("map", "reduce") or len(buffer.writers) > 1 or buffer in exact:
            found[op] = None
        masks = found[op]
        if masks is not None and any(m[0].place == "state" and m[0].name in always for m in masks):
            masks = found[op] = None
        for earlier in (*op.after, *(w for b in op.whole for w in b.writers)):
            _need(found, earlier, None)
        for access in op.reads():
            for writer in access.buffer.writers:
                if writer is not op:
                    _need(found, writer, _through(op, access, writer, masks))
    return found


def _need(found: dict[Operation, Demand], op: Operation, masks: Demand) -> None:
    have = found[op]
    joined = None if have is None or masks is None else have | masks
    found[op] = None if joined is None or len(joined) > _MOST else joined


def _through(reader: Operation, access: Access, writer: Operation, masks: Demand) -> Demand:
    """The masks under which a reader looks at what it reads there."""
    places = [i for i, operand in enumerate(reader.operands) if operand is access]
    mask = None
    if len(places) == 1:
        if reader.expression == _SELECT and places[0] == 1:
            mask = _mask(reader, 0)
        if reader.expression == _AND:
            mask = _mask(reader, 1 - places[0])
    if mask is not None and mask[0] is not writer.written()[0]:
        masks = frozenset({mask})
    if masks is None or not _varies(masks):
        return masks
    return masks if shared_loops(writer, reader, coordinates(access, reader.domain)) else None


def _mask(op: Operation, place: int) -> Mask | None:
    """An operand as a mask, where only the outermost loop changes it."""
    access = op.operands[place]
    if isinstance(access, str) or not access.plain or any(access.strides[1:]) or access.buffer.shared:
        return None
    return access.buffer, access.offset, access.strides[0] if access.strides else 0


def _keeps_old(op: Operation) -> bool:
    """Whether this is the new value of a state that is the old one outside a mask."""
    if op.form != "map" or op.expression != _SELECT or op.target is None:
        return False
    old = op.operands[2]
    if isinstance(old, str) or old.buffer.place != "state" or old.buffer.name != op.target.buffer.state:
        return False
    return (old.offset, old.strides, old.plain) == (op.target.offset, op.target.strides, True)


def _chosen(
    operations: Sequence[Operation], demands: dict[Operation, Demand], without: Collection[Operation]
) -> dict[Operation, frozenset[Mask]]:
    """The guards that can be asked before what they guard."""
    needs = _needs(operations)
    chosen: dict[Operation, frozenset[Mask]] = {}
    for op in operations:
        guard = demands[op]
        if not guard or op in without or not op.domain:
            continue
        if _varies(guard) and (len(op.domain) < 2 or (op.reduced and op.reduced[0])):
            continue
        writers = {writer for mask in guard for writer in mask[0].writers}
        if any(_depends(writer, op, needs) for writer in writers):
            continue
        needs[op] |= writers
        chosen[op] = guard
    return chosen


def _needs(operations: Sequence[Operation]) -> dict[Operation, set[Operation]]:
    result: dict[Operation, set[Operation]] = {}
    for op in operations:
        buffers = [*(access.buffer for access in op.reads()), *op.whole]
        result[op] = {w for buffer in buffers for w in buffer.writers if w is not op} | set(op.after)
    return result


def _depends(op: Operation, on: Operation, needs: dict[Operation, set[Operation]]) -> bool:
    seen, pending = {op}, [op]
    while pending:
        current = pending.pop()
        if current is on:
            return True
        fresh = needs[current] - seen
        seen |= fresh
        pending += fresh
    return False


def _write_after_read(operations: Sequence[Operation]) -> None:
    """Let guarded new values of a state come after those that read the old one: they must go in its place."""
    readers: dict[str, list[Operation]] = {}
    for op in operations:
        for access in op.reads():
            if access.buffer.place == "state":
                readers.setdefault(access.buffer.name, []).append(op)
    needs = _needs(operations)
    for op in operations:
        state = op.written()[0].state
        if not op.guard or state is None:
            continue
        for reader in readers.get(state, []):
            apart = reader is not op and reader.guard != op.guard
            if apart and reader not in op.after and not _depends(reader, op, needs):
                op.after = (*op.after, reader)
                needs[op].add(reader)
