"""Passes over a traced program; each is linear in the number of its nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ppgen.inference.mcmc.tracer import Draft

aten = torch.ops.aten

# What repeats or renames a tensor: not worth a buffer of its own.
_REPEATS = {aten.expand.default}
_SAME = {
    aten.alias.default, aten.detach.default, aten.clone.default, aten.lift_fresh.default,
    aten.lift_fresh_copy.default, aten.contiguous.default,
}  # fmt: skip
_FILLED = {aten.full_like.default, aten.zeros_like.default, aten.ones_like.default, aten.new_zeros.default}
_RESHAPES = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default}
# Where their dimension stands among the arguments.
_SLICES = {aten.slice.Tensor: 1, aten.slice_scatter.default: 2}
_SUMS = {aten.add.Tensor, aten.sub.Tensor}
_PRODUCTS = {aten.mul.Tensor, aten.div.Tensor}
# Buffers up to this size are looked at for being all zero, or all one.
_SMALL = 4096


def tidied(graph: Draft) -> fx.GraphModule:
    """The program: what is constant computed, what is computed twice merged, what nobody uses dropped."""
    graph.graph.eliminate_dead_code()
    without_copies(graph)
    _independent_of_strides(graph)
    fold_constants(graph)
    simplify(graph)
    merge_repeated(graph)
    graph.graph.eliminate_dead_code()
    _drop_unused_buffers(graph)
    return fx.GraphModule(graph, graph.graph)


def _independent_of_strides(graph: Draft) -> None:
    """What was recorded for one layout must hold for another, and for batches."""
    for node in graph.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        elif node.target in _SLICES:
            # Ends written as -1 or as the largest integer overflow when they are batched.
            first = 1 + _SLICES[node.target]
            shape, args = _shape(node.args[0]), list(node.args)
            if shape is None or len(args) < first + 2:
                continue
            size = shape[args[first - 1]]
            for position in range(first, min(first + 2, len(args))):
                if isinstance(args[position], int):
                    end = args[position] + size if args[position] < 0 else args[position]
                    args[position] = min(max(end, 0), size)
            node.args = tuple(args)


def without_copies(graph: Draft) -> None:
    """Replace ``copy(target, source)``, which has no derivative, by the source in the target's shape."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.copy.default:
            continue
        source = node.args[1]
        if isinstance(source, fx.Node) and not _same_shape(source, node):
            meta = node.meta["tensor_meta"]
            with graph.graph.inserting_before(node):
                cast = graph.graph.call_function(aten.to.dtype, (source, meta.dtype))
                whole = graph.graph.call_function(aten.expand.default, (cast, list(meta.shape)))
            cast.meta = {"tensor_meta": source.meta["tensor_meta"]._replace(dtype=meta.dtype)}
            whole.meta = dict(node.meta)
            source = whole
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)


def fold_constants(graph: Draft) -> None:
    """Replace nodes that do not depend on the inputs by buffers with their values."""
    constant: dict[fx.Node, Any] = {}
    literal: set[fx.Node] = set()  # made of nothing but numbers, whatever the data
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            constant[node] = getattr(graph, node.target)
            if node.target.startswith("_literal"):
                literal.add(node)
        elif node.op != "call_function":
            continue
        elif node.target in _FILLED and _shape(node) is not None:
            constant[node] = _filled(node)
            literal.add(node)
        elif all(arg in constant for arg in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: constant[arg])
            with torch.no_grad():
                constant[node] = node.target(*args, **kwargs)
            if all(arg in literal for arg in node.all_input_nodes):
                literal.add(node)
    for count, node in enumerate(list(graph.graph.nodes)):
        value = constant.get(node)
        if node.op == "get_attr" or not isinstance(value, Tensor) or node.target in _REPEATS:
            continue
        if not any(user not in constant or user.target in _REPEATS for user in node.users):
            continue
        name = f"_{'literal' if node in literal else 'constant'}_folded_{count}"
        graph.register_buffer(name, value.detach(), persistent=False)
        with graph.graph.inserting_before(node):
            new = graph.graph.get_attr(name)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)


def _filled(node: fx.Node) -> Tensor:
    meta = node.meta["tensor_meta"]
    fill: Any = 1 if node.target is aten.ones_like.default else 0
    if node.target is aten.full_like.default:
        fill = node.args[1]
    return torch.full(meta.shape, fill, dtype=meta.dtype, device=meta.device)


def simplify(graph: Draft) -> None:
    """Drop operations that change nothing: renamings, ``+ 0``, ``* 1``, reshapings to the same shape."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not node.args:
            continue
        same = _unchanged(graph, node)
        if same is not None:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)


def _unchanged(graph: Draft, node: fx.Node) -> fx.Node | None:
    """The node that ``node`` equals."""
    target, first = node.target, node.args[0]
    if target is aten.cat.default and isinstance(first, (list, tuple)) and len(first) == 1:
        return first[0] if isinstance(first[0], fx.Node) else None
    if not isinstance(first, fx.Node):
        return None
    if target in _SAME or (target in _RESHAPES and _same_shape(first, node)):
        return first
    if target is aten.sum.dim_IntList and _shape(first) == () and _same_shape(first, node):
        return first
    if target is aten.pow.Tensor_Scalar and node.args[1] == 1:
        return first
    if target in _SUMS | _PRODUCTS and len(node.args) == 2 and not node.kwargs:
        neutral = 0 if target in _SUMS else 1
        second = node.args[1]
        if _is_all(graph, second, neutral) and _same_shape(first, node):
            return first
        commutes = target in (aten.add.Tensor, aten.mul.Tensor)
        if (
            commutes
            and isinstance(second, fx.Node)
            and _same_shape(second, node)
            and _is_all(graph, first, neutral)
        ):
            return second
    return None


def _is_all(graph: Draft, value: Any, number: int) -> bool:
    if isinstance(value, (int, float)):
        return value == number
    if not isinstance(value, fx.Node):
        return False
    while value.target in _REPEATS and isinstance(value.args[0], fx.Node):
        value = value.args[0]
    if value.op != "get_attr" or not str(value.target).startswith("_literal"):
        return False  # data may be other numbers next time
    held = getattr(graph, str(value.target))
    return held.numel() <= _SMALL and bool((held == number).all())


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta")
    shape = getattr(meta, "shape", None)
    return None if shape is None else tuple(shape)


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    """Whether two nodes are known to have one shape and type."""
    x: Any = a.meta.get("tensor_meta")
    y: Any = b.meta.get("tensor_meta")
    if not hasattr(x, "shape") or not hasattr(y, "shape"):
        return False
    return tuple(x.shape) == tuple(y.shape) and x.dtype == y.dtype


def merge_repeated(graph: Draft) -> None:
    """Merge nodes with the same operation and arguments, and buffers that are the same tensor."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            key: Any = ("get_attr", _identity(getattr(graph, node.target)))
        elif node.op == "call_function":
            key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        else:
            continue
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.graph.erase_node(node)


def _identity(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return id(value)
    if value.numel() == 1:  # a number: merged by value
        return value.dtype, value.device, value.shape, repr(value.detach().flatten()[0].item())
    return value.data_ptr(), value.dtype, value.device, value.shape, value.stride()


def _frozen(value: Any) -> Any:
    """Arguments of a node as a key; the type stands beside each number, for 1 == 1.0 == True."""
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple((name, _frozen(v)) for name, v in value.items())
    if isinstance(value, float):
        return "float", repr(value)
    return type(value).__name__, value


def _drop_unused_buffers(graph: Draft) -> None:
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in graph.named_buffers() if name not in used]:
        delattr(graph, name)
