// Types and what has no mathematics in it: splat, select, conversion, reduction of masks, rounding.
//
// A mask is an I whose lanes are -1 (true) or 0 (false), as comparisons of vectors give it.
#pragma once

#include <stdint.h>

#ifdef PPGEN_DOUBLE
typedef double T;
typedef int64_t TI;
#define PPGEN_PER_LANE(name) __builtin_##name
#define PPGEN_FULL 8
#else
typedef float T;
typedef int32_t TI;
#define PPGEN_PER_LANE(name) __builtin_##name##f
#define PPGEN_FULL 16
#endif

#ifndef PPGEN_LANES
#define PPGEN_LANES PPGEN_FULL
#endif

// Where a vector is one AVX-512 register, gcc has built-in functions for what its vectors cannot say.
#if defined(__AVX512F__) && !defined(__clang__) && PPGEN_LANES == PPGEN_FULL
#define PPGEN_AVX512
#endif

#define PPGEN_INLINE static inline __attribute__((always_inline, unused))
#define PPGEN_FUNCTION static inline __attribute__((unused))

constexpr int W = PPGEN_LANES;
static_assert(W > 0 && (W & (W - 1)) == 0, "PPGEN_LANES must be a power of two");

typedef T V __attribute__((vector_size(W * sizeof(T))));
typedef TI I __attribute__((vector_size(W * sizeof(T))));
typedef uint32_t U32 __attribute__((vector_size(W * sizeof(uint32_t))));
typedef int32_t I32 __attribute__((vector_size(W * sizeof(int32_t))));

#ifdef PPGEN_DOUBLE
constexpr int MANTISSA_BITS = 52;
constexpr int EXPONENT_BIAS = 1023;
constexpr TI SIGN_BIT = INT64_MIN;
constexpr T SMALLEST_NORMAL = 0x1p-1022;
#else
constexpr int MANTISSA_BITS = 23;
constexpr int EXPONENT_BIAS = 127;
constexpr TI SIGN_BIT = INT32_MIN;
constexpr T SMALLEST_NORMAL = 0x1p-126f;
#endif
constexpr T INF = __builtin_inf();
constexpr T PI = 3.14159265358979323846;

// Subtracting keeps the sign of a zero.
PPGEN_INLINE V splat(T x) { return x - V{}; }
PPGEN_INLINE I splat_int(long x) { return (TI)x - I{}; }

PPGEN_INLINE V select(I m, V a, V b) { return m ? a : b; }
PPGEN_INLINE I select(I m, I a, I b) { return m ? a : b; }

PPGEN_INLINE V to_float(I a) { return __builtin_convertvector(a, V); }
// Towards zero.
PPGEN_INLINE I to_int(V a) { return __builtin_convertvector(a, I); }

// Whether any lane is not zero.
PPGEN_INLINE bool any(I m) {
#ifdef PPGEN_AVX512
    typedef int S __attribute__((vector_size(64)));
    return __builtin_ia32_ptestmd512((S)m, (S)m, 0xffff) != 0;
#else
    uint32_t parts[sizeof(I) / 4], found = 0;
    __builtin_memcpy(parts, &m, sizeof(I));
    for (unsigned i = 0; i < sizeof(I) / 4; i++) found |= parts[i];
    return found != 0;
#endif
}

// Whether no lane is zero.
PPGEN_INLINE bool all(I m) { return !any((I)(m == 0)); }

// In how many lanes a mask is true.
PPGEN_INLINE int count(I m) {
#ifdef PPGEN_AVX512
    typedef int S __attribute__((vector_size(64)));
    return __builtin_popcount(__builtin_ia32_ptestmd512((S)m, (S)m, 0xffff)) / (16 / W);
#else
    int number = 0;
    for (int i = 0; i < W; i++) number -= (int)m[i];
    return number;
#endif
}

// A function of one lane, for what is rare.
template <class F> PPGEN_INLINE V per_lane(F f, V a) {
    for (int i = 0; i < W; i++) a[i] = f((T)a[i]);
    return a;
}
template <class F> PPGEN_INLINE V per_lane(F f, V a, V b) {
    for (int i = 0; i < W; i++) a[i] = f((T)a[i], (T)b[i]);
    return a;
}

// c[0] x^(n-1) + ... + c[n-1], highest power first.
PPGEN_INLINE V horner(V, V value) { return value; }
template <class... C> PPGEN_INLINE V horner(V x, V value, double c, C... rest) {
    return horner(x, value * x + (T)c, rest...);
}
template <class... C> PPGEN_INLINE V polynomial(V x, double c, C... rest) {
    return horner(x, splat((T)c), rest...);
}

PPGEN_INLINE V v_abs(V x) { return (V)((I)x & ~SIGN_BIT); }
PPGEN_INLINE V copy_sign(V size, V sign) {
    return (V)(((I)size & ~SIGN_BIT) | ((I)sign & SIGN_BIT));
}
// Zero for NaN, as in torch.
PPGEN_INLINE V v_sign(V x) {
    return select((I)(x > 0), splat(1), V{}) - select((I)(x < 0), splat(1), V{});
}
PPGEN_INLINE I v_isnan(V x) { return (I)(x != x); }
PPGEN_INLINE I v_isinf(V x) { return (I)(v_abs(x) == INF); }
PPGEN_INLINE I v_isfinite(V x) { return (I)(v_abs(x) < INF); }
// The larger and the smaller; b where either is NaN.
#ifdef PPGEN_AVX512
#ifdef PPGEN_DOUBLE
PPGEN_INLINE V larger(V a, V b) { return __builtin_ia32_maxpd512_mask(a, b, a, 0xff, 4); }
PPGEN_INLINE V smaller(V a, V b) { return __builtin_ia32_minpd512_mask(a, b, a, 0xff, 4); }
#else
PPGEN_INLINE V larger(V a, V b) { return __builtin_ia32_maxps512_mask(a, b, a, 0xffff, 4); }
PPGEN_INLINE V smaller(V a, V b) { return __builtin_ia32_minps512_mask(a, b, a, 0xffff, 4); }
#endif
#else
PPGEN_INLINE V larger(V a, V b) { return a > b ? a : b; }
PPGEN_INLINE V smaller(V a, V b) { return a < b ? a : b; }
#endif
// NaN where either is; the second form where the bound is a number.
PPGEN_INLINE V v_max(V a, V b) { return select(v_isnan(a), a, larger(a, b)); }
PPGEN_INLINE V v_min(V a, V b) { return select(v_isnan(a), a, smaller(a, b)); }
PPGEN_INLINE V v_max(V a, T bound) { return larger(splat(bound), a); }
PPGEN_INLINE V v_min(V a, T bound) { return smaller(splat(bound), a); }
// To [low, high]; NaN stays.
PPGEN_INLINE V clamped(V x, T low, T high) { return v_max(v_min(x, high), low); }

// Rounding: adding 2^mantissa drops the fraction of what is smaller than that; the rest has none.
PPGEN_INLINE V v_round(V x) {
    const T whole = (T)(1ull << MANTISSA_BITS);
    V size = v_abs(x);
    V rounded = (size + whole) - whole;
    return select((I)(size < whole), copy_sign(rounded, x), x);
}
PPGEN_INLINE V v_floor(V x) {
    V r = v_round(x);
    return select((I)(r > x), r - 1, r);
}
PPGEN_INLINE V v_ceil(V x) {
    V r = v_round(x);
    return select((I)(r < x), copy_sign(r + 1, x), r);
}
PPGEN_INLINE V v_trunc(V x) { return copy_sign(v_floor(v_abs(x)), x); }

PPGEN_INLINE V v_sqrt(V x) {
#if defined(__clang__)
    return __builtin_elementwise_sqrt(x);
#elif defined(PPGEN_AVX512) && defined(PPGEN_DOUBLE)
    return __builtin_ia32_sqrtpd512_mask(x, x, 0xff, 4);
#elif defined(PPGEN_AVX512)
    return __builtin_ia32_sqrtps512_mask(x, x, 0xffff, 4);
#else
    return per_lane([](T v) { return PPGEN_PER_LANE(sqrt)(v); }, x);
#endif
}
PPGEN_INLINE V v_rsqrt(V x) { return 1 / v_sqrt(x); }
