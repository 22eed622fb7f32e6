"""Products of matrices, and what the runtime does with whole matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ppgen.inference.mcmc.native.lowering import Lowering
from ppgen.inference.mcmc.native.program import Value
from ppgen.inference.mcmc.native.registry import lowers
from ppgen.inference.mcmc.native.values import literal

aten = torch.ops.aten


def _product(at: Lowering, a: Value, b: Value) -> Value:
    """``a`` (..., n, k) times ``b`` (..., k, m), with the same leading dimensions."""
    if a.buffer is None:
        a = at.copy(a)
    if b.buffer is None:
        b = at.copy(b)
    batch = a.shape[:-2]
    n, k, m = a.shape[-2], a.shape[-1], b.shape[-1]
    shape = (*batch, n, m, k)
    left = at.apply_view(a, aten.unsqueeze.default, (-2,), {})
    right = at.apply_view(b, aten.transpose.int, (-1, -2), {})
    right = at.apply_view(right, aten.unsqueeze.default, (-3,), {})
    rank = len(shape)
    # The longest dimension outside, so that products with a matrix and its transpose share a loop; then what
    # stays, then what is summed over.
    first = max(range(rank), key=lambda d: (shape[d], -d))
    order = [first, *(d for d in range(rank - 1) if d != first), *([rank - 1] if first != rank - 1 else [])]
    result = at.reduce(
        "{0} * {1}",
        [at.access(left, shape), at.access(right, shape)],
        shape,
        [rank - 1],
        "float",
        combine="{0} + {1}",
        initial=literal(0, "float"),
        order=order,
        product=True,
    )
    return at.apply_view(result, aten.squeeze.dim, (-1,), {})


def _times(at: Lowering, value: Value, factor: float) -> Value:
    if factor == 1:
        return value
    return at.pointwise(
        f"{{}} * {literal(factor, 'float')}", [(value, "float")], kind="float", shape=value.shape
    )


@lowers(aten.mm.default, aten.bmm.default)
def _mm(at: Lowering, a: Any, b: Any) -> Any:
    return _product(at, at.value(a), at.value(b))


@lowers(aten.mv.default)
def _mv(at: Lowering, a: Any, b: Any) -> Any:
    column = at.apply_view(at.value(b), aten.unsqueeze.default, (-1,), {})
    return at.apply_view(_product(at, at.value(a), column), aten.squeeze.dim, (-1,), {})


@lowers(aten.dot.default, aten.vdot.default)
def _dot(at: Lowering, a: Any, b: Any) -> Any:
    row = at.apply_view(at.value(a), aten.unsqueeze.default, (0,), {})
    column = at.apply_view(at.value(b), aten.unsqueeze.default, (-1,), {})
    return at.apply_view(_product(at, row, column), aten.squeeze.default, (), {})


@lowers(aten.addmm.default, aten.baddbmm.default)
def _addmm(at: Lowering, x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    product = _times(at, _product(at, at.value(a), at.value(b)), alpha)
    if beta == 0:
        return product
    return at.pointwise("{} + {}", [(_times(at, at.value(x), beta), "float"), (product, "float")])


@lowers(aten.addmv.default)
def _addmv(at: Lowering, x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    product = _times(at, _mv(at, a, b), alpha)
    return at.pointwise("{} + {}", [(_times(at, at.value(x), beta), "float"), (product, "float")])


def _batch(shape: Sequence[int]) -> int:
    return math.prod(shape[:-2])


@lowers(aten.linalg_cholesky_ex.default, aten.linalg_cholesky.default, aten.cholesky.default)
def _cholesky(at: Lowering, a: Any, upper: bool = False, **options: Any) -> Any:
    value = at.value(a)
    if upper or options.get("upper"):
        raise at.unsupported("of the upper kind cannot be compiled")
    n = value.shape[-1]
    result = at.new_buffer(value.shape, "float")
    loop = (
        f"for (long k = 0; k < {_batch(value.shape)}; k++) "
        f"cholesky({{0}} + k * {n * n}, {{1}} + k * {n * n}, {n})"
    )
    (factor,) = at.call(loop, [at.whole(value)], [result])
    if at.node is None or at.node.target is not aten.linalg_cholesky_ex.default:
        return factor
    # A factor that failed is NaN.
    corner = at.apply_view(factor, aten.select.int, (-1, 0), {})
    corner = at.apply_view(corner, aten.select.int, (-1, 0), {})
    info = at.pointwise("v_isnan({}) & 1", [(corner, "float")], kind="int", shape=corner.shape)
    return (factor, info)


def _solved(at: Lowering, a: Value, b: Value, upper: bool, transpose: bool, unit: bool) -> Value:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    n, m = b.shape[-2:]
    one_for_all = math.prod(a.shape[:-2]) == 1
    matrix = at.uniform_matrix(a)
    if matrix is None or not one_for_all:
        full = a if one_for_all else at.apply_view(a, aten.expand.default, ([*batch, n, n],), {})
        matrix = at.whole(full)
    right = at.whole(at.apply_view(b, aten.expand.default, ([*batch, n, m],), {}))
    result = at.new_buffer((*batch, n, m), "float")
    flags = ", ".join(str(flag).lower() for flag in (upper, transpose, unit))
    step = 0 if one_for_all else n * n
    loop = (
        f"for (long k = 0; k < {math.prod(batch)}; k++) triangular_solve({{0}} + k * {step}, "
        f"{{1}} + k * {n * m}, {{2}} + k * {n * m}, {n}, {m}, {flags})"
    )
    return at.call(loop, [matrix, right], [result])[0]


@lowers(aten.triangular_solve.default)
def _triangular_solve(
    at: Lowering, b: Any, a: Any, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> Any:
    return (_solved(at, at.value(a), at.value(b), upper, transpose, unitriangular), at.value(a))


@lowers(aten.linalg_solve_triangular.default)
def _solve_triangular(
    at: Lowering, a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    matrix, right = at.value(a), at.value(b)
    if left:
        return _solved(at, matrix, right, upper, False, unitriangular)
    # X A = B is A' X' = B'.
    right = at.apply_view(right, aten.transpose.int, (-1, -2), {})
    solved = _solved(at, matrix, right, upper, True, unitriangular)
    return at.apply_view(solved, aten.transpose.int, (-1, -2), {})


@lowers(aten.cholesky_solve.default)
def _cholesky_solve(at: Lowering, b: Any, a: Any, upper: bool = False) -> Any:
    factor, right = at.value(a), at.value(b)
    first = _solved(at, factor, right, upper, upper, False)
    return _solved(at, factor, first, upper, not upper, False)


@lowers(aten.cholesky_inverse.default)
def _cholesky_inverse(at: Lowering, a: Any, upper: bool = False) -> Any:
    factor = at.value(a)
    unit = at.of_buffer(at.uniforms.add(torch.eye(factor.shape[-1], dtype=at.uniforms.dtype)))
    unit = at.apply_view(unit, aten.expand.default, (list(factor.shape),), {})
    first = _solved(at, factor, unit, upper, upper, False)
    return _solved(at, factor, first, upper, not upper, False)
