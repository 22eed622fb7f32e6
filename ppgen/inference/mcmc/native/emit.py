"""C++ for scheduled operations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppgen.inference.mcmc.native.program import Access, Buffer, Operation, coordinates
from ppgen.inference.mcmc.native.schedule import Segment
from ppgen.inference.mcmc.native.storage import Plan, Storage

# A loop is unrolled where that gives no more statements than this.
_MAX_UNROLLED = 96
# Sums over more terms than this are made in two steps, so that rounding grows slower.
_LONG, _CHUNK = 256, 64

_TYPE = {"float": "V", "int": "I", "bool": "I"}


class Emitter:
    """Writes one function.

    Args:
        plan: where its buffers are.
        state_base: the C++ array of each entry of the state.
    """

    def __init__(self, plan: Plan, state_base: dict[str, str]) -> None:
        self.plan, self.state_base = plan, state_base
        self.lines: list[str] = []
        self.used: set[Buffer] = set()
        self._tiled = False
        self._late: list[str] = []

    def function(self, segments: Sequence[Segment]) -> list[str]:
        """The statements of these outermost segments."""
        self.lines = []
        self._block(segments, None)
        return self.lines

    # ---------------------------------------------------------------- structure

    def _block(self, segments: Sequence[Segment], owner: Segment | None) -> None:
        for kind, name, size in self.plan.declared.get(owner, ()):
            self.lines.append(f"{kind} {name}[{size}];")
        for segment in segments:
            if segment.extent is None:
                self._straight(segment)
            else:
                self._loop(segment)

    def _loop(self, segment: Segment) -> None:
        depth, extent = segment.depth, segment.extent or 0
        ending = [op for op in segment.operations if op.form == "reduce" and op.first_reduced == depth]
        for op in ending:
            self._begin_reduction(op, depth)
        if segment.guard:
            masks = " | ".join(self._load(mask, segment.operations[0]) for mask in segment.guard)
            self.lines.append(f"if (any({masks})) {{")
        variable = f"i{depth}"
        long_sums = [op for op in ending if depth == 0 and extent >= _LONG and self._is_plain_sum(op)]
        if long_sums:
            for op in long_sums:
                self.lines.append(f"V w{op.number} = a{op.number};")
            chunk = _CHUNK // segment.tile * segment.tile
            self.lines.append(f"for (long c0 = 0; c0 < {extent}; c0 += {chunk}) {{")
            self.lines.append(f"const long e0 = c0 + {chunk} < {extent} ? c0 + {chunk} : {extent};")
            for op in long_sums:
                self.lines.append(f"a{op.number} = splat(0);")
        start, stop = ("c0", "e0") if long_sums else ("0", str(extent))
        tile = segment.tile
        if tile == 1:
            size = sum(math.prod(op.domain[depth:]) for op in segment.operations)
            if not self._tiled and not long_sums and 1 < size <= _MAX_UNROLLED:
                self.lines.append(f"#pragma GCC unroll {extent}")
            self.lines.append(f"for (long {variable} = {start}; {variable} < {stop}; {variable}++) {{")
            self._block(segment.body, segment)
            self.lines.append("}")
        else:
            self._tiled = True
            self.lines.append("{")
            self.lines.append(f"long i0 = {start};")
            for width in (tile, 1):
                if width == 1 and extent % tile == 0:
                    continue
                self.lines.append(f"for (; i0 + {width} <= {stop}; i0 += {width}) {{")
                self.lines.append(f"constexpr int B = {width};")
                self._block(segment.body, segment)
                self.lines.append("}")
            self.lines.append("}")
            self._tiled = False
        if long_sums:
            for op in long_sums:
                self.lines.append(f"w{op.number} = w{op.number} + a{op.number};")
            self.lines.append("}")
            for op in long_sums:
                self.lines.append(f"a{op.number} = w{op.number};")
        if segment.guard:
            self.lines.append("}")
        for op in ending:
            self._end_reduction(op, depth)

    def _straight(self, segment: Segment) -> None:
        tiled = self._tiled
        self._late = []
        around: list[tuple[str, str]] = []
        body: list[str] = []
        outer, self.lines = self.lines, body
        for op in segment.operations:
            self._statement(op, around if tiled else None)
        body += self._late
        self.lines = outer
        if tiled:
            self.lines.append("{")
            self.lines += [f"V h{n} = {place};" for n, (_, place) in enumerate(around)]
            self.lines.append("#pragma GCC unroll 8")
            self.lines.append("for (int b = 0; b < B; b++) {")
            self.lines += body
            self.lines.append("}")
            self.lines += [f"{place} = h{n};" for n, (_, place) in enumerate(around)]
            self.lines.append("}")
        else:
            self.lines += body

    # ---------------------------------------------------------------- reductions

    @staticmethod
    def _is_sum(op: Operation) -> bool:
        return op.combine == "{0} + {1}" and "splat(" in op.initial

    def _is_plain_sum(self, op: Operation) -> bool:
        return not self._inner_kept(op) and self._is_sum(op)

    @staticmethod
    def _inner_kept(op: Operation) -> list[int]:
        """Loops inside the first one that is summed over that are kept: the sum is an array over them."""
        return [d for d in range(op.first_reduced + 1, len(op.domain)) if not op.reduced[d]]

    def _begin_reduction(self, op: Operation, depth: int) -> None:
        inner = self._inner_kept(op)
        kind = _TYPE[op.written()[0].kind]
        count = "[B]" if self._tiled else ""
        if not inner:
            self.lines.append(f"{kind} a{op.number}{count};")
            self._each_tile(f"a{op.number}{'[b]' if self._tiled else ''} = {op.initial};")
            return
        for d in inner:
            self.lines.append(f"for (long i{d} = 0; i{d} < {op.domain[d]}; i{d}++) {{")
        self._each_tile(f"{self._target(op)} = {op.initial};")
        self.lines.append("}" * len(inner))

    def _end_reduction(self, op: Operation, depth: int) -> None:
        if self._inner_kept(op):
            return
        buffer = op.written()[0]
        storage = self.plan.storage[buffer]
        if storage.scalar:
            return
        self._each_tile(f"{self._target(op)} = a{op.number}{'[b]' if self._tiled else ''};")

    def _each_tile(self, statement: str) -> None:
        if self._tiled:
            self.lines.append("#pragma GCC unroll 8")
            self.lines.append("for (int b = 0; b < B; b++)")
        self.lines.append(statement)

    # ---------------------------------------------------------------- statements

    def _statement(self, op: Operation, around: list[tuple[str, str]] | None) -> None:
        if op.form == "call":
            names = [self._pointer(buffer) for buffer in (*op.whole, *op.results)]
            self.lines.append(op.expression.format(*names) + ";")
            return
        operands = [self._load(operand, op) for operand in op.operands]
        value = op.expression.format(*operands)
        buffer = op.written()[0]
        kind = _TYPE[buffer.kind]
        name = f"t{op.number}"
        if op.form == "map":
            self.lines.append(f"const {kind} {name} = {value};")
            storage = self.plan.storage[buffer]
            if buffer in self.plan.stored and not storage.scalar:
                store = f"{self._target(op)} = {name};"
                (self._late if buffer.state is not None else self.lines).append(store)
        elif op.form == "reduce":
            if self._inner_kept(op):
                place = self._target(op)
                if around is not None and op.reduced[0] and self._is_sum(op):
                    around.append((name, place))
                    place = f"h{len(around) - 1}"
            else:
                inside = self._tiled and op.first_reduced > 0
                place = f"a{op.number}{'[b]' if inside else ''}"
            self.lines.append(f"{place} = {op.combine.format(place, f'({value})')};")
        elif op.form == "scan":
            place = self._target(op)
            index = self._variable(op.scan_dim)
            before = self._flat(op.target, op, -op.scan_step) if op.target is not None else ""
            self.lines.append(f"{kind} {name} = {op.initial};")
            self.lines.append(f"if ({index} > 0) {name} = {self.plan.storage[buffer].name}[{before}];")
            self.lines.append(f"{name} = {op.combine.format(name, f'({value})')};")
            self.lines.append(f"{place} = {name};")
        else:
            place = self._target(op)
            self.lines.append(f"{place} = {op.combine.format(place, f'({value})')};")

    def _pointer(self, buffer: Buffer) -> str:
        if buffer.place == "temporary":
            return self.plan.storage[buffer].name
        return self._base(buffer)

    def _base(self, buffer: Buffer) -> str:
        self.used.add(buffer)
        if buffer.place == "state":
            return self.state_base[buffer.name]
        return f"f.{buffer.name}" if buffer.place == "noise" else buffer.name

    def _variable(self, depth: int) -> str:
        return "(i0 + b)" if self._tiled and depth == 0 else f"i{depth}"

    def _target(self, op: Operation) -> str:
        if op.target is None:
            raise ValueError("an operation without a target")
        storage = self.plan.storage[op.target.buffer]
        return self._element(storage, op.target, op)

    def _element(self, storage: Storage, access: Access, op: Operation) -> str:
        if storage.scalar:
            return storage.name
        if storage.memory:
            return f"{storage.name}[{self._flat(access, op)}]"
        place = coordinates(access, op.domain)
        if place is None:
            if storage.depth:
                raise ValueError("an index that mixes dimensions reads what is kept in a loop")
            return f"{storage.name}[{self._flat(access, op)}]"
        terms, step = [], 1
        for dim, extent in reversed(storage.extents):
            offset, coefficients = place[dim]
            if offset:
                terms.append(str(offset * step))
            terms += [_product(c * step, self._variable(loop)) for loop, c in coefficients.items()]
            step *= extent
        index = " + ".join(terms) or "0"
        if storage.tile > 1:
            index = f"({index}) * {storage.tile} + b" if terms else "b"
        return f"{storage.name}[{index}]"

    def _flat(self, access: Access, op: Operation, extra: int = 0) -> str:
        offset = access.offset + extra
        terms = [str(offset)] if offset else []
        for loop, stride in enumerate(access.strides):
            if stride:
                terms.append(_product(stride, self._variable(loop)))
        for lookup, step in access.lookups:
            found = f"{self._base(lookup.buffer)}[{self._flat(lookup, op)}]"
            terms.append(_product(step, found))
        return " + ".join(terms) or "0"

    def _load(self, operand: Access | str, op: Operation) -> str:
        if isinstance(operand, str):
            return operand
        buffer = operand.buffer
        if buffer.shared:
            element = f"{self._base(buffer)}[{self._flat(operand, op)}]"
            return f"splat({element})" if buffer.kind == "float" else f"splat_int({element})"
        if buffer.place == "temporary":
            writer = buffer.writers[0]
            same = self.plan.path[writer] == self.plan.path[op]
            if same and len(buffer.writers) == 1 and writer.form in ("map", "scan") and writer is not op:
                return f"t{writer.number}"
            storage = self.plan.storage[buffer]
            if operand.lane_index is None:
                return self._element(storage, operand, op)
            base = storage.name
        else:
            base = self._base(buffer)
            if operand.lane_index is None:
                return f"{base}[{self._flat(operand, op)}]"
        index = self._load(op.operands[operand.lane_index], op)
        return f"lane_gather({base} + {self._flat(operand, op)}, {index}, {operand.lane_step})"


def _product(factor: int, what: str) -> str:
    return what if factor == 1 else f"{factor} * {what}"
