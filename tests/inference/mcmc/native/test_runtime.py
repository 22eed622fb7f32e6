"""The C++ runtime against torch in double precision, for both types and with and without AVX-512."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import mpmath
import pytest
import torch
from torch import Tensor

from ppgen.inference.mcmc.native.build import HEADERS, build
from ppgen.ops.compiled import Library
from ppgen.testing.statistics import assert_mean, assert_same_distribution

UNARY = [
    "exp",
    "log",
    "log1p",
    "expm1",
    "sqrt",
    "rsqrt",
    "tanh",
    "sigmoid",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "erf",
    "erfc",
    "erfinv",
    "lgamma",
    "digamma",
    "trigamma",
    "floor",
    "ceil",
    "round",
    "trunc",
    "abs",
    "sign",
]
TESTS = ("isnan", "isinf", "isfinite")
BINARY = ("pow", "max", "min", "atan2", "fmod")

SOURCE = (
    '#include "ppgen.hpp"\n'
    + "".join(
        f'extern "C" void {name}(const V *a, V *out, long n) {{\n'
        f"    for (long i = 0; i < n; i++) out[i] = v_{name}(a[i]);\n}}\n"
        for name in UNARY
    )
    + "".join(
        f'extern "C" void {name}(const V *a, V *out, long n) {{\n'
        f"    for (long i = 0; i < n; i++) out[i] = to_float(v_{name}(a[i]) & 1);\n}}\n"
        for name in TESTS
    )
    + "".join(
        f'extern "C" void {name}2(const V *a, const V *b, V *out, long n) {{\n'
        f"    for (long i = 0; i < n; i++) out[i] = v_{name}(a[i], b[i]);\n}}\n"
        for name in BINARY
    )
    + """
extern "C" void to_int_and_back(const V *a, V *out, long n) {
    for (long i = 0; i < n; i++) out[i] = to_float(to_int(a[i]));
}
extern "C" void splatted(T x, long k, V *out) { out[0] = splat(x); out[1] = to_float(splat_int(k)); }
extern "C" void chosen(const V *a, const V *b, V *out) { out[0] = select((I)(a[0] < b[0]), a[0], b[0]); }
extern "C" int any_all(const V *a) { I m = (I)(a[0] > 0); return any(m) + 2 * all(m); }
extern "C" int width() { return W; }
extern "C" void uniforms(uint32_t *state, V *out, long n) {
    Rng rng(state);
    for (long i = 0; i < n; i++) out[i] = rng.uniform();
    rng.store();
}
extern "C" void normals(uint32_t *state, V *out, long n) {
    Rng rng(state);
    for (long i = 0; i < n; i++) out[i] = rng.normal();
    rng.store();
}
extern "C" void shared_exponentials(const V *a, V *out, long n) {
    for (long i = 0; i < n; i++) {
        V e = v_exp(-v_abs(a[i])), p = v_exp(a[i]);
        out[3 * i] = log1p_unit(e);
        out[3 * i + 1] = sigmoid_from(a[i], e);
        out[3 * i + 2] = log_of_exp(a[i], p);
    }
}
extern "C" void wanted_only(uint32_t *state, const V *a, V *out, long n) {
    Rng rng(state);
    I lanes = (I)(a[0] > 0);
    rng.only(lanes);
    for (long i = 0; i < n; i++) out[i] = rng.uniform();
    rng.store();
    out[n] = splat(count(lanes));
}
extern "C" void factor(const V *a, V *l, int n) { cholesky(a, l, n); }
extern "C" void solve(const V *a, const V *b, V *x, int n, int m, int upper, int transpose, int unit) {
    triangular_solve(a, b, x, n, m, upper, transpose, unit);
}
"""
)

#: dtype, lanes, flags
VARIANTS = {
    "float": (torch.float32, None, ()),
    "double": (torch.float64, None, ()),
    "float-plain": (torch.float32, 4, ("-mno-avx512f",)),
    "double-plain": (torch.float64, 4, ("-mno-avx512f",)),
}
EPS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


class Runtime:
    """One compiled variant; tensors go in and out in its own dtype."""

    def __init__(self, dtype: torch.dtype, lanes: int | None, flags: tuple[str, ...]) -> None:
        self.dtype = dtype
        library = build(SOURCE, double=dtype is torch.float64, lanes=lanes, extra_flags=flags)
        self.library: Library = library
        self.width = int(library.handle.width())

    def __call__(self, name: str, *arguments: Tensor) -> Tensor:
        """A function of each element."""
        size = arguments[0].numel()
        padded = -(-size // self.width) * self.width
        packed = [torch.zeros(padded, dtype=self.dtype) for _ in arguments]
        for to, value in zip(packed, arguments, strict=True):
            to[:size] = value.to(self.dtype)
        out = torch.empty(padded, dtype=self.dtype)
        self.raw(name, *packed, out, padded // self.width)
        return out[:size]

    def raw(self, name: str, *arguments: Tensor | int) -> int:
        values = (
            ctypes.c_void_p(value.data_ptr()) if isinstance(value, Tensor) else ctypes.c_long(value)
            for value in arguments
        )
        return getattr(self.library.handle, name)(*values)


@functools.cache
def runtime(variant: str) -> Runtime:
    return Runtime(*VARIANTS[variant])


@pytest.fixture(params=list(VARIANTS))
def program(request: pytest.FixtureRequest) -> Runtime:
    return runtime(request.param)


def ulps(found: Tensor, expected: Tensor, dtype: torch.dtype, absolute: float = 0.0) -> float:
    """The largest error in units of the last place, where ``expected`` is a normal number."""
    tiny = torch.finfo(dtype).tiny
    ordinary = (expected.abs() >= tiny) & (expected.abs() <= torch.finfo(dtype).max)
    gap = ((found.double() - expected).abs() - absolute).clamp(min=0) / expected.abs() / (2 * EPS[dtype])
    return float(gap[ordinary].max())


def spread(low: float, high: float, dtype: torch.dtype, num: int = 20_000) -> Tensor:
    return torch.linspace(low, high, num, dtype=torch.float64).to(dtype)


def magnitudes(low: float, high: float, dtype: torch.dtype, num: int = 20_000) -> Tensor:
    """Of both signs, even on a log scale from 10^low to 10^high."""
    size = 10 ** torch.linspace(low, high, num, dtype=torch.float64)
    return torch.cat([size, -size]).to(dtype)


def precisely(function: Callable[[float], float]) -> Callable[[Tensor], Tensor]:
    """By mpmath: torch's own gamma functions are off by more than ours."""
    return lambda x: torch.tensor([float(function(value)) for value in x.tolist()], dtype=torch.float64)


LGAMMA = precisely(lambda x: mpmath.loggamma(x).real)
DIGAMMA = precisely(mpmath.digamma)
TRIGAMMA = precisely(lambda x: mpmath.psi(1, x))

#: function, its reference, points, bound in ulps for float and for double, absolute error in eps
Points = Callable[[torch.dtype], Tensor]
ACCURACY: dict[str, tuple[Callable[[Tensor], Tensor], Points, float, float, float]] = {
    "exp": (
        torch.exp,
        lambda t: spread(*((-87, 88.7) if t is torch.float32 else (-708, 709.7)), t),
        1.5,
        1.5,
        0,
    ),
    "log": (torch.log, lambda t: magnitudes(-37, 37, t).abs(), 1.5, 1.5, 0),
    "log near one": (torch.log, lambda t: spread(0.5, 2, t), 1.5, 1.5, 0),
    "log1p": (
        torch.log1p,
        lambda t: torch.cat([magnitudes(-30, 30, t).abs(), spread(-1 + 1e-6, 1, t)]),
        2.5,
        2.5,
        0,
    ),
    "expm1": (torch.expm1, lambda t: torch.cat([magnitudes(-20, 1.9, t), spread(-1, 1, t)]), 3, 3, 0),
    "sqrt": (torch.sqrt, lambda t: magnitudes(-37, 37, t).abs(), 1, 1, 0),
    "rsqrt": (torch.rsqrt, lambda t: magnitudes(-37, 37, t).abs(), 1.5, 1.5, 0),
    "tanh": (torch.tanh, lambda t: magnitudes(-20, 2, t), 4, 4, 0),
    "sigmoid": (torch.sigmoid, lambda t: spread(-80, 80, t), 3, 3, 0),
    "sin": (torch.sin, lambda t: spread(-1e3, 1e3, t), 2, 2, 0.3),
    "sin of large": (torch.sin, lambda t: magnitudes(3, 15, t), 2, 2, 0.3),
    "cos": (torch.cos, lambda t: spread(-1e3, 1e3, t), 2, 2, 0.3),
    "tan": (torch.tan, lambda t: spread(-1.5, 1.5, t), 4, 4, 0),
    "asin": (torch.asin, lambda t: spread(-1, 1, t), 2, 2, 0),
    "acos": (torch.acos, lambda t: spread(-1, 1, t), 2, 2, 0),
    "atan": (torch.atan, lambda t: magnitudes(-10, 10, t), 2, 2, 0),
    "sinh": (torch.sinh, lambda t: magnitudes(-10, 1.9, t), 4, 4, 0),
    "cosh": (torch.cosh, lambda t: magnitudes(-10, 1.9, t), 4, 4, 0),
    "erf": (torch.erf, lambda t: magnitudes(-20, 1, t), 3, 3, 0),
    "erfc": (torch.erfc, lambda t: spread(-5, 9 if t is torch.float32 else 26, t), 5, 5, 0),
    "erfinv": (torch.erfinv, lambda t: spread(-1 + 1e-6, 1 - 1e-6, t), 5, 40, 0),
    "lgamma": (LGAMMA, lambda t: magnitudes(-10, 10, t, 500).abs(), 4, 4, 24),
    "lgamma near its zeros": (LGAMMA, lambda t: spread(0.9, 3.5, t, 500), 6, 30, 0),
    "lgamma of negative": (LGAMMA, lambda t: spread(-20.3, -0.01, t, 500), 4, 4, 60),
    "digamma": (DIGAMMA, lambda t: magnitudes(-8, 8, t, 500).abs(), 4, 4, 12),
    "digamma of negative": (DIGAMMA, lambda t: spread(-10.3, -0.013, t, 500), 4, 4, 40),
    "trigamma": (TRIGAMMA, lambda t: magnitudes(-8, 8, t, 500).abs(), 4, 8, 0),
    "trigamma of negative": (TRIGAMMA, lambda t: spread(-9.3, -0.013, t, 500), 6, 6, 0),
}


@pytest.mark.parametrize("name", list(ACCURACY))
def test_errors_are_a_few_units_in_the_last_place(program: Runtime, name: str) -> None:
    function, points, in_float, in_double, absolute = ACCURACY[name]
    x = points(program.dtype)
    found = program(name.split()[0], x)
    expected = function(x.double())
    bound = in_float if program.dtype is torch.float32 else in_double
    assert ulps(found, expected, program.dtype, absolute * EPS[program.dtype]) <= bound


EDGES = [
    math.nan,
    math.inf,
    -math.inf,
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    -0.5,
    -1.5,
    -2.5,
    -3.0,
    1e30,
    -1e30,
]
SAME_AT_EDGES = {name: getattr(torch, name) for name in UNARY if name != "trigamma"}


@pytest.mark.parametrize("name", list(SAME_AT_EDGES))
def test_edges_are_those_of_torch(program: Runtime, name: str) -> None:
    x = torch.tensor(EDGES, dtype=program.dtype)
    expected = SAME_AT_EDGES[name](x)
    torch.testing.assert_close(program(name, x), expected, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TESTS)
def test_tests_of_values(program: Runtime, name: str) -> None:
    x = torch.tensor(EDGES, dtype=program.dtype)
    assert program(name, x).bool().tolist() == getattr(torch, name)(x).tolist()


def test_trigamma_has_poles(program: Runtime) -> None:
    x = torch.tensor([math.nan, math.inf, 0.0, -0.0], dtype=program.dtype)
    assert program("trigamma", x).tolist()[1:] == [0.0, math.inf, math.inf]
    assert bool(program("trigamma", x)[0].isnan())


def test_overflow_and_underflow_of_exp(program: Runtime) -> None:
    top = 88.73 if program.dtype is torch.float32 else 709.79
    small = -100.0 if program.dtype is torch.float32 else -740.0
    x = torch.tensor([top, small, 2 * small, -1e6], dtype=program.dtype)
    found = program("exp", x)
    assert found[0] == math.inf
    assert found[2:].tolist() == [0.0, 0.0]
    step = torch.finfo(program.dtype).smallest_normal * torch.finfo(program.dtype).eps
    assert abs(float(found[1]) - math.exp(float(x[1]))) <= step
    assert program("log", found[1:2]).item() == pytest.approx(small, rel=0.01)


REFERENCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pow": torch.pow,
    "max": torch.maximum,
    "min": torch.minimum,
    "atan2": torch.atan2,
    "fmod": torch.fmod,
}


@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_at_edges(program: Runtime, name: str) -> None:
    grid = torch.tensor([*EDGES, 2.0, 3.0, -2.0], dtype=program.dtype)
    a, b = (x.flatten() for x in torch.meshgrid(grid, grid, indexing="ij"))
    expected = REFERENCE[name](a, b)
    torch.testing.assert_close(program(name + "2", a, b), expected, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_powers_are_accurate_far_out(program: Runtime) -> None:
    generator = torch.Generator().manual_seed(0)
    reach = 80.0 if program.dtype is torch.float32 else 700.0
    a = torch.randn(20_000, generator=generator, dtype=torch.float64).mul(5).exp().to(program.dtype)
    b = (torch.rand(20_000, generator=generator, dtype=torch.float64) * 2 - 1) * reach
    b = (b / a.double().log()).clamp(-1e3, 1e3).to(program.dtype)
    if program.dtype is torch.float32:
        assert ulps(program("pow2", a, b), a.double() ** b.double(), program.dtype) <= 16
    else:
        torch.testing.assert_close(program("pow2", a, b), a**b, rtol=1e-13, atol=0)


def test_rounding_keeps_what_is_large(program: Runtime) -> None:
    x = magnitudes(-2, 20, program.dtype)
    for name in ("floor", "ceil", "round", "trunc"):
        assert torch.equal(program(name, x), getattr(torch, name)(x))


def test_lanes_are_moved_about(program: Runtime) -> None:
    width, dtype = program.width, program.dtype
    values = torch.linspace(-1000.7, 1000.7, 4 * width, dtype=dtype)
    assert torch.equal(program("to_int_and_back", values), values.trunc())
    a, b, out = (
        torch.randn(width, dtype=dtype, generator=torch.Generator().manual_seed(s)) for s in (0, 1, 2)
    )
    program.raw("chosen", a, b, out)
    assert torch.equal(out, torch.minimum(a, b))
    assert program.raw("any_all", torch.full((width,), -1.0, dtype=dtype)) == 0
    one = torch.full((width,), -1.0, dtype=dtype)
    one[-1] = 1.0
    assert program.raw("any_all", one) == 1
    assert program.raw("any_all", -one.abs() * -1) == 3


def test_splat(program: Runtime) -> None:
    scalar = ctypes.c_float if program.dtype is torch.float32 else ctypes.c_double
    out = torch.empty(2, program.width, dtype=program.dtype)
    program.library.handle.splatted(scalar(-0.0), ctypes.c_long(-7), ctypes.c_void_p(out.data_ptr()))
    assert bool((out[0] == 0).all() and out[0].signbit().all())
    assert out[1].tolist() == [-7.0] * program.width


# --------------------------------------------------------------------------------------
# Random numbers
# --------------------------------------------------------------------------------------


def fresh_state(width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, (4, width), dtype=torch.int32, generator=generator)


def draws(program: Runtime, name: str, num: int, state: Tensor) -> Tensor:
    out = torch.empty(num, program.width, dtype=program.dtype)
    program.raw(name, state, out, num)
    return out


def xoshiro(state: list[int]) -> tuple[int, list[int]]:
    """The generator in plain integers, from its definition."""

    def rotated(x: int, by: int) -> int:
        return ((x << by) | (x >> (32 - by))) & 0xFFFFFFFF

    s0, s1, s2, s3 = state
    result = (rotated((s0 + s3) & 0xFFFFFFFF, 7) + s0) & 0xFFFFFFFF
    shifted = (s1 << 9) & 0xFFFFFFFF
    s2, s3 = s2 ^ s0, s3 ^ s1
    s1, s0 = s1 ^ s2, s0 ^ s3
    return result, [s0, s1, s2 ^ shifted, rotated(s3, 11)]


def test_uniforms_are_those_of_the_generator_in_each_lane(program: Runtime) -> None:
    state = fresh_state(program.width)
    words = [[int(x) & 0xFFFFFFFF for x in lane] for lane in state.T]
    found = draws(program, "uniforms", 20, state)
    for lane, integers in enumerate(words):
        for step in range(20):
            first, integers = xoshiro(integers)
            if program.dtype is torch.float32:
                expected = (first >> 8) / 2**24
            else:
                second, integers = xoshiro(integers)
                expected = ((first >> 5) * 2**26 + (second >> 6)) / 2**53
            assert float(found[step, lane]) == expected
        assert [int(x) & 0xFFFFFFFF for x in state[:, lane]] == integers


def test_uniforms_stay_below_one(program: Runtime) -> None:
    """All bits set, the largest number that there is."""
    state = torch.zeros(4, program.width, dtype=torch.int32)
    state[0] = -1  # rotl(s0 + s3, 7) + s0 = 2^32 - 2
    assert bool((draws(program, "uniforms", 1, state) < 1).all())


def test_normals_are_normal(program: Runtime) -> None:
    num = 6_000
    found = draws(program, "normals", num, fresh_state(program.width)).double()
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(found.numel(), 1, generator=generator, dtype=torch.float64)
    assert_same_distribution(found.reshape(-1, 1), reference)
    flat = found.flatten()
    assert_mean(torch.stack([flat**k for k in (1, 2, 3, 4, 6)], 1), torch.tensor([0.0, 1, 0, 3, 15]))
    assert 4 < float(flat.abs().max()) < 8


def test_the_check_of_normals_sees_a_wrong_variance(program: Runtime) -> None:
    found = draws(program, "normals", 10_000, fresh_state(program.width)).double().flatten()
    with pytest.raises(AssertionError):
        assert_mean((1.05 * found) ** 2, 1.0)


def test_normals_of_one_call_and_of_neighbours_are_independent(program: Runtime) -> None:
    """Products of the two numbers of a pair, of neighbours in time and of neighbouring lanes."""
    found = draws(program, "normals", 10_000, fresh_state(program.width)).double()
    pairs = found[0::2] * found[1::2]
    later = found[1:-1:2] * found[2::2]
    lanes = found[:, :-1] * found[:, 1:]
    squares = (found[0::2] ** 2 - 1) * (found[1::2] ** 2 - 1)
    for products in (pairs, later, lanes, squares):
        assert_mean(products.flatten(), 0.0)


# --------------------------------------------------------------------------------------
# Linear algebra
# --------------------------------------------------------------------------------------


def packed(value: Tensor) -> Tensor:
    """Lanes last: (W, ...) to (..., W)."""
    return value.movedim(0, -1).contiguous()


def test_cholesky(program: Runtime) -> None:
    n, width, dtype = 5, program.width, program.dtype
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(width, n, n, generator=generator, dtype=torch.float64)
    matrix = root @ root.mT + torch.eye(n, dtype=torch.float64)
    matrix[1] -= 10 * torch.eye(n, dtype=torch.float64)  # not positive definite
    out = torch.full((n, n, width), 7.0, dtype=dtype)
    program.raw("factor", packed(matrix.to(dtype)), out, n)
    found = out.movedim(-1, 0)
    fine = [lane for lane in range(width) if lane != 1]
    expected = torch.linalg.cholesky(matrix[fine]).to(dtype)
    torch.testing.assert_close(
        found[fine], expected, rtol=1e-4 if dtype is torch.float32 else 1e-12, atol=1e-5
    )
    triangle = torch.ones(n, n).tril().bool()
    assert bool(found[1][triangle].isnan().all())
    assert bool((found[:, ~triangle] == 0).all())


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_triangular_solve(program: Runtime, upper: bool, transpose: bool, unit: bool) -> None:
    n, m, width, dtype = 4, 3, program.width, program.dtype
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(width, n, n, generator=generator, dtype=torch.float64) + 3 * torch.eye(n)
    b = torch.randn(width, n, m, generator=generator, dtype=torch.float64)
    triangle = a.triu() if upper else a.tril()
    if unit:
        triangle = triangle - torch.diag_embed(triangle.diagonal(dim1=1, dim2=2)) + torch.eye(n)
    expected = torch.linalg.solve(triangle.mT if transpose else triangle, b).to(dtype)
    x = torch.empty(n, m, width, dtype=dtype)
    program.raw("solve", packed(a.to(dtype)), packed(b.to(dtype)), x, n, m, upper, transpose, unit)
    torch.testing.assert_close(
        x.movedim(-1, 0), expected, rtol=1e-3 if dtype is torch.float32 else 1e-10, atol=1e-4
    )


def test_functions_that_share_an_exponential(program: Runtime) -> None:
    x = torch.cat([torch.linspace(-30, 30, 500), torch.tensor([-2000.0, 2000.0, 0.0, math.nan])]).to(
        program.dtype
    )
    x = x[: len(x) // program.width * program.width]
    out = torch.empty(3 * len(x), dtype=program.dtype)
    program.raw("shared_exponentials", x, out, len(x) // program.width)
    softplus, sigmoid, logarithm = out.view(-1, 3, program.width).unbind(1)
    exact = x.double()
    small = (-exact.abs()).exp()
    eps = EPS[program.dtype]
    torch.testing.assert_close(
        softplus.reshape(-1).double(), small.log1p(), rtol=8 * eps, atol=1e-37, equal_nan=True
    )
    torch.testing.assert_close(
        sigmoid.reshape(-1).double(), exact.sigmoid(), rtol=8 * eps, atol=1e-37, equal_nan=True
    )
    expected = torch.where(exact < -1000, -math.inf, torch.where(exact > 1000, math.inf, exact))
    torch.testing.assert_close(logarithm.reshape(-1).double(), expected, rtol=0, atol=0, equal_nan=True)


def test_streams_that_are_not_wanted_stay(program: Runtime) -> None:
    state = torch.randint(
        1, 2**31 - 1, (4, program.width), dtype=torch.int32, generator=torch.Generator().manual_seed(1)
    )
    wanted = (torch.arange(program.width) % 3 == 0).to(program.dtype)
    alone, some = state.clone(), state.clone()
    drawn = torch.empty(5, program.width, dtype=program.dtype)
    program.raw("uniforms", alone, drawn, 5)
    found = torch.empty(6, program.width, dtype=program.dtype)
    program.raw("wanted_only", some, wanted, found, 5)
    chosen = wanted > 0
    assert torch.equal(found[:5, chosen], drawn[:, chosen])
    assert torch.equal(some[:, chosen], alone[:, chosen])
    assert torch.equal(some[:, ~chosen], state[:, ~chosen])
    assert (found[5] == chosen.sum()).all()


def test_headers_are_in_the_package() -> None:
    folder = resources.files("ppgen.inference.mcmc.native") / "runtime"
    assert (folder / "ppgen.hpp").is_file()
    assert Path(str(folder)) == HEADERS
