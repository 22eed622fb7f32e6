"""The generator's own form of a program: buffers, and operations that are loops over them.

An operation reads and writes elements of buffers at indices that are affine in its loop variables, so
that views of tensors cost nothing. Dimensions of extent 1 do not exist here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ppgen.inference.mcmc.native.layout import Kind

Place = Literal["state", "noise", "params", "uniform", "temporary"]


@dataclass(eq=False)
class Buffer:
    """Storage of a tensor, row-major.

    Attributes:
        name: in C++; of a temporary, its number.
        shape: logical shape.
        kind: of its elements.
        place: who owns it. Uniforms and params are scalars for all lanes; the rest are lanes.
        writers: operations that fill it, in order.
        state: the entry of the state whose new value this is, if any.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    place: Place = "temporary"
    writers: list[Operation] = field(default_factory=list)
    state: str | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def shared(self) -> bool:
        """Whether all lanes have the same values."""
        return self.place in ("uniform", "params")

    def dims(self) -> list[tuple[int, int]]:
        """Extent and stride of each dimension longer than 1, outermost first."""
        strides = contiguous(self.shape)
        return [(n, s) for n, s in zip(self.shape, strides, strict=True) if n != 1]


def contiguous(shape: Sequence[int]) -> list[int]:
    """Strides of a row-major tensor."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return strides[::-1]


@dataclass(frozen=True)
class Value:
    """A tensor of the traced program: a view of a buffer, or one number everywhere.

    ``view`` is a tensor without data (on the meta device) that has the shape, strides and offset.
    """

    buffer: Buffer | None
    view: Tensor
    kind: Kind
    number: float | int | bool = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        return tuple(self.view.shape)


@dataclass(frozen=True)
class Access:
    """Elements of a buffer that an operation touches, one for each point of its domain.

    The index is ``offset + sum_j strides[j] i_j + sum_k lookups[k] . step_k``, where a lookup is an element
    of a uniform buffer of integers. With ``lane_index`` (position among the operands of the operation),
    the index differs between lanes: its value times ``lane_step`` is added.
    """

    buffer: Buffer
    offset: int
    strides: tuple[int, ...]
    lookups: tuple[tuple[Access, int], ...] = ()
    lane_index: int | None = None
    lane_step: int = 1

    @property
    def plain(self) -> bool:
        """Whether the index is affine."""
        return not self.lookups and self.lane_index is None


Form = Literal["map", "reduce", "scatter", "scan", "call"]


@dataclass(eq=False)
class Operation:
    """One loop nest.

    Attributes:
        form: ``map`` writes an element at each point of the domain; ``reduce`` combines over the
            dimensions marked in ``reduced``; ``scatter`` adds to, or replaces, elements found by lookup;
            ``scan`` combines with the element ``scan_step`` before; ``call`` is a C++ statement on
            whole buffers.
        domain: extents, outermost first, none of them 1.
        expression: C++ with ``{0}``, ``{1}``, ... for the operands.
        operands: elements read, or C++ literals.
        target: elements written.
        reduced: which dimensions of the domain are summed over.
        combine: C++ with ``{0}`` (so far) and ``{1}``.
        initial: C++ value to begin with.
        after: operations that must come before this one though it reads nothing of them.
        whole: buffers that a call reads.
        results: buffers that a call writes.
        heavy: whether the expression is costly.
        product: whether it is part of a product of matrices.
        guard: masks; where all lanes of all of them are false, nothing looks at the result.
    """

    form: Form
    domain: tuple[int, ...]
    expression: str
    operands: tuple[Access | str, ...] = ()
    target: Access | None = None
    reduced: tuple[bool, ...] = ()
    combine: str = ""
    initial: str = ""
    scan_step: int = 0
    scan_dim: int = 0
    after: tuple[Operation, ...] = ()
    whole: tuple[Buffer, ...] = ()
    results: tuple[Buffer, ...] = ()
    heavy: bool = False
    product: bool = False
    guard: tuple[Access, ...] = ()
    number: int = -1

    def reads(self) -> list[Access]:
        """All accesses that read, with the lookups inside them."""
        found: list[Access] = []
        pending = [*self.guard, *(o for o in self.operands if isinstance(o, Access))]
        if self.target is not None:
            pending += [lookup for lookup, _ in self.target.lookups]
        while pending:
            access = pending.pop()
            found.append(access)
            pending += [lookup for lookup, _ in access.lookups]
        return found

    def written(self) -> list[Buffer]:
        """The buffers that it writes."""
        return [self.target.buffer] if self.target is not None else list(self.results)

    @property
    def guard_depth(self) -> int:
        """Depth of the loop that the guard stands before: the outermost that does not change the masks."""
        return int(any(stride for mask in self.guard for stride in mask.strides))

    @property
    def first_reduced(self) -> int:
        """Depth of the outermost loop that is summed over; its result is there after that loop."""
        if self.form == "reduce":
            return self.reduced.index(True)
        return 0 if self.form == "scatter" else len(self.domain)


def reordered(operand: Access | str, order: Sequence[int]) -> Access | str:
    """An operand with the strides of these loops, in this order."""
    return operand if isinstance(operand, str) else reordered_access(operand, order)


def reordered_access(access: Access, order: Sequence[int]) -> Access:
    """As :func:`reordered`."""
    lookups = tuple((reordered_access(lookup, order), step) for lookup, step in access.lookups)
    return replace(access, strides=tuple(access.strides[d] for d in order), lookups=lookups)


def orient(operations: Sequence[Operation]) -> None:
    """Choose the order of loops of each operation, in place.

    Operations over the same extents get the same order, so that they can share loops. First come the
    dimensions that sums keep, so that a sum is a variable and not an array; else the longest.
    """
    score: dict[tuple[int, ...], dict[int, int]] = {}
    for op in operations:
        if op.form == "reduce" and not op.product:
            votes = score.setdefault(tuple(sorted(op.domain)), {})
            for extent, summed in zip(op.domain, op.reduced, strict=True):
                votes[extent] = votes.get(extent, 0) + (-1 if summed else 1)
    for op in operations:
        if len(op.domain) < 2 or op.product:
            continue
        votes = score.get(tuple(sorted(op.domain)), {})
        loops = range(len(op.domain))
        order = sorted(loops, key=lambda d: (-votes.get(op.domain[d], 0), -op.domain[d]))
        op.domain = tuple(op.domain[d] for d in order)
        op.operands = tuple(reordered(operand, order) for operand in op.operands)
        if op.target is not None:
            op.target = reordered_access(op.target, order)
        op.reduced = tuple(op.reduced[d] for d in order) if op.reduced else ()
        op.scan_dim = order.index(op.scan_dim) if op.form == "scan" else 0


Coordinate = tuple[int, dict[int, int]]


def coordinates(access: Access, domain: Sequence[int]) -> list[Coordinate] | None:
    """For each dimension of the buffer, its index as (offset, {loop: coefficient}).

    None where the view mixes dimensions, so that the index is only known as a whole.
    """
    if not access.plain:
        return None
    dims = access.buffer.dims()
    offsets, rest = [], access.offset
    for _, stride in dims:
        offsets.append(rest // stride)
        rest %= stride
    if rest and dims:
        return None
    coefficients: list[dict[int, int]] = [{} for _ in dims]
    for loop, (extent, step) in enumerate(zip(domain, access.strides, strict=True)):
        if step == 0:
            continue
        for place, (length, stride) in enumerate(dims):
            if step % stride == 0 and abs(step) // stride * (extent - 1) < length:
                coefficients[place][loop] = step // stride
                break
        else:
            return None
    for offset, terms, (length, _) in zip(offsets, coefficients, dims, strict=True):
        spans = [c * (domain[loop] - 1) for loop, c in terms.items()]
        low, high = offset + sum(s for s in spans if s < 0), offset + sum(s for s in spans if s > 0)
        if low < 0 or high >= length:
            return None
    return list(zip(offsets, coefficients, strict=True))
