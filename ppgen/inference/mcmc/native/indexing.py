"""Operations that move elements: padding, joining, gathering, scattering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ppgen.inference.mcmc.native.layout import Kind
from ppgen.inference.mcmc.native.lowering import Lowering, Operand
from ppgen.inference.mcmc.native.program import (
    Access,
    Operation,
    Value,
    contiguous,
    reordered,
    reordered_access,
)
from ppgen.inference.mcmc.native.registry import lowers
from ppgen.inference.mcmc.native.values import Pieces, Region, is_whole, long_dims

aten = torch.ops.aten


def _bounds(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    first = 0 if start is None else start
    last = size if end is None else end
    first = max(first + size if first < 0 else first, 0)
    last = min(last + size if last < 0 else last, size)
    return first, last


def _slice_region(shape: Sequence[int], dim: int, start: int, step: int) -> Region:
    starts = [0] * len(shape)
    starts[dim] = start
    return Region(tuple(starts), tuple((d, step if d == dim else 1) for d in range(len(shape))))


def _select_region(shape: Sequence[int], dim: int, index: int) -> Region:
    starts = [0] * len(shape)
    starts[dim] = index
    return Region(tuple(starts), tuple((d, 1) for d in range(len(shape)) if d != dim))


def _padded(at: Lowering, piece: Any, shape: Sequence[int], region: Region) -> Pieces:
    kind = at.kind
    if isinstance(piece, Pieces):
        inner = tuple((r.inside(region), v) for r, v in piece.pieces)
        return Pieces(tuple(shape), kind, inner)
    return Pieces(tuple(shape), kind, ((region, at.value(piece)),))


@lowers(aten.slice_backward.default)
def _slice_backward(
    at: Lowering, gradient: Any, shape: Sequence[int], dim: int, start: int, end: int, step: int
) -> Any:
    dim %= len(shape)
    first, _ = _bounds(start, end, shape[dim])
    return _padded(at, gradient, shape, _slice_region(shape, dim, first, step))


@lowers(aten.select_backward.default)
def _select_backward(at: Lowering, gradient: Any, shape: Sequence[int], dim: int, index: int) -> Any:
    dim %= len(shape)
    return _padded(at, gradient, shape, _select_region(shape, dim, index % shape[dim]))


@lowers(aten.slice_scatter.default)
def _slice_scatter(
    at: Lowering, base: Any, piece: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    value = at.value(base)
    dim %= len(value.shape)
    first, _ = _bounds(start, end, value.shape[dim])
    return _written(at, value, _slice_region(value.shape, dim, first, step), piece)


@lowers(aten.select_scatter.default)
def _select_scatter(at: Lowering, base: Any, piece: Any, dim: int, index: int) -> Any:
    value = at.value(base)
    dim %= len(value.shape)
    return _written(at, value, _select_region(value.shape, dim, index % value.shape[dim]), piece)


def _written(at: Lowering, base: Value, region: Region, piece: Any) -> Any:
    if base.buffer is None and not isinstance(base.number, bool) and base.number == 0:
        return _padded(at, piece, base.shape, region)
    return at.overwritten(base, region, at.value(piece))


def _placed(
    at: Lowering, shape: Sequence[int], view: Tensor, piece: Value, base: Value | None = None
) -> Value:
    """A tensor with ``piece`` at what ``view``, of a row-major tensor, shows; else ``base`` or 0."""
    kind = at.kind
    buffer = at.new_buffer(shape, kind)
    strides = tuple(contiguous(shape))
    operand: Operand = "splat(0)" if kind == "float" else "splat_int(0)"
    if base is not None:
        operand = at.access(at.cast(base, kind), shape)
    fill = at.store("{0}", [operand], Access(buffer, 0, strides), shape)
    around, source = at.converted(piece, view.shape, kind)
    target = Access(buffer, int(view.storage_offset()), tuple(view.stride()))
    at.store(around.format("{0}"), [source], target, tuple(view.shape), after=[fill])
    return at.of_buffer(buffer)


@lowers(aten.diagonal_backward.default)
def _diagonal_backward(
    at: Lowering, gradient: Any, shape: Sequence[int], offset: int, dim1: int, dim2: int
) -> Any:
    view = aten.diagonal.default(torch.empty(tuple(shape), device="meta"), offset, dim1, dim2)
    return _placed(at, shape, view, at.value(gradient))


@lowers(aten.diagonal_scatter.default)
def _diagonal_scatter(
    at: Lowering, base: Any, piece: Any, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Any:
    view = aten.diagonal.default(torch.empty(at.shape, device="meta"), offset, dim1, dim2)
    return _placed(at, at.shape, view, at.value(piece), at.value(base))


@lowers(aten.as_strided_scatter.default)
def _as_strided_scatter(
    at: Lowering,
    base: Any,
    piece: Any,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int | None = None,
) -> Any:
    source = at.node.args[0] if at.node is not None else None
    layout = source.meta["val"] if isinstance(source, Node) else None
    if layout is None or not layout.is_contiguous() or layout.storage_offset():
        raise at.unsupported("of a tensor that is not contiguous cannot be compiled")
    view = aten.as_strided.default(torch.empty(at.shape, device="meta"), shape, strides, offset)
    return _placed(at, at.shape, view, at.value(piece), at.value(base))


@lowers(aten.diag_embed.default)
def _diag_embed(at: Lowering, x: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    view = aten.diagonal.default(torch.empty(at.shape, device="meta"), offset, dim1, dim2)
    return _placed(at, at.shape, view, at.value(x))


@lowers(aten.tril.default, aten.triu.default)
def _triangle(at: Lowering, x: Any, diagonal: int = 0) -> Any:
    value = at.value(x)
    name = aten.tril if at.node is not None and at.node.target is aten.tril.default else aten.triu
    mask = name(torch.ones(value.shape[-2:], dtype=torch.bool), diagonal)
    kept = at.of_buffer(at.uniforms.add(mask))
    zero = at.constant(0)
    return at.pointwise("select({}, {}, {})", [(kept, "bool"), (value, at.kind), (zero, at.kind)])


@lowers(aten.cat.default)
def _cat(at: Lowering, tensors: Sequence[Any], dim: int = 0) -> Any:
    values = [x if isinstance(x, Pieces) else at.value(x) for x in tensors]
    values = [v for v in values if v.shape != (0,)]
    shape = at.shape
    dim %= len(shape)
    pieces: list[tuple[Region, Value]] = []
    start = 0
    for value in values:
        region = _slice_region(shape, dim, start, 1)
        start += value.shape[dim]
        pieces += _padded(at, value, shape, region).pieces
    return Pieces(shape, at.kind, tuple(pieces))


@lowers(aten.stack.default)
def _stack(at: Lowering, tensors: Sequence[Any], dim: int = 0) -> Any:
    shape = at.shape
    dim %= len(shape)
    pieces: list[tuple[Region, Value]] = []
    for index, value in enumerate(tensors):
        pieces += _padded(at, value, shape, _select_region(shape, dim, index)).pieces
    return Pieces(shape, at.kind, tuple(pieces))


@lowers(aten.constant_pad_nd.default)
def _pad(at: Lowering, x: Any, pad: Sequence[int], number: float = 0) -> Any:
    value = at.value(x)
    rank = len(value.shape)
    starts = [0] * rank
    for place in range(len(pad) // 2):
        dim = rank - 1 - place
        before, after = pad[2 * place], pad[2 * place + 1]
        if before < 0:
            value = at.apply_view(value, aten.slice.Tensor, (dim, -before, None), {})
        if after < 0:
            value = at.apply_view(value, aten.slice.Tensor, (dim, 0, value.shape[dim] + after), {})
        starts[dim] = max(before, 0)
    region = Region(tuple(starts), tuple((d, 1) for d in range(rank)))
    if number == 0:
        return Pieces(at.shape, at.kind, ((region, value),))
    return at.overwritten(at.constant(number, at.shape, at.kind), region, value)


@lowers(aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.chunk.default)
def _split(at: Lowering, x: Any, *args: Any) -> Any:
    value = at.value(x)
    views = at.node.target(value.view, *args) if at.node is not None and callable(at.node.target) else ()
    return tuple(replace(value, view=view) for view in views)


@lowers(aten.as_strided.default)
def _as_strided(
    at: Lowering, x: Any, shape: Sequence[int], strides: Sequence[int], offset: int | None = None
) -> Any:
    source = at.node.args[0] if at.node is not None else None
    layout = source.meta["val"] if isinstance(source, Node) else None
    if layout is None or not layout.is_contiguous() or layout.storage_offset():
        raise at.unsupported("of a tensor that is not contiguous cannot be compiled")
    value = at.value(x)
    if value.buffer is None:
        return at.constant(value.number, shape, value.kind)
    if not is_whole(value):
        value = at.copy(value)
    return replace(value, view=aten.as_strided.default(value.view, shape, strides, offset))


@lowers(aten.flip.default)
def _flip(at: Lowering, x: Any, dims: Sequence[int]) -> Any:
    value = at.value(x)
    shape = value.shape
    operand = at.access(value, shape)
    if isinstance(operand, str):
        return value
    strides, offset = list(operand.strides), operand.offset
    for d in dims:
        offset += strides[d] * (shape[d] - 1)
        strides[d] = -strides[d]
    return at.map("{0}", [replace(operand, offset=offset, strides=tuple(strides))], shape, value.kind)


@lowers(aten.roll.default)
def _roll(at: Lowering, x: Any, shifts: Sequence[int], dims: Sequence[int] = ()) -> Any:
    value = at.value(x)
    if not dims:
        value = at.apply_view(value, aten.view.default, ([-1],), {})
        dims = [0]
    for shift, dim in zip(shifts, dims, strict=True):
        size = value.shape[dim]
        index = (torch.arange(size) - shift) % size
        value = _taken(at, value, dim, index)
    return at.apply_view(value, aten.view.default, (list(at.shape),), {})


@lowers(aten.repeat.default)
def _repeat(at: Lowering, x: Any, repeats: Sequence[int]) -> Any:
    value = at.value(x)
    shape = (1,) * (len(repeats) - len(value.shape)) + value.shape
    wide = [part for r, n in zip(repeats, shape, strict=True) for part in (r, n)]
    narrow = [part for n in shape for part in (1, n)]
    value = at.apply_view(value, aten.view.default, (narrow,), {})
    value = at.apply_view(value, aten.expand.default, (wide,), {})
    return at.apply_view(value, aten.view.default, (list(at.shape),), {})


# ---------------------------------------------------------------- gathering


def _lookup(at: Lowering, index: Tensor, size: int, shape: Sequence[int]) -> Access:
    """Elements of an index that no chain changes, broadcast to ``shape``."""
    buffer = at.uniforms.add(index, f"wrap:{size}")
    found = at.access(at.of_buffer(buffer), shape)
    if isinstance(found, str):
        raise at.unsupported("has an index that is one number")
    return found


def _taken(at: Lowering, value: Value, dim: int, index: Tensor) -> Value:
    """``value`` at ``index``, of one dimension, along ``dim``."""
    shape = list(value.shape)
    shape[dim] = index.numel()
    return _gathered(
        at, value, shape, {dim: index.reshape([-1 if d == dim else 1 for d in range(len(shape))])}
    )


def _gathered(at: Lowering, value: Value, shape: Sequence[int], index: dict[int, Tensor]) -> Value:
    """``value`` with the index in some dimensions looked up in tensors that broadcast to ``shape``."""
    if value.buffer is None:
        return at.constant(value.number, shape, value.kind)
    view = value.view
    strides = [0 if d in index else view.stride(d) for d in range(view.ndim)]
    lookups = tuple((_lookup(at, i, view.shape[d], shape), view.stride(d)) for d, i in index.items())
    access = Access(value.buffer, int(view.storage_offset()), tuple(strides), lookups)
    return at.map("{0}", [access], shape, value.kind)


@lowers(aten.index_select.default)
def _index_select(at: Lowering, x: Any, dim: int, index: Any) -> Any:
    value, known = at.value(x), at.uniform_tensor(2)
    if not value.shape:
        return value
    dim %= len(value.shape)
    if known is None:
        return _lane_gathered(at, value, dim, at.value(index), at.shape, dim)
    return _taken(at, value, dim, known)


@lowers(aten.gather.default)
def _gather(at: Lowering, x: Any, dim: int, index: Any, sparse_grad: bool = False) -> Any:
    value, known = at.value(x), at.uniform_tensor(2)
    if not value.shape:
        return value
    dim %= len(value.shape)
    shape = at.shape
    # The index may be smaller than the tensor in other dimensions.
    for d, extent in enumerate(shape):
        if d != dim:
            value = replace(value, view=value.view.narrow(d, 0, extent))
    if known is not None:
        return _gathered(at, value, shape, {dim: known})
    return _lane_gathered(at, value, dim, at.value(index), shape, None)


def _lane_gathered(
    at: Lowering, value: Value, dim: int, index: Value, shape: Sequence[int], along: int | None
) -> Value:
    """As a gather, with an index that differs between lanes."""
    if value.buffer is None:
        return at.constant(value.number, shape, value.kind)
    if value.buffer.shared:
        value = at.copy(value)
    buffer, view = value.buffer, value.view
    if buffer is None:
        raise at.unsupported("has no buffer")
    size = view.shape[dim]
    wrapped = at.pointwise(
        f"select((I)({{0}} < 0), {{0}} + splat_int({size}), {{0}})",
        [(index, "int")],
        kind="int",
        shape=index.shape,
    )
    if along is not None:
        wrapped = at.apply_view(
            wrapped, aten.view.default, ([-1 if d == along else 1 for d in range(len(shape))],), {}
        )
    strides = tuple(0 if d == dim else view.stride(d) for d in range(view.ndim))
    access = Access(buffer, int(view.storage_offset()), strides, lane_index=1, lane_step=view.stride(dim))
    return at.map("{0}", [access, at.access(wrapped, shape)], shape, value.kind)


@lowers(aten.embedding.default)
def _embedding(at: Lowering, weight: Any, index: Any, *_: Any) -> Any:
    value, known = at.value(weight), at.uniform_tensor(1)
    if known is None:
        raise at.unsupported("has an index that differs between chains")
    flat = _taken(at, value, 0, known.reshape(-1))
    return at.apply_view(flat, aten.view.default, (list(at.shape),), {})


@lowers(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(at: Lowering, x: Any, indices: Sequence[Any]) -> Any:
    value = at.value(x)
    tensors = _index_tensors(at, indices)
    if tensors is None:
        return _index_lanes(at, value, indices)
    place, block, shape, dims = _index_plan(value.shape, tensors)
    view = value.view
    strides = [0] * len(shape)
    for d, target in dims.items():
        strides[target] = view.stride(d)
    lookups = []
    for d, index in enumerate(tensors):
        if index is not None:
            spread = index.reshape(*index.shape, *[1] * (len(shape) - place - index.ndim))
            lookups.append((_lookup(at, spread, view.shape[d], shape), view.stride(d)))
    if value.buffer is None:
        return at.constant(value.number, shape, value.kind)
    access = Access(value.buffer, int(view.storage_offset()), tuple(strides), tuple(lookups))
    return at.map("{0}", [access], shape, value.kind)


def _index_lanes(at: Lowering, value: Value, indices: Sequence[Any]) -> Any:
    given = [d for d, i in enumerate(indices) if i is not None]
    if len(given) != 1 or at.value(indices[given[0]]).kind == "bool":
        raise at.unsupported("has several indices, or a mask, that differ between chains")
    (dim,) = given
    index = at.value(indices[dim])
    flat = at.apply_view(index, aten.view.default, ([-1],), {})
    shape = list(value.shape)
    shape[dim] = flat.shape[0]
    found = _lane_gathered(at, value, dim, flat, shape, dim)
    return at.apply_view(found, aten.view.default, (list(at.shape),), {})


def _index_tensors(at: Lowering, indices: Sequence[Any]) -> list[Tensor | None] | None:
    """The indices as tensors, masks as positions; None where one differs between chains."""
    node = at.node
    position = 1 if node is not None and len(node.args) > 1 else 0
    listed = node.args[position] if node is not None else ()
    result: list[Tensor | None] = []
    for index in listed if isinstance(listed, (list, tuple)) else ():
        if index is None:
            result.append(None)
            continue
        known = at.known(index)
        if known is None:
            return None
        result += list(known.nonzero(as_tuple=True)) if known.dtype == torch.bool else [known]
    shapes = [i.shape for i in result if i is not None]
    common = torch.broadcast_shapes(*shapes) if shapes else torch.Size()
    return [None if i is None else i.expand(common) for i in result]


def _index_plan(
    shape: Sequence[int], tensors: Sequence[Tensor | None]
) -> tuple[int, tuple[int, ...], list[int], dict[int, int]]:
    """How a result is laid out.

    Returns:
        Where the dimensions of the indices come, their shape, the result's shape, and where each
        dimension that is not indexed goes.
    """
    given = [d for d, i in enumerate(tensors) if i is not None]
    first = next(i for i in tensors if i is not None)
    together = given == list(range(given[0], given[-1] + 1))
    place = given[0] if together else 0
    rest = [d for d in range(len(shape)) if d not in given]
    before = [d for d in rest if d < place]
    after = [d for d in rest if d >= place]
    result = [*(shape[d] for d in before), *first.shape, *(shape[d] for d in after)]
    dims = {d: i for i, d in enumerate(before)}
    dims |= {d: len(before) + first.ndim + i for i, d in enumerate(after)}
    return place, tuple(first.shape), result, dims


# ---------------------------------------------------------------- scattering


def _scattered(
    at: Lowering,
    base: Value,
    values: Value,
    shape: Sequence[int],
    index: dict[int, Tensor],
    dims: dict[int, int],
    combine: str,
) -> Value:
    """``base`` with ``values``, of ``shape``, combined into elements whose index is looked up."""
    kind = at.kind
    buffer = at.new_buffer(base.shape, kind)
    whole = contiguous(base.shape)
    around, operand = at.converted(base, base.shape, kind)
    fill = at.store(around.format("{0}"), [operand], Access(buffer, 0, tuple(whole)), base.shape)
    strides = [0] * len(shape)
    for d, place in dims.items():
        strides[place] = whole[d]
    lookups = tuple((_lookup(at, i, base.shape[d], shape), whole[d]) for d, i in index.items())
    around, source = at.converted(values, shape, kind)
    order = long_dims(shape)
    target = reordered_access(Access(buffer, 0, tuple(strides), lookups), order)
    at.add(
        Operation(
            "scatter",
            tuple(shape[d] for d in order),
            around.format("{0}"),
            (reordered(source, order),),
            target,
            combine=combine,
            after=(fill,),
        )
    )
    return at.of_buffer(buffer)


@lowers(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(at: Lowering, x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
    base = at.value(x)
    tensors = _index_tensors(at, indices)
    if tensors is None:
        mask = at.value(indices[0]) if len(indices) == 1 and indices[0] is not None else None
        if mask is not None and mask.kind == "bool" and not accumulate and not at.value(values).shape:
            wide = at.apply_view(
                mask, aten.view.default, ([*mask.shape, *[1] * (len(base.shape) - len(mask.shape))],), {}
            )
            return at.pointwise(
                "select({}, {}, {})", [(wide, "bool"), (at.value(values), at.kind), (base, at.kind)]
            )
        raise at.unsupported("has an index that differs between chains")
    place, _, shape, dims = _index_plan(base.shape, tensors)
    index = {
        d: i.reshape(*i.shape, *[1] * (len(shape) - place - i.ndim))
        for d, i in enumerate(tensors)
        if i is not None
    }
    combine = "{0} + {1}" if accumulate else "{1}"
    return _scattered(at, base, at.value(values), shape, index, dims, combine)


@lowers(aten.index_add.default)
def _index_add(at: Lowering, x: Any, dim: int, index: Any, source: Any, alpha: float = 1) -> Any:
    base, values, known = at.value(x), at.value(source), at.uniform_tensor(2)
    if known is None or alpha != 1:
        raise at.unsupported("has an index that differs between chains")
    dim %= len(base.shape)
    shape = values.shape
    spread = known.reshape([-1 if d == dim else 1 for d in range(len(shape))])
    dims = {d: d for d in range(len(shape)) if d != dim}
    return _scattered(at, base, values, shape, {dim: spread}, dims, "{0} + {1}")


@lowers(aten.scatter_add.default, aten.scatter.src, aten.scatter.value, aten.scatter_reduce.two)
def _scatter(at: Lowering, x: Any, dim: int, index: Any, source: Any, reduce: str = "", **_: Any) -> Any:
    base, values = at.value(x), at.value(source)
    target = at.node.target if at.node is not None else None
    if target is aten.scatter_reduce.two and reduce != "sum":
        raise at.unsupported(f"with {reduce!r} cannot be compiled")
    combine = "{1}" if target in (aten.scatter.src, aten.scatter.value) else "{0} + {1}"
    if not base.shape:
        raise at.unsupported("of a scalar cannot be compiled")
    dim %= len(base.shape)
    known = at.uniform_tensor(2)
    if known is None:
        return _lane_scattered(at, base, dim, at.value(index), values, combine)
    shape = tuple(known.shape)
    if values.shape:
        for d, extent in enumerate(shape):
            values = replace(values, view=values.view.narrow(d, 0, extent))
    dims = {d: d for d in range(len(shape)) if d != dim}
    return _scattered(at, base, values, shape, {dim: known}, dims, combine)


def _lane_scattered(at: Lowering, base: Value, dim: int, index: Value, values: Value, combine: str) -> Value:
    """A scatter of one element along ``dim``, to a place that differs between lanes."""
    same = all(n == m for d, (n, m) in enumerate(zip(index.shape, base.shape, strict=True)) if d != dim)
    if index.shape[dim] != 1 or not same:
        raise at.unsupported("has an index that differs between chains")
    size = base.shape[dim]
    shape = [1] * len(base.shape)
    shape[dim] = size
    place = at.of_buffer(at.uniforms.add(torch.arange(size).reshape(shape)))
    if values.shape:
        values = replace(values, view=values.view.narrow(dim, 0, 1))
    kind: Kind = at.kind
    hit = combine.format("{2}", "{3}")
    return at.pointwise(
        f"select((I)({{0}} == {{1}}), {hit}, {{2}})",
        [(index, "int"), (place, "int"), (base, kind), (values, kind)],
    )


@lowers(aten.value_selecting_reduction_backward.default)
def _selecting_backward(
    at: Lowering, gradient: Any, dim: int, index: Any, shape: Sequence[int], keepdim: bool
) -> Any:
    g, position = at.value(gradient), at.value(index)
    if not shape:
        return g
    dim %= len(shape)
    if not keepdim:
        g = at.apply_view(g, aten.unsqueeze.default, (dim,), {})
        position = at.apply_view(position, aten.unsqueeze.default, (dim,), {})
    base = at.constant(0, shape, "float")
    return _lane_scattered(at, base, dim, position, g, "{1}")


@lowers(aten.embedding_dense_backward.default)
def _embedding_backward(
    at: Lowering, gradient: Any, index: Any, num_weights: int, padding: int, scale: bool
) -> Any:
    g, known = at.value(gradient), at.uniform_tensor(1)
    if known is None or scale:
        raise at.unsupported("has an index that differs between chains")
    width = g.shape[-1]
    g = at.apply_view(g, aten.view.default, ([-1, width],), {})
    base = at.constant(0, (num_weights, width), "float")
    return _scattered(at, base, g, g.shape, {0: known.reshape(-1, 1)}, {1: 1}, "{0} + {1}")
