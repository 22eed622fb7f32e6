"""From the graphs of a kernel and a density to one C++ program."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ppgen.inference.mcmc.native import algebra, indexing, pointwise, reductions  # noqa: F401 (registered)
from ppgen.inference.mcmc.native.emit import Emitter
from ppgen.inference.mcmc.native.entry import entry_points, saved_size
from ppgen.inference.mcmc.native.guards import set_guards
from ppgen.inference.mcmc.native.layout import Entry, Generated
from ppgen.inference.mcmc.native.lowering import Lowering
from ppgen.inference.mcmc.native.program import Buffer, Operation, Value, orient
from ppgen.inference.mcmc.native.registry import OPERATORS
from ppgen.inference.mcmc.native.schedule import MAX_STRAIGHT, edges, live, schedule
from ppgen.inference.mcmc.native.storage import plan
from ppgen.inference.mcmc.native.trace import KernelGraphs, Traced
from ppgen.inference.mcmc.native.values import Uniforms, is_whole

_HEAD = """#include <stdlib.h>
#include "ppgen.hpp"

#define PPGEN_PART static __attribute__((noinline, unused))

// What is done lane by lane is not inlined: it costs the compiler much and brings nothing.
PPGEN_PART V lane_gather(const V *p, I index, long step) {
    V result;
    for (int l = 0; l < W; l++) result[l] = p[index[l] * step][l];
    return result;
}
PPGEN_PART I lane_gather(const I *p, I index, long step) {
    I result;
    for (int l = 0; l < W; l++) result[l] = p[index[l] * step][l];
    return result;
}
PPGEN_PART I quotient(I a, I b) { return a / b; }
PPGEN_PART I rest(I a, I b) { return a % b; }
// exp(x^2) erfc(x); far out by its continued fraction (Abramowitz and Stegun 7.1.14).
PPGEN_FUNCTION V scaled_erfc(V x) {
    const T far = sizeof(T) == 4 ? 3 : 6;
    V fraction = x;
    for (int k = 30; k > 0; k--) fraction = x + (T)0.5 * k / fraction;
    V near = v_exp(x * x) * v_erfc(x);
    return select((I)(x > far), (T)0.5641895835477563 / fraction, near);
}
"""

_C_TYPE = {"float": "V", "int": "I", "bool": "I"}


@dataclass
class _Function:
    """A function's C++, what it wants of the frame, and how many numbers it computes."""

    source: str
    frame: list[tuple[str, str, int]]
    num_statements: int
    work: int


def generate(graphs: KernelGraphs) -> Generated:
    """The program that runs a kernel on a density.

    Raises:
        UnsupportedOperation: an operation that cannot be compiled to lanes.
    """
    uniforms = Uniforms(graphs.dtype)
    params = [Buffer(f"p{i}", e.shape, e.kind, "params") for i, e in enumerate(graphs.params)]
    functions = {
        name: _function(name, traced, graphs, params, uniforms) for name, traced in graphs.functions.items()
    }
    pointers = [(f"u{i}", t.is_floating_point()) for i, t in enumerate(uniforms.tensors)]
    pointers += [(buffer.name, buffer.kind == "float") for buffer in params]
    members = [f"const {'T' if floats else 'int64_t'} *{name};" for name, floats in pointers]
    members += [f"{_C_TYPE[e.kind]} s_{e.name}[{e.numel}];" for e in graphs.state]
    members += [
        f"V n_{function}_{name}[{max(1, torch.Size(spec.shape).numel())}];"
        for function, specs in graphs.noise.items()
        for name, spec in specs.items()
    ]
    members.append(f"V saved[{saved_size(graphs)}];")
    members += [f"{kind} {name}[{size}];" for made in functions.values() for kind, name, size in made.frame]
    source = "\n".join(
        [
            _HEAD,
            "struct Frame {",
            *members,
            "};",
            *(functions[name].source for name in ("energy", "begin", "advance", "end")),
            entry_points(graphs, len(uniforms.tensors), work=functions["energy"].work),
        ]
    )
    return Generated(
        source=source,
        double=graphs.dtype == torch.float64,
        state=graphs.state,
        params=graphs.params,
        uniforms=tuple(uniforms.tensors),
        num_statements=sum(made.num_statements for made in functions.values()),
    )


def _function(
    name: str, traced: Traced, graphs: KernelGraphs, params: Sequence[Buffer], uniforms: Uniforms
) -> _Function:
    entries = {e.name: e for e in graphs.state}
    inputs: list[Buffer] = []
    results: dict[tuple[str, str], Buffer] = {}
    by_name = {e.name: p for e, p in zip(graphs.params, params, strict=True)}
    for role, key in traced.inputs:
        if role == "state":
            inputs.append(Buffer(key, entries[key].shape, entries[key].kind, "state"))
        elif role == "params":
            inputs.append(by_name[key])
        elif role == "noise":
            inputs.append(Buffer(f"n_{name}_{key}", graphs.noise[name][key].shape, "float", "noise"))
        elif role == "z":
            inputs.append(Buffer("z", (graphs.num_dims,), "float", "state"))
        else:
            shape = (graphs.num_parts,) if role == "u" else (graphs.num_parts, graphs.num_dims)
            results[role, key] = Buffer(f"{role}{key}", shape, "float")
            inputs.append(results[role, key])
    at = Lowering(traced.module, inputs, uniforms, OPERATORS)
    values = at.run()
    outputs = []
    if name == "energy":
        state_base = {"z": "z", "u": "u", "g": "g"}
        entries = {
            "u": Entry("u", (graphs.num_parts,), "float"),
            "g": Entry("g", (graphs.num_parts, graphs.num_dims), "float"),
        }
    else:
        state_base = {e.name: f"f.s_{e.name}" for e in graphs.state}
    for (role, key), value in zip(traced.outputs, values, strict=True):
        if role == "z":
            made = [results["u", key], results["g", key]]
            at.call("energy(f, {0}, {1}, {2})", [at.whole(at.value(value))], made)
        else:
            entry = entries[role if name == "energy" else key]
            outputs.append(_output(at, at.cast(at.value(value), entry.kind), entry.name))
    operations = live(at.operations, outputs)
    orient(operations)
    return _compose(name, _guarded(name, operations, outputs, state_base), outputs, state_base)


def _guarded(
    name: str, operations: Sequence[Operation], outputs: Sequence[Buffer], state_base: dict[str, str]
) -> Sequence[Operation]:
    """The operations in order, with guards where that can be; not in the density, where loops must fuse."""
    operations = _ordered(operations)
    if name == "energy":
        return operations
    before = {op: op.after for op in operations}
    without: set[Operation] = set()
    while True:
        for op in operations:
            op.guard, op.after = (), before[op]
        # No lane would be left to call `advance` for.
        set_guards(operations, ["active"] if name == "advance" else [], without)
        ordered = _ordered(operations)
        made = plan(name[0], schedule(ordered, edges(ordered)), outputs, state_base, MAX_STRAIGHT)
        copied = {buffer for buffer, _ in made.copies}
        # What is not written in its place is copied at the end, so it must have been computed.
        wrong = {op for op in ordered if op.guard and op.written()[0] in copied}
        if not wrong:
            return ordered
        without |= wrong


def _output(at: Lowering, value: Value, name: str) -> Buffer:
    """A temporary that becomes the new value of an entry of the state."""
    buffer = value.buffer
    if buffer is None or buffer.place != "temporary" or buffer.state is not None or not is_whole(value):
        buffer = at.copy(value).buffer
    if buffer is None:
        raise at.unsupported("has no result")
    buffer.state = name
    return buffer


def _ordered(operations: Sequence[Operation]) -> list[Operation]:
    """Every operation after those that it needs, else in the order given; numbered anew."""
    needs = edges(operations)
    waiting = {op: len(needs[op]) for op in operations}
    then: dict[Operation, list[Operation]] = defaultdict(list)
    for op in operations:
        for earlier, _ in needs[op]:
            then[earlier].append(op)
    place = {op: i for i, op in enumerate(operations)}
    ready = [place[op] for op in operations if not waiting[op]]
    heapq.heapify(ready)
    result: list[Operation] = []
    while ready:
        op = operations[heapq.heappop(ready)]
        op.number = len(result)
        result.append(op)
        for later in then[op]:
            waiting[later] -= 1
            if not waiting[later]:
                heapq.heappush(ready, place[later])
    return result


def _compose(
    name: str, operations: Sequence[Operation], outputs: Sequence[Buffer], state_base: dict[str, str]
) -> _Function:
    segments = schedule(operations, edges(operations))
    made = plan(name[0], segments, outputs, state_base, MAX_STRAIGHT)
    parts = max(made.parts.values(), default=0) + 1
    arguments = "Frame &f, const V *__restrict z, V *__restrict u, V *__restrict g"
    if name != "energy":
        arguments = "Frame &f"
    passed = "f, z, u, g" if name == "energy" else "f"
    written = []
    for part in range(parts):
        emitter = Emitter(made, state_base)
        lines = emitter.function([s for s in segments if made.parts[s] == part])
        if part == parts - 1:
            for buffer, base in made.copies:
                storage = made.storage[buffer]
                if storage.scalar:
                    lines.append(f"{base}[0] = {storage.name};")
                elif buffer.numel == 1:
                    lines.append(f"{base}[0] = {storage.name}[0];")
                else:
                    lines.append(f"for (long i = 0; i < {buffer.numel}; i++) {base}[i] = {storage.name}[i];")
        shared = sorted({b.name: b for b in emitter.used if b.shared}.items())
        pointers = [
            f"const {'T' if b.kind == 'float' else 'int64_t'} *__restrict {key} = f.{key};"
            for key, b in shared
        ]
        suffix = "" if parts == 1 else f"_{part}"
        written.append("\n".join([f"PPGEN_PART void {name}{suffix}({arguments}) {{", *pointers, *lines, "}"]))
    if parts > 1:
        calls = " ".join(f"{name}_{part}({passed});" for part in range(parts))
        written.append(f"PPGEN_PART void {name}({arguments}) {{ {calls} }}")
    work = sum(_work(op) for op in operations)
    return _Function("\n".join(written), made.frame, len(operations), work)


def _work(op: Operation) -> int:
    if op.form == "call":
        return sum(buffer.numel for buffer in op.whole)
    return math.prod(op.domain)
