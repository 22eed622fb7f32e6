"""Operations of one element at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ppgen.inference.mcmc.native.layout import Kind, kind_of
from ppgen.inference.mcmc.native.lowering import Lowering
from ppgen.inference.mcmc.native.program import Value
from ppgen.inference.mcmc.native.registry import OPERATORS, lowers
from ppgen.inference.mcmc.native.values import Pieces, literal

aten = torch.ops.aten

_LIGHT = {
    aten.sqrt.default: "v_sqrt({})",
    aten.rsqrt.default: "v_rsqrt({})",
    aten.reciprocal.default: "1 / {}",
    aten.floor.default: "v_floor({})",
    aten.ceil.default: "v_ceil({})",
    aten.round.default: "v_round({})",
    aten.trunc.default: "v_trunc({})",
    aten.frac.default: "{0} - v_trunc({0})",
    aten.deg2rad.default: "{} * (T)0.017453292519943295",
    aten.rad2deg.default: "{} * (T)57.29577951308232",
}
_HEAVY = {
    aten.exp2.default: "v_exp({} * (T)0.6931471805599453)",
    aten.expm1.default: "v_expm1({})",
    aten.log2.default: "v_log({}) * (T)1.4426950408889634",
    aten.log10.default: "v_log({}) * (T)0.4342944819032518",
    aten.tanh.default: "v_tanh({})",
    aten.sin.default: "v_sin({})",
    aten.cos.default: "v_cos({})",
    aten.tan.default: "v_tan({})",
    aten.asin.default: "v_asin({})",
    aten.acos.default: "v_acos({})",
    aten.atan.default: "v_atan({})",
    aten.sinh.default: "v_sinh({})",
    aten.cosh.default: "v_cosh({})",
    aten.asinh.default: "copy_sign(v_log1p(v_abs({0}) + {0} * {0} / (1 + v_sqrt(1 + {0} * {0}))), {0})",
    aten.acosh.default: "v_log({0} + v_sqrt({0} - 1) * v_sqrt({0} + 1))",
    aten.atanh.default: "(T)0.5 * (v_log1p({0}) - v_log1p(-{0}))",
    aten.erf.default: "v_erf({})",
    aten.erfc.default: "v_erfc({})",
    aten.erfinv.default: "v_erfinv({})",
    aten.lgamma.default: "v_lgamma({})",
    aten.special_gammaln.default: "v_lgamma({})",
    aten.digamma.default: "v_digamma({})",
    aten.special_digamma.default: "v_digamma({})",
    aten.silu.default: "{0} * v_sigmoid({0})",
    aten.special_ndtri.default: "v_erfinv(2 * {0} - 1) * (T)1.4142135623730951",
    aten.special_log_ndtr.default: "v_log((T)0.5 * v_erfc({0} * (T)-0.7071067811865476))",
    aten.special_erfcx.default: "scaled_erfc({})",
    aten.special_ndtr.default: "(T)0.5 * v_erfc({0} * (T)-0.7071067811865476)",
}
_ARITHMETIC = {
    aten.maximum.default: "v_max({}, {})",
    aten.minimum.default: "v_min({}, {})",
    aten.mul.Tensor: "{} * {}",
    aten.mul.Scalar: "{} * {}",
}
_FLOAT_PAIRS = {
    aten.atan2.default: "v_atan2({}, {})",
    aten.fmod.Tensor: "v_fmod({}, {})",
    aten.fmod.Scalar: "v_fmod({}, {})",
    aten.copysign.Tensor: "copy_sign({}, {})",
    aten.sigmoid_backward.default: "{0} * ({1} * (1 - {1}))",
    aten.tanh_backward.default: "{0} * (1 - {1} * {1})",
    aten.hypot.default: "v_sqrt({0} * {0} + {1} * {1})",
    aten.xlogy.Tensor: "select((I)({0} == 0) & ~v_isnan({1}), splat(0), {0} * v_log({1}))",
    aten.special_xlog1py.default: "select((I)({0} == 0) & ~v_isnan({1}), splat(0), {0} * v_log1p({1}))",
    aten.logaddexp.default: (
        "select((I)({0} == {1}) & v_isinf({0}), {0}, v_max({0}, {1}) + log1p_unit(v_exp(-v_abs({0} - {1}))))"
    ),
    aten.fmax.default: "select(v_isnan({0}), {1}, select(v_isnan({1}), {0}, v_max({0}, {1})))",
    aten.fmin.default: "select(v_isnan({0}), {1}, select(v_isnan({1}), {0}, v_min({0}, {1})))",
}
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_BITS = {
    "bitwise_and": "&",
    "bitwise_or": "|",
    "bitwise_xor": "^",
    "__and__": "&",
    "__or__": "|",
    "__xor__": "^",
}
_LOGIC = {"logical_and": "&", "logical_or": "|", "logical_xor": "^"}


def _unary(expression: str, heavy: bool) -> Callable[..., Value]:
    def lower(at: Lowering, x: Any, *_: Any, **__: Any) -> Value:
        return at.pointwise(expression, [(at.value(x), "float")], heavy=heavy)

    return lower


def _binary(expression: str, given: Kind | None = None, heavy: bool = False) -> Callable[..., Value]:
    def lower(at: Lowering, x: Any, y: Any, **_: Any) -> Value:
        a, b = at.value(x), at.value(y)
        kind = given or at.kind
        if kind != "float" and expression.startswith("v_"):  # integers have no NaN
            sign = ">" if "max" in expression else "<"
            return at.pointwise(f"select((I)({{0}} {sign} {{1}}), {{0}}, {{1}})", [(a, kind), (b, kind)])
        return at.pointwise(expression, [(a, kind), (b, kind)], heavy=heavy)

    return lower


def common_kind(*values: Value) -> Kind:
    """The kind that values of several kinds are compared as."""
    kinds = {value.kind for value in values}
    return "float" if "float" in kinds else "int" if "int" in kinds else "bool"


def _comparison(sign: str) -> Callable[..., Value]:
    def lower(at: Lowering, x: Any, y: Any) -> Value:
        a, b = at.value(x), at.value(y)
        kind = common_kind(a, b)
        if kind == "bool":
            kind = "int"
        return at.pointwise(f"(I)({{}} {sign} {{}})", [(a, kind), (b, kind)], kind="bool")

    return lower


def _fill_table() -> None:
    for target, expression in _LIGHT.items():
        OPERATORS[target] = _unary(expression, heavy=False)
    for target, expression in _HEAVY.items():
        OPERATORS[target] = _unary(expression, heavy=True)
    for target, expression in _ARITHMETIC.items():
        OPERATORS[target] = _binary(expression)
    for target, expression in _FLOAT_PAIRS.items():
        OPERATORS[target] = _binary(expression, "float", heavy="v_" in expression)
    for name, sign in _COMPARISONS.items():
        for overload in ("Tensor", "Scalar"):
            OPERATORS[getattr(getattr(aten, name), overload)] = _comparison(sign)
    for name, sign in _BITS.items():
        for overload in ("Tensor", "Scalar"):
            OPERATORS[getattr(getattr(aten, name), overload)] = _binary(f"{{}} {sign} {{}}")
    for name, sign in _LOGIC.items():
        OPERATORS[getattr(aten, name).default] = _binary(f"{{}} {sign} {{}}", "bool")


_fill_table()


def _each(at: Lowering, expression: str, *values: Value) -> Value:
    """A function of floats element by element, with the shape of the first."""
    operands: list[tuple[Value, Kind]] = [(value, "float") for value in values]
    heavy = "v_exp(" in expression or "v_log" in expression
    return at.pointwise(expression, operands, kind="float", shape=values[0].shape, heavy=heavy)


# These write out the steps that others share with them: the same steps become one.
_EXP, _NEGATIVE, _SIZE = "v_exp({})", "-{}", "v_abs({0})"


def _exp_of_minus_size(at: Lowering, x: Value) -> Value:
    return _each(at, _EXP, _each(at, _NEGATIVE, _each(at, _SIZE, x)))


@lowers(aten.exp.default)
def _exp(at: Lowering, x: Any) -> Any:
    return _each(at, _EXP, at.value(x))


@lowers(aten.log.default)
def _log(at: Lowering, x: Any) -> Any:
    value = at.value(x)
    exponent = at.argument_of(value, _EXP)
    if exponent is not None:
        return _each(at, "log_of_exp({}, {})", exponent, value)
    return _each(at, "v_log({})", value)


@lowers(aten.log1p.default)
def _log1p(at: Lowering, x: Any) -> Any:
    value = at.value(x)
    exponent = at.argument_of(value, _EXP)
    size = at.argument_of(exponent, _NEGATIVE) if exponent is not None else None
    if size is not None and at.argument_of(size, _SIZE) is not None:
        return _each(at, "log1p_unit({})", value)
    return _each(at, "v_log1p({})", value)


@lowers(aten.sigmoid.default)
def _sigmoid(at: Lowering, x: Any) -> Any:
    value = at.cast(at.value(x), "float")
    return _each(at, "sigmoid_from({}, {})", value, _exp_of_minus_size(at, value))


@lowers(aten.log_sigmoid_forward.default)
def _log_sigmoid(at: Lowering, x: Any) -> Any:
    value = at.value(x)
    return _each(at, "v_min({0}, (T)0) - log1p_unit({1})", value, _exp_of_minus_size(at, value))


def _is_number(value: Value, number: float) -> bool:
    return value.buffer is None and not isinstance(value.number, bool) and value.number == number


def _unchanged(at: Lowering, value: Value) -> Value | None:
    """``value`` where it has the shape and kind of the result already."""
    return value if value.shape == at.shape and value.kind == at.kind else None


@lowers(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
def _add(at: Lowering, x: Any, y: Any, alpha: float = 1) -> Any:
    subtract = at.node is not None and at.node.target in (aten.sub.Tensor, aten.sub.Scalar)
    if isinstance(x, Pieces) and isinstance(y, Pieces) and alpha == 1 and not subtract and x.disjoint(y):
        return Pieces(x.shape, x.kind, x.pieces + y.pieces)
    a, b = at.value(x), at.value(y)
    if _is_number(b, 0) and (kept := _unchanged(at, a)) is not None:
        return kept
    if _is_number(a, 0) and not subtract and alpha == 1 and (kept := _unchanged(at, b)) is not None:
        return kept
    sign = "-" if subtract else "+"
    kind = at.kind
    if alpha != 1:
        return at.pointwise(f"{{}} {sign} {{}} * {literal(alpha, kind)}", [(a, kind), (b, kind)])
    if kind == "bool":
        return at.pointwise("{} | {}", [(a, kind), (b, kind)])
    return at.pointwise(f"{{}} {sign} {{}}", [(a, kind), (b, kind)])


@lowers(aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(at: Lowering, x: Any, y: Any, alpha: float = 1) -> Any:
    kind = at.kind
    factor = "" if alpha == 1 else f" * {literal(alpha, kind)}"
    return at.pointwise(f"{{}} - {{}}{factor}", [(at.value(y), kind), (at.value(x), kind)])


@lowers(aten.mul.Tensor, aten.mul.Scalar)
def _mul(at: Lowering, x: Any, y: Any) -> Any:
    a, b = at.value(x), at.value(y)
    for one, other in ((a, b), (b, a)):
        if _is_number(one, 1) and (kept := _unchanged(at, other)) is not None:
            return kept
        if _is_number(one, -1):
            return at.pointwise("-{}", [(other, at.kind)])
    sign = "&" if at.kind == "bool" else "*"
    return at.pointwise(f"{{}} {sign} {{}}", [(a, at.kind), (b, at.kind)])


@lowers(aten.div.Tensor, aten.div.Scalar, aten.true_divide.Tensor)
def _div(at: Lowering, x: Any, y: Any) -> Any:
    a, b = at.value(x), at.value(y)
    if b.buffer is None:
        if _is_number(b, 1) and (kept := _unchanged(at, a)) is not None:
            return kept
        divisor = float(b.number)
        inverse = math.copysign(math.inf, divisor) if divisor == 0 else 1 / divisor
        if math.isfinite(inverse):
            return at.pointwise(f"{{}} * {literal(inverse, 'float')}", [(a, "float")])
    elif b.buffer.place == "uniform" and b.kind == "float":
        # Dividing is an order slower than multiplying, and the inverse never changes.
        inverse_of = at.inverse(b)
        return at.pointwise("{} * {}", [(a, "float"), (inverse_of, "float")])
    return at.pointwise("{} / {}", [(a, "float"), (b, "float")])


@lowers(aten.div.Tensor_mode, aten.div.Scalar_mode, aten.floor_divide.default)
def _div_mode(at: Lowering, x: Any, y: Any, rounding_mode: str | None = "floor") -> Any:
    if rounding_mode is None:
        return _div(at, x, y)
    a, b = at.value(x), at.value(y)
    if at.kind == "float":
        return at.pointwise(f"v_{rounding_mode}({{}} / {{}})", [(a, "float"), (b, "float")])
    quotient = "quotient({0}, {1})"
    if rounding_mode == "floor":
        quotient += " + ((I)(rest({0}, {1}) != 0) & (I)(({0} ^ {1}) < 0))"
    return at.pointwise(quotient, [(a, "int"), (b, "int")])


@lowers(aten.remainder.Tensor, aten.remainder.Scalar)
def _remainder(at: Lowering, x: Any, y: Any) -> Any:
    a, b = at.value(x), at.value(y)
    if at.kind == "float":
        return at.pointwise("{0} - {1} * v_floor({0} / {1})", [(a, "float"), (b, "float")])
    rest = "rest({0}, {1}) + ((I)(rest({0}, {1}) != 0) & (I)(({0} ^ {1}) < 0) & {1})"
    return at.pointwise(rest, [(a, "int"), (b, "int")])


@lowers(aten.bitwise_left_shift.Tensor, aten.bitwise_left_shift.Tensor_Scalar, aten.__lshift__.Scalar)
def _left_shift(at: Lowering, x: Any, y: Any) -> Any:
    return at.pointwise("{} << {}", [(at.value(x), "int"), (at.value(y), "int")])


@lowers(aten.bitwise_right_shift.Tensor, aten.bitwise_right_shift.Tensor_Scalar, aten.__rshift__.Scalar)
def _right_shift(at: Lowering, x: Any, y: Any) -> Any:
    return at.pointwise("{} >> {}", [(at.value(x), "int"), (at.value(y), "int")])


@lowers(aten.neg.default)
def _neg(at: Lowering, x: Any) -> Any:
    return at.pointwise("-{}", [(at.value(x), at.kind)])


@lowers(aten.abs.default)
def _abs(at: Lowering, x: Any) -> Any:
    expression = "v_abs({0})" if at.kind == "float" else "select((I)({0} < 0), -{0}, {0})"
    return at.pointwise(expression, [(at.value(x), at.kind)])


@lowers(aten.sign.default, aten.sgn.default)
def _sign(at: Lowering, x: Any) -> Any:
    expression = "v_sign({0})" if at.kind == "float" else "(I)({0} < 0) - (I)({0} > 0)"
    return at.pointwise(expression, [(at.value(x), at.kind)])


@lowers(aten.relu.default)
def _relu(at: Lowering, x: Any) -> Any:
    return at.pointwise("v_max({}, splat(0))", [(at.value(x), "float")])


@lowers(aten.bitwise_not.default, aten.logical_not.default)
def _not(at: Lowering, x: Any) -> Any:
    return at.pointwise("~{}", [(at.value(x), at.kind)])


@lowers(aten.isnan.default, aten.isinf.default, aten.isfinite.default)
def _is(at: Lowering, x: Any) -> Any:
    name = str(at.node.target).split(".")[1] if at.node is not None else ""
    return at.pointwise(f"v_{name}({{}})", [(at.value(x), "float")], kind="bool")


@lowers(aten.square.default)
def _square(at: Lowering, x: Any) -> Any:
    return at.pointwise("{0} * {0}", [(at.value(x), at.kind)])


@lowers(aten.pow.Tensor_Scalar)
def _pow_scalar(at: Lowering, x: Any, exponent: float) -> Any:
    value = at.value(x)
    if exponent == 0:
        return at.constant(1, at.shape, at.kind)
    if exponent == 1 and (kept := _unchanged(at, value)) is not None:
        return kept
    if float(exponent).is_integer() and 1 <= abs(exponent) <= 8:
        product = _power("{0}", int(abs(exponent)))
        if exponent < 0:
            product = f"1 / ({product})"
        return at.pointwise(product, [(value, at.kind)])
    roots = {0.5: "v_sqrt({})", -0.5: "v_rsqrt({})", 1.5: "{0} * v_sqrt({0})"}
    if exponent in roots:
        return at.pointwise(roots[exponent], [(value, "float")])
    return at.pointwise("v_pow({}, {})", [(value, "float"), (at.value(exponent), "float")], heavy=True)


def _power(base: str, exponent: int) -> str:
    """By squaring."""
    if exponent == 1:
        return base
    half = _power(base, exponent // 2)
    whole = f"({half}) * ({half})" if exponent > 3 else f"{half} * {half}"
    return f"{whole} * {base}" if exponent % 2 else whole


@lowers(aten.pow.Tensor_Tensor, aten.pow.Scalar)
def _pow(at: Lowering, x: Any, y: Any) -> Any:
    a, b = at.value(x), at.value(y)
    if at.kind != "float":
        raise at.unsupported("of integers with an exponent that varies cannot be compiled")
    return at.pointwise("v_pow({}, {})", [(a, "float"), (b, "float")], heavy=True)


@lowers(aten.polygamma.default, aten.special_polygamma.default)
def _polygamma(at: Lowering, order: int, x: Any) -> Any:
    names = {0: "v_digamma({})", 1: "v_trigamma({})"}
    if order not in names:
        raise at.unsupported(f"of order {order} cannot be compiled")
    return at.pointwise(names[order], [(at.value(x), "float")], heavy=True)


@lowers(aten.where.self)
def _where(at: Lowering, condition: Any, yes: Any, no: Any) -> Any:
    kind = at.kind
    chosen = at.value(condition)
    if chosen.buffer is None and not isinstance(yes, Pieces) and not isinstance(no, Pieces):
        value = at.cast(at.value(yes if chosen.number else no), kind)
        return at.apply_view(value, aten.expand.default, (list(at.shape),), {})
    return at.pointwise("select({}, {}, {})", [(chosen, "bool"), (at.value(yes), kind), (at.value(no), kind)])


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(at: Lowering, x: Any, mask: Any, number: Any) -> Any:
    return _where(at, mask, number, x)


@lowers(aten.clamp.default, aten.clamp.Tensor)
def _clamp(at: Lowering, x: Any, min: Any = None, max: Any = None) -> Any:  # noqa: A002
    kind = at.kind
    operands, expression = [(at.value(x), kind)], "{0}"
    for bound, name, sign in ((min, "v_max", ">"), (max, "v_min", "<")):
        if bound is None:
            continue
        place = f"{{{len(operands)}}}"
        operands.append((at.value(bound), kind))
        if kind == "float":
            expression = f"{name}({expression}, {place})"
        else:
            expression = f"select((I)({expression} {sign} {place}), {expression}, {place})"
    return at.pointwise(expression, operands)


@lowers(aten.clamp_min.default, aten.clamp_min.Tensor)
def _clamp_min(at: Lowering, x: Any, bound: Any) -> Any:
    return _clamp(at, x, min=bound)


@lowers(aten.clamp_max.default, aten.clamp_max.Tensor)
def _clamp_max(at: Lowering, x: Any, bound: Any) -> Any:
    return _clamp(at, x, max=bound)


@lowers(aten.nan_to_num.default)
def _nan_to_num(
    at: Lowering, x: Any, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Any:
    value = at.value(x)
    if at.kind != "float":
        return value
    largest = torch.finfo(at.uniforms.dtype).max
    expression = "{0}"
    for condition, number, itself in (
        ("(I)({0} == INF)", largest if posinf is None else posinf, math.inf),
        ("(I)({0} == -INF)", -largest if neginf is None else neginf, -math.inf),
        ("v_isnan({0})", 0.0 if nan is None else nan, None),
    ):
        if number != itself:
            expression = f"select({condition}, {literal(number, 'float')}, {expression})"
    return at.pointwise(expression, [(value, "float")])


@lowers(aten._to_copy.default, aten.to.dtype, aten.type_as.default)
def _to(at: Lowering, x: Any, *_: Any, **__: Any) -> Any:
    return at.cast(at.value(x), at.kind)


@lowers(torch.ops.prims.convert_element_type.default)
def _convert(at: Lowering, x: Any, dtype: torch.dtype) -> Any:
    return at.cast(at.value(x), kind_of(dtype))


@lowers(aten.copy.default)
def _copy(at: Lowering, x: Any, source: Any, *_: Any) -> Any:
    value = at.cast(at.value(source), at.kind)
    return at.apply_view(value, aten.expand.default, (list(at.shape),), {})


@lowers(aten.fill.Tensor)
def _fill_tensor(at: Lowering, x: Any, number: Any) -> Any:
    return _copy(at, x, number)


@lowers(aten.softplus.default)
def _softplus(at: Lowering, x: Any, beta: float = 1, threshold: float = 20) -> Any:
    value = at.value(x)
    scaled = value if beta == 1 else _each(at, f"{{}} * {literal(beta, 'float')}", value)
    soft = f"(v_max({{1}}, (T)0) + log1p_unit({{2}})) * {literal(1 / beta, 'float')}"
    expression = f"select((I)({{1}} > {literal(threshold, 'float')}), {{0}}, {soft})"
    return _each(at, expression, value, scaled, _exp_of_minus_size(at, scaled))


@lowers(aten.softplus_backward.default)
def _softplus_backward(at: Lowering, gradient: Any, x: Any, beta: float, threshold: float) -> Any:
    value = at.value(x)
    scaled = value if beta == 1 else _each(at, f"{{}} * {literal(beta, 'float')}", value)
    expression = (
        f"select((I)({{1}} > {literal(threshold, 'float')}), {{0}}, {{0}} * sigmoid_from({{1}}, {{2}}))"
    )
    operands = [at.value(gradient), scaled, _exp_of_minus_size(at, scaled)]
    return at.pointwise(expression, [(operand, "float") for operand in operands])


@lowers(aten.addcmul.default, aten.addcdiv.default)
def _addcmul(at: Lowering, x: Any, a: Any, b: Any, value: float = 1) -> Any:
    sign = "*" if at.node is not None and at.node.target is aten.addcmul.default else "/"
    factor = "" if value == 1 else f"{literal(value, 'float')} * "
    return at.pointwise(
        f"{{}} + {factor}{{}} {sign} {{}}",
        [(at.value(x), "float"), (at.value(a), "float"), (at.value(b), "float")],
    )


@lowers(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(at: Lowering, x: Any, y: Any, weight: Any) -> Any:
    return at.pointwise(
        "{0} + {2} * ({1} - {0})",
        [(at.value(x), "float"), (at.value(y), "float"), (at.value(weight), "float")],
    )


@lowers(aten.gelu.default)
def _gelu(at: Lowering, x: Any, approximate: str = "none") -> Any:
    if approximate == "none":
        expression = "(T)0.5 * {0} * (1 + v_erf({0} * (T)0.7071067811865476))"
    else:
        cubic = "(T)0.7978845608028654 * ({0} + (T)0.044715 * {0} * {0} * {0})"
        expression = f"(T)0.5 * {{0}} * (1 + v_tanh({cubic}))"
    return at.pointwise(expression, [(at.value(x), "float")], heavy=True)


@lowers(aten.elu.default)
def _elu(at: Lowering, x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    low = f"{literal(alpha, 'float')} * v_expm1({{0}} * {literal(input_scale, 'float')})"
    expression = f"{literal(scale, 'float')} * select((I)({{0}} > 0), {{0}}, {low})"
    return at.pointwise(expression, [(at.value(x), "float")], heavy=True)


@lowers(aten.leaky_relu.default)
def _leaky_relu(at: Lowering, x: Any, slope: float = 0.01) -> Any:
    expression = f"select((I)({{0}} > 0), {{0}}, {{0}} * {literal(slope, 'float')})"
    return at.pointwise(expression, [(at.value(x), "float")])


@lowers(aten.hardtanh.default)
def _hardtanh(at: Lowering, x: Any, low: float = -1, high: float = 1) -> Any:
    return _clamp(at, x, low, high)
