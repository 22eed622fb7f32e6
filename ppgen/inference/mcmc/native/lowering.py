"""From the aten graph of one chain to operations on buffers.

What depends on no input is computed at once by torch and becomes a *uniform*, read through a pointer; what
depends on nothing but literals may become a literal. The rest is handed, node by node, to the functions of
:mod:`ppgen.inference.mcmc.native.operators`, through the methods of :class:`Lowering`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppgen.inference.mcmc.native.layout import Kind, UnsupportedOperation, kind_of
from ppgen.inference.mcmc.native.program import (
    Access,
    Buffer,
    Operation,
    Value,
    contiguous,
    reordered,
    reordered_access,
)
from ppgen.inference.mcmc.native.values import (
    Pieces,
    Region,
    Uniforms,
    conversion,
    is_whole,
    literal,
    long_dims,
)

aten = torch.ops.aten

#: Operations whose result is a view of their first argument, whatever its values.
VIEWS = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.expand.default,
        aten.permute.default,
        aten.t.default,
        aten.transpose.int,
        aten.select.int,
        aten.slice.Tensor,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.alias.default,
        aten.detach.default,
        aten.lift_fresh_copy.default,
        aten.lift_fresh.default,
        aten.clone.default,
        aten.diagonal.default,
        aten.unfold.default,
        aten.view_as.default,
        aten.narrow.default,
        aten.movedim.int,
        aten.contiguous.default,
        aten.numpy_T.default,
        aten.mT.default,
    }
)
# Those that keep the view as it is.
_SAME = frozenset(
    {
        aten.alias.default,
        aten.detach.default,
        aten.lift_fresh_copy.default,
        aten.lift_fresh.default,
        aten.clone.default,
        aten.contiguous.default,
    }
)

# Those whose result is one number everywhere, whatever their first argument is.
_FILLS: dict[Any, Callable[..., Any]] = {
    aten.full_like.default: lambda number, *_: number,
    aten.new_full.default: lambda _, number, *__: number,
    aten.fill.Scalar: lambda number, *_: number,
    **dict.fromkeys((aten.zeros_like.default, aten.new_zeros.default, aten.zero.default), lambda *_: 0),
    **dict.fromkeys(
        (aten.empty_like.default, aten.new_empty.default, aten.new_empty_strided.default), lambda *_: 0
    ),
    **dict.fromkeys((aten.ones_like.default, aten.new_ones.default), lambda *_: 1),
}

# Views that change their argument in place, which nothing looks at any more.
_IN_PLACE = {
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.squeeze_.default: aten.squeeze.default,
    aten.unsqueeze_.default: aten.unsqueeze.default,
    aten.transpose_.default: aten.transpose.int,
    aten.t_.default: aten.t.default,
}

#: Indices over the dimensions of a result; see :class:`Lowering`.
Operand = Access | str


class Lowering:
    """Lowers one graph.

    Args:
        module: the graph; its placeholders are the inputs, in order.
        inputs: the buffer of each.
        uniforms: where tensors that no chain changes are gathered.
        operators: what lowers each aten operation.
    """

    def __init__(
        self,
        module: GraphModule,
        inputs: Sequence[Buffer],
        uniforms: Uniforms,
        operators: Mapping[Any, Callable[..., Any]],
    ) -> None:
        self.module, self.uniforms, self.operators = module, uniforms, operators
        self.operations: list[Operation] = []
        self.node: Node | None = None
        self._env: dict[Node, Any] = {}
        self._torch: dict[Node, Any] = {}
        self._literal: set[Node] = set()
        self._num_buffers = 0
        self._whole: dict[int, tuple[Pieces, Value]] = {}
        self._maps: dict[Any, Buffer] = {}
        self._arguments: dict[Buffer, tuple[str, Value]] = {}
        self._inputs = list(inputs)

    # ---------------------------------------------------------------- the walk

    def run(self) -> list[Any]:
        """Lower all that the outputs need; the outputs."""
        graph = self.module.graph
        needed: set[Node] = set()
        output = next(node for node in graph.nodes if node.op == "output")
        pending = [output]
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                pending += node.all_input_nodes
        inputs = iter(self._inputs)
        seen: dict[Any, Node] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                buffer = next(inputs)
                # The chain's own dimension is of extent 1 in what was traced.
                view = torch.empty(node.meta["val"].shape, device="meta")
                self._env[node] = Value(buffer, view, buffer.kind)
            elif node in needed and node.op != "output":
                self._lower(node, seen)
        (results,) = output.args
        return [self.argument(x) for x in (results if isinstance(results, (list, tuple)) else [results])]

    def _lower(self, node: Node, seen: dict[Any, Node]) -> None:
        if node.op == "get_attr":
            value: Any = self.module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            self._torch[node] = value
            return
        if node.target in _FILLS:
            like = node.meta["val"]
            number = torch.full((), _FILLS[node.target](*node.args[1:]), dtype=like.dtype)
            self._torch[node] = number.expand(like.shape)
            self._literal.add(node)
            return
        inputs = node.all_input_nodes
        if all(x in self._torch for x in inputs):
            if all(x in self._literal for x in inputs):
                self._literal.add(node)
            self._torch[node] = self._evaluate(node)
            return
        key = (node.target, _key(node.args), _key(node.kwargs))
        earlier = seen.setdefault(key, node)
        if earlier is not node:
            self._env[node] = self._env[earlier]
            return
        self.node = node
        if node.target is operator.getitem:
            source, index = node.args
            self._env[node] = self.argument(source)[index]
            return
        target: Any = node.target
        target = _IN_PLACE.get(target, target)
        if target in VIEWS:
            self._env[node] = self.apply_view(self.value(node.args[0]), target, node.args[1:], node.kwargs)
            return
        lower = self.operators.get(node.target)
        if lower is None:
            raise self.unsupported("is not among the operations that can be compiled to lanes")
        args, kwargs = self.argument(node.args), self.argument(node.kwargs)
        self._env[node] = lower(self, *args, **kwargs)

    def _evaluate(self, node: Node) -> Any:
        def get(x: Any) -> Any:
            return torch.fx.node.map_arg(x, lambda n: self._torch[n])

        if not callable(node.target):
            raise self.unsupported("cannot be evaluated")
        with torch.no_grad():
            return node.target(*get(node.args), **get(node.kwargs))

    def argument(self, argument: Any) -> Any:
        """An argument with each node replaced by what it was lowered to."""
        if isinstance(argument, Node):
            if argument in self._torch:
                return self._uniform(argument)
            return self._env[argument]
        if isinstance(argument, (list, tuple)):
            return type(argument)(self.argument(x) for x in argument)
        if isinstance(argument, dict):
            return {k: self.argument(v) for k, v in argument.items()}
        return argument

    def unsupported(self, why: str) -> UnsupportedOperation:
        """An error about the operation at hand."""
        node = self.node
        where = (node.stack_trace or "").strip().splitlines()[-2:] if node is not None else []
        at = f", from {' '.join(line.strip() for line in where)}" if where else ""
        return UnsupportedOperation(f"{node.target if node else 'a program'} {why}{at}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result of the operation at hand."""
        return tuple(self._meta().shape)

    @property
    def kind(self) -> Kind:
        """Kind of the result of the operation at hand."""
        return kind_of(self._meta().dtype)

    def _meta(self) -> Tensor:
        if self.node is None:
            raise self.unsupported("has no result")
        return self.node.meta["val"]

    def uniform_tensor(self, position: int) -> Tensor | None:
        """The tensor of an argument that no chain changes; None for other arguments."""
        return self.known(self.node.args[position] if self.node is not None else None)

    def known(self, argument: Any) -> Tensor | None:
        """The tensor that an argument in the graph is, where no chain changes it."""
        found = self._torch.get(argument) if isinstance(argument, Node) else None
        return found if isinstance(found, Tensor) else None

    # ---------------------------------------------------------------- values

    def _uniform(self, node: Node) -> Any:
        result = self._torch[node]
        if not isinstance(result, Tensor):
            return result
        if node in self._literal and result.numel() and bool((result == result.reshape(-1)[0]).all()):
            number = result.reshape(-1)[0].item()
            return Value(None, torch.empty(result.shape, device="meta"), kind_of(result.dtype), number)
        if node.target in VIEWS and isinstance(node.args[0], Node):
            base = self._uniform(node.args[0])
            return self.apply_view(base, node.target, node.args[1:], node.kwargs)
        if result.ndim == 2 and (original := self.uniforms.transpose_of(result)) is not None:
            return self.apply_view(self.of_buffer(original), aten.t.default, (), {})
        return self.of_buffer(self.uniforms.add(result))

    def of_buffer(self, buffer: Buffer) -> Value:
        """A whole buffer as a value."""
        return Value(buffer, torch.empty(buffer.shape, device="meta"), buffer.kind)

    def inverse(self, value: Value) -> Value:
        """The same view of the reciprocals of a uniform."""
        if value.buffer is None or value.buffer.place != "uniform":
            raise self.unsupported("has an inverse that varies")
        tensor = self.uniforms.tensors[int(value.buffer.name[1:])]
        return replace(value, buffer=self.uniforms.add(tensor, "reciprocal"))

    def constant(
        self, number: float | int | bool, shape: Sequence[int] = (), kind: Kind | None = None
    ) -> Value:
        """One number everywhere."""
        if kind is None:
            kind = "bool" if isinstance(number, bool) else "int" if isinstance(number, int) else "float"
        return Value(None, torch.empty(tuple(shape), device="meta"), kind, number)

    def value(self, x: Any) -> Value:
        """An argument as a value: of a node, of a number, of pieces."""
        if isinstance(x, Node):
            x = self.argument(x)
        if isinstance(x, Value):
            return x
        if isinstance(x, Pieces):
            return self.assembled(x)
        if isinstance(x, (bool, int, float)):
            return self.constant(x)
        raise self.unsupported(f"has an argument of type {type(x).__name__}")

    def apply_view(self, value: Value, target: Any, args: Any, kwargs: Any) -> Value:
        """A view of a value; a copy is made where no strides express it."""
        if target in _SAME:
            return value
        if target is aten.reshape.default or target is aten._unsafe_view.default:
            target = aten.view.default
        try:
            view = target(value.view, *args, **kwargs)
        except (RuntimeError, ValueError):
            copied = self.copy(value)
            view = target(copied.view, *args, **kwargs)
            return replace(copied, view=view)
        return replace(value, view=view)

    def access(self, value: Value, shape: Sequence[int]) -> Operand:
        """Elements of ``value``, broadcast to ``shape``, with a stride for each of its dimensions."""
        if value.buffer is None:
            return literal(value.number, value.kind)
        view = value.view.expand(tuple(shape))
        return Access(value.buffer, int(view.storage_offset()), tuple(view.stride()))

    def converted(self, value: Value, shape: Sequence[int], kind: Kind) -> tuple[str, Operand]:
        """The C++ around ``{}`` that gives an element the kind, and the operand to put there."""
        if value.buffer is None:
            return "{}", literal(value.number, kind)
        return conversion(value.kind, kind), self.access(value, shape)

    # ---------------------------------------------------------------- operations

    def new_buffer(self, shape: Sequence[int], kind: Kind) -> Buffer:
        """A new temporary."""
        self._num_buffers += 1
        return Buffer(str(self._num_buffers - 1), tuple(shape), kind)

    def add(self, operation: Operation) -> None:
        """Note an operation as the writer of what it writes."""
        operation.number = len(self.operations)
        self.operations.append(operation)
        for buffer in operation.written():
            buffer.writers.append(operation)

    def pointwise(
        self,
        expression: str,
        operands: Sequence[tuple[Value, Kind]],
        *,
        kind: Kind | None = None,
        shape: Sequence[int] | None = None,
        heavy: bool = False,
    ) -> Value:
        """A result each of whose elements depends on one element of each operand, given as some kind."""
        shape = self.shape if shape is None else tuple(shape)
        parts = [self.converted(value, shape, wanted) for value, wanted in operands]
        filled = expression.format(*(f"({around.format(f'{{{i}}}')})" for i, (around, _) in enumerate(parts)))
        made = self.map(filled, [operand for _, operand in parts], shape, kind or self.kind, heavy=heavy)
        if len(operands) == 1 and made.buffer is not None and operands[0][0].kind == operands[0][1]:
            self._arguments[made.buffer] = (expression, operands[0][0])
        return made

    def argument_of(self, value: Value, expression: str) -> Value | None:
        """The x of which ``value`` is the function with this C++ expression, element by element, if it is."""
        buffer = value.buffer
        if buffer is None or len(buffer.writers) != 1 or buffer not in self._arguments:
            return None
        of, argument = self._arguments[buffer]
        if of != expression or argument.shape != buffer.shape:
            return None
        view = value.view
        if not is_whole(argument):
            return argument if is_whole(value) and value.shape == argument.shape else None
        return replace(argument, view=view)

    def map(
        self,
        expression: str,
        operands: Sequence[Operand],
        shape: Sequence[int],
        kind: Kind,
        *,
        heavy: bool = False,
    ) -> Value:
        """As :meth:`pointwise`, with operands that have a stride for each dimension of ``shape``."""
        small = tuple(
            1 if all(not _varies(o, d) for o in operands) else extent for d, extent in enumerate(shape)
        )
        key = (expression, tuple(operands), small, kind)
        buffer = self._maps.get(key)
        if buffer is None:
            buffer = self._maps[key] = self.new_buffer(small, kind)
            target = Access(buffer, 0, tuple(contiguous(small)))
            self.store(expression, operands, target, small, heavy=heavy)
        value = self.of_buffer(buffer)
        return replace(value, view=value.view.expand(tuple(shape)))

    def store(
        self,
        expression: str,
        operands: Sequence[Operand],
        target: Access,
        shape: Sequence[int],
        *,
        after: Sequence[Operation] = (),
        heavy: bool = False,
    ) -> Operation:
        """Write elements of ``target``, which has a stride for each dimension of ``shape``."""
        order = long_dims(shape)
        operation = Operation(
            "map",
            tuple(shape[d] for d in order),
            expression,
            tuple(reordered(o, order) for o in operands),
            reordered_access(target, order),
            after=tuple(after),
            heavy=heavy,
        )
        self.add(operation)
        return operation

    def reduce(
        self,
        expression: str,
        operands: Sequence[Operand],
        shape: Sequence[int],
        dims: Sequence[int],
        kind: Kind,
        *,
        combine: str,
        initial: str,
        order: Sequence[int] | None = None,
        product: bool = False,
    ) -> Value:
        """Combine over ``dims``, which stay with extent 1 in the result."""
        kept = tuple(1 if d in dims else n for d, n in enumerate(shape))
        buffer = self.new_buffer(kept, kind)
        strides = [0 if d in dims else s for d, s in enumerate(contiguous(kept))]
        order = long_dims(shape) if order is None else [d for d in order if shape[d] != 1]
        reduced = tuple(d in dims for d in order)
        target = reordered_access(Access(buffer, 0, tuple(strides)), order)
        self.add(
            Operation(
                "reduce" if any(reduced) else "map",
                tuple(shape[d] for d in order),
                expression,
                tuple(reordered(o, order) for o in operands),
                target,
                reduced=reduced,
                combine=combine,
                initial=initial,
                product=product,
            )
        )
        return self.of_buffer(buffer)

    def call(self, statement: str, whole: Sequence[Buffer], results: Sequence[Buffer]) -> list[Value]:
        """A C++ statement on whole buffers: ``{0}``, ``{1}``, ... are pointers to them, results last."""
        self.add(Operation("call", (), statement, whole=tuple(whole), results=tuple(results)))
        return [self.of_buffer(buffer) for buffer in results]

    def copy(self, value: Value) -> Value:
        """A value in a buffer of its own, row-major and whole, of a temporary."""
        buffer = self.new_buffer(value.shape, value.kind)
        strides = tuple(contiguous(value.shape))
        self.store("{0}", [self.access(value, value.shape)], Access(buffer, 0, strides), value.shape)
        return self.of_buffer(buffer)

    def whole(self, value: Value) -> Buffer:
        """A buffer of lanes that holds just this value, row-major."""
        buffer = value.buffer
        if buffer is None or buffer.shared or buffer.kind != "float" or not is_whole(value):
            floats = value if value.kind == "float" else self.cast(value, "float")
            buffer = self.copy(floats).buffer
        if buffer is None:
            raise self.unsupported("has no buffer")
        return buffer

    def uniform_matrix(self, value: Value) -> Buffer | None:
        """A buffer of just this value, row-major, where it is a view of a uniform of floats."""
        buffer = value.buffer
        if buffer is None or buffer.place != "uniform" or buffer.kind != "float":
            return None
        if is_whole(value):
            return buffer
        tensor = self.uniforms.tensors[int(buffer.name[1:])]
        view = value.view
        return self.uniforms.add(tensor.as_strided(view.shape, view.stride(), view.storage_offset()))

    def cast(self, value: Value, kind: Kind) -> Value:
        """A value as another kind."""
        if value.kind == kind:
            return value
        if value.buffer is None:
            number = {"float": float, "int": int, "bool": bool}[kind](value.number)
            return replace(value, kind=kind, number=number)
        return self.pointwise("{0}", [(value, kind)], kind=kind, shape=value.shape)

    def assembled(self, pieces: Pieces) -> Value:
        """Pieces as a value."""
        if id(pieces) not in self._whole:
            self._whole[id(pieces)] = (pieces, self._assemble(pieces))
        return self._whole[id(pieces)][1]

    def _assemble(self, pieces: Pieces, base: Value | None = None) -> Value:
        shape = pieces.shape
        buffer = self.new_buffer(shape, pieces.kind)
        strides = contiguous(shape)
        after: list[Operation] = []
        if base is not None or sum(v.view.numel() for _, v in pieces.pieces) < math.prod(shape):
            source = base if base is not None else self.constant(0, shape, pieces.kind)
            _, operand = self.converted(source, shape, pieces.kind)
            after.append(self.store("{0}", [operand], Access(buffer, 0, tuple(strides)), shape))
        for region, value in pieces.pieces:
            around, operand = self.converted(value, value.shape, pieces.kind)
            offset = sum(start * s for start, s in zip(region.starts, strides, strict=True))
            steps = tuple(strides[dim] * step for dim, step in region.runs)
            self.store(
                around.format("{0}"), [operand], Access(buffer, offset, steps), value.shape, after=after
            )
        return self.of_buffer(buffer)

    def overwritten(self, base: Value, region: Region, piece: Value) -> Value:
        """``base`` with a piece put in."""
        piece = self.cast(piece, base.kind)
        return self._assemble(Pieces(base.shape, base.kind, ((region, piece),)), base)


def _varies(operand: Operand, dim: int) -> bool:
    if isinstance(operand, str):
        return False
    return operand.strides[dim] != 0 or any(_varies(lookup, dim) for lookup, _ in operand.lookups)


def _key(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)):
        return tuple(_key(x) for x in argument)
    if isinstance(argument, dict):
        return tuple((k, _key(v)) for k, v in sorted(argument.items()))
    # 1, 1.0 and True are equal but not the same argument.
    return (type(argument), argument)
