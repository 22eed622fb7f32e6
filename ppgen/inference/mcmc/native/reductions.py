"""Sums, products, extremes and cumulative sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ppgen.inference.mcmc.native.layout import Kind
from ppgen.inference.mcmc.native.lowering import Lowering
from ppgen.inference.mcmc.native.program import (
    Access,
    Operation,
    Value,
    contiguous,
    reordered,
    reordered_access,
)
from ppgen.inference.mcmc.native.registry import lowers
from ppgen.inference.mcmc.native.values import conversion, literal, long_dims

aten = torch.ops.aten

_SUM = ("{0} + {1}", "0")


def _dims(value: Value, dims: int | Sequence[int] | None) -> list[int]:
    rank = len(value.shape)
    if dims is None:
        return list(range(rank))
    listed = [dims] if isinstance(dims, int) else list(dims)
    return [d % rank for d in listed] if rank and listed else list(range(rank))


def _initial(kind: Kind, combine: str) -> str:
    if combine == "sum":
        return literal(0, kind)
    if combine == "prod":
        return literal(1, kind)
    if kind == "bool":
        return literal(combine == "min", kind)
    largest = float("inf") if kind == "float" else 2**31 - 1
    return literal(largest if combine == "min" else -largest, kind)


_COMBINE: dict[str, dict[Kind, str]] = {
    "sum": {"float": "{0} + {1}", "int": "{0} + {1}", "bool": "{0} | {1}"},
    "prod": {"float": "{0} * {1}", "int": "{0} * {1}", "bool": "{0} & {1}"},
    "max": {"float": "v_max({0}, {1})", "int": "select((I)({0} > {1}), {0}, {1})", "bool": "{0} | {1}"},
    "min": {"float": "v_min({0}, {1})", "int": "select((I)({0} < {1}), {0}, {1})", "bool": "{0} & {1}"},
}


def reduced(
    at: Lowering, value: Value, dims: Sequence[int], combine: str, kind: Kind, keepdim: bool
) -> Value:
    """Combine the elements of ``value``, as ``kind``, over ``dims``."""
    shape = value.shape
    if value.buffer is None or any(shape[d] == 0 for d in dims):
        count = 1
        for d in dims:
            count *= shape[d]
        kept = [1 if d in dims else n for d, n in enumerate(shape)]
        if value.buffer is None:
            number = value.number
            total = number * count if combine == "sum" else number**count if combine == "prod" else number
            return _squeezed(at, at.constant(total, kept, kind), dims, keepdim)
    factor = 1
    if value.view.numel():
        # Along a dimension that was only expanded, all elements are the same one.
        for d in dims:
            if value.view.stride(d) == 0 and shape[d] > 1 and combine != "prod":
                factor *= shape[d] if combine == "sum" else 1
                value = replace(value, view=value.view.narrow(d, 0, 1))
    if all(value.shape[d] == 1 for d in dims) and value.view.numel():
        result = at.cast(value, kind)
    else:
        around, operand = at.converted(value, value.shape, kind)
        result = at.reduce(
            around.format("{0}"),
            [operand],
            value.shape,
            dims,
            kind,
            combine=_COMBINE[combine][kind],
            initial=_initial(kind, combine),
        )
    if factor != 1:
        result = at.pointwise(
            f"{{}} * {literal(factor, kind)}", [(result, kind)], kind=kind, shape=result.shape
        )
    return _squeezed(at, result, dims, keepdim)


def _squeezed(at: Lowering, value: Value, dims: Sequence[int], keepdim: bool) -> Value:
    if keepdim:
        return value
    return at.apply_view(value, aten.squeeze.dims, (list(dims),), {})


@lowers(aten.sum.default, aten.sum.dim_IntList)
def _sum(at: Lowering, x: Any, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    value = at.value(x)
    return reduced(at, value, _dims(value, dims), "sum", at.kind, keepdim)


@lowers(aten.mean.default, aten.mean.dim)
def _mean(at: Lowering, x: Any, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    value = at.value(x)
    listed = _dims(value, dims)
    count = 1
    for d in listed:
        count *= value.shape[d]
    total = reduced(at, value, listed, "sum", "float", keepdim)
    return at.pointwise(f"{{}} * {literal(1 / max(count, 1), 'float')}", [(total, "float")])


@lowers(aten.prod.default)
def _prod(at: Lowering, x: Any, dtype: Any = None) -> Any:
    value = at.value(x)
    return reduced(at, value, _dims(value, None), "prod", at.kind, False)


@lowers(aten.prod.dim_int)
def _prod_dim(at: Lowering, x: Any, dim: int, keepdim: bool = False, dtype: Any = None) -> Any:
    value = at.value(x)
    return reduced(at, value, _dims(value, dim), "prod", at.kind, keepdim)


def _extreme(combine: str, kind: Kind | None = None) -> Callable[..., Any]:
    def lower(at: Lowering, x: Any, dims: Any = None, keepdim: bool = False) -> Any:
        value = at.value(x)
        return reduced(at, value, _dims(value, dims), combine, kind or value.kind, keepdim)

    return lower


lowers(aten.amax.default, aten.max.default)(_extreme("max"))
lowers(aten.amin.default, aten.min.default)(_extreme("min"))
lowers(aten.any.default, aten.any.dim, aten.any.dims)(_extreme("max", "bool"))
lowers(aten.all.default, aten.all.dim, aten.all.dims)(_extreme("min", "bool"))


def _position(at: Lowering, value: Value, extreme: Value, dim: int, keepdim: bool) -> Value:
    """The first index along ``dim`` where ``value`` is its extreme (or NaN)."""
    shape = [1] * len(value.shape)
    shape[dim] = value.shape[dim]
    index = at.of_buffer(at.uniforms.add(torch.arange(value.shape[dim]).reshape(shape)))
    kind = value.kind if value.kind != "bool" else "int"
    hit = "(I)({0} == {1})" + (" | v_isnan({0})" if kind == "float" else "")
    found = at.pointwise(
        f"select({hit}, {{2}}, splat_int({value.shape[dim]}))",
        [(value, kind), (extreme, kind), (index, "int")],
        kind="int",
        shape=value.shape,
    )
    return reduced(at, found, [dim], "min", "int", keepdim)


@lowers(aten.max.dim, aten.min.dim)
def _max_dim(at: Lowering, x: Any, dim: int, keepdim: bool = False) -> Any:
    value = at.value(x)
    combine = "max" if at.node is not None and at.node.target is aten.max.dim else "min"
    dim %= max(len(value.shape), 1)
    if not value.shape:
        return (value, at.constant(0, (), "int"))
    extreme = reduced(at, value, [dim], combine, value.kind, True)
    position = _position(at, value, extreme, dim, keepdim)
    return (_squeezed(at, extreme, [dim], keepdim), position)


@lowers(aten.argmax.default, aten.argmin.default)
def _argmax(at: Lowering, x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    value = at.value(x)
    combine = "max" if at.node is not None and at.node.target is aten.argmax.default else "min"
    if dim is None:
        value = at.apply_view(value, aten.view.default, ([-1],), {})
        dim = 0
    dim %= len(value.shape)
    extreme = reduced(at, value, [dim], combine, value.kind, True)
    return _position(at, value, extreme, dim, keepdim)


@lowers(aten.var.correction, aten.std.correction, aten.var_mean.correction)
def _var(
    at: Lowering, x: Any, dims: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> Any:
    value = at.value(x)
    listed = _dims(value, dims)
    count = 1
    for d in listed:
        count *= value.shape[d]
    mean = reduced(at, value, listed, "sum", "float", True)
    mean = at.pointwise(
        f"{{}} * {literal(1 / count, 'float')}", [(mean, "float")], kind="float", shape=mean.shape
    )
    squares = at.pointwise(
        "({0} - {1}) * ({0} - {1})", [(value, "float"), (mean, "float")], kind="float", shape=value.shape
    )
    total = reduced(at, squares, listed, "sum", "float", keepdim)
    rest = count - (1 if correction is None else correction)
    scale = literal(1 / rest if rest > 0 else float("nan"), "float")
    target = at.node.target if at.node is not None else None
    root = target is aten.std.correction
    result = at.pointwise(
        f"v_sqrt({{}} * {scale})" if root else f"{{}} * {scale}",
        [(total, "float")],
        kind="float",
        shape=total.shape,
    )
    if target is aten.var_mean.correction:
        return (result, _squeezed(at, mean, listed, keepdim))
    return result


@lowers(aten._log_softmax.default, aten._softmax.default)
def _log_softmax(at: Lowering, x: Any, dim: int, half_to_float: bool = False) -> Any:
    value = at.value(x)
    shape, dims = value.shape, _dims(value, dim)
    top = reduced(at, value, dims, "max", "float", True)
    exps = at.pointwise(
        "v_exp({} - {})", [(value, "float"), (top, "float")], kind="float", shape=shape, heavy=True
    )
    total = reduced(at, exps, dims, "sum", "float", True)
    if at.node is not None and at.node.target is aten._softmax.default:
        inverse = at.pointwise("1 / {}", [(total, "float")], kind="float", shape=total.shape)
        return at.pointwise("{} * {}", [(exps, "float"), (inverse, "float")])
    shift = at.pointwise(
        "{} + v_log({})", [(top, "float"), (total, "float")], kind="float", shape=total.shape, heavy=True
    )
    return at.pointwise("{} - {}", [(value, "float"), (shift, "float")])


@lowers(aten._log_softmax_backward_data.default, aten._softmax_backward_data.default)
def _softmax_backward(at: Lowering, gradient: Any, output: Any, dim: int, dtype: Any) -> Any:
    g, y = at.value(gradient), at.value(output)
    dims = _dims(y, dim)
    if at.node is not None and at.node.target is aten._softmax_backward_data.default:
        both = at.pointwise("{} * {}", [(g, "float"), (y, "float")], kind="float", shape=y.shape)
        total = reduced(at, both, dims, "sum", "float", True)
        return at.pointwise("{0} - {1} * {2}", [(both, "float"), (y, "float"), (total, "float")])
    total = reduced(at, g, dims, "sum", "float", True)
    return at.pointwise("{0} - v_exp({1}) * {2}", [(g, "float"), (y, "float"), (total, "float")], heavy=True)


@lowers(aten.logsumexp.default)
def _logsumexp(at: Lowering, x: Any, dims: Any, keepdim: bool = False) -> Any:
    value = at.value(x)
    listed = _dims(value, dims)
    top = reduced(at, value, listed, "max", "float", True)
    # Where the largest is infinite, subtracting it would give NaN.
    top = at.pointwise("select(v_isinf({0}), splat(0), {0})", [(top, "float")], kind="float", shape=top.shape)
    exps = at.pointwise(
        "v_exp({} - {})", [(value, "float"), (top, "float")], kind="float", shape=value.shape, heavy=True
    )
    total = reduced(at, exps, listed, "sum", "float", True)
    result = at.pointwise(
        "{} + v_log({})", [(top, "float"), (total, "float")], kind="float", shape=total.shape, heavy=True
    )
    return _squeezed(at, result, listed, keepdim)


def _scan(at: Lowering, x: Any, dim: int, combine: str, initial: str, kind: Kind) -> Value:
    value = at.value(x)
    shape = value.shape
    if not shape:
        return at.cast(value, kind)
    dim %= len(shape)
    if value.buffer is None:
        value = at.copy(value)
    if shape[dim] == 1:
        return at.cast(value, kind)
    around, operand = conversion(value.kind, kind), at.access(value, shape)
    buffer = at.new_buffer(shape, kind)
    strides = contiguous(shape)
    order = long_dims(shape)
    target = reordered_access(Access(buffer, 0, tuple(strides)), order)
    at.add(
        Operation(
            "scan",
            tuple(shape[d] for d in order),
            around.format("{0}"),
            (reordered(operand, order),),
            target,
            combine=combine,
            initial=initial,
            scan_step=strides[dim],
            scan_dim=order.index(dim),
        )
    )
    return at.of_buffer(buffer)


@lowers(aten.cumsum.default)
def _cumsum(at: Lowering, x: Any, dim: int, dtype: Any = None) -> Any:
    return _scan(at, x, dim, _COMBINE["sum"]["float"], literal(0, at.kind), at.kind)


@lowers(aten.cumprod.default)
def _cumprod(at: Lowering, x: Any, dim: int, dtype: Any = None) -> Any:
    return _scan(at, x, dim, _COMBINE["prod"]["float"], literal(1, at.kind), at.kind)


@lowers(aten.logcumsumexp.default)
def _logcumsumexp(at: Lowering, x: Any, dim: int) -> Any:
    combine = (
        "select((I)({0} == {1}) & v_isinf({0}), {0}, v_max({0}, {1}) + log1p_unit(v_exp(-v_abs({0} - {1}))))"
    )
    return _scan(at, x, dim, combine, literal(float("-inf"), "float"), "float")


@lowers(
    aten.linalg_vector_norm.default,
    aten.norm.Scalar,
    aten.norm.ScalarOpt_dim,
)
def _norm(
    at: Lowering, x: Any, power: float | None = 2, dims: Any = None, keepdim: bool = False, **_: Any
) -> Any:
    value = at.value(x)
    listed = _dims(value, dims)
    order = 2.0 if power is None else float(power)

    def each(expression: str, of: Value, heavy: bool = False) -> Value:
        return at.pointwise(expression, [(of, "float")], kind="float", shape=of.shape, heavy=heavy)

    if order == 2:
        return each("v_sqrt({})", reduced(at, each("{0} * {0}", value), listed, "sum", "float", keepdim))
    sizes = each("v_abs({})", value)
    if order == 1:
        return reduced(at, sizes, listed, "sum", "float", keepdim)
    if order in (float("inf"), -float("inf")):
        return reduced(at, sizes, listed, "max" if order > 0 else "min", "float", keepdim)
    powers = each(f"v_pow({{}}, {literal(order, 'float')})", sizes, heavy=True)
    total = reduced(at, powers, listed, "sum", "float", keepdim)
    return each(f"v_pow({{}}, {literal(1 / order, 'float')})", total, heavy=True)
