// Exponentials, logarithms and powers.
//
// Arguments are reduced to a small interval, where a polynomial near to the best one is evaluated
// (interpolation at Chebyshev points); the textbook is Muller, "Elementary Functions" (2016).
#pragma once

#include "lanes.hpp"

constexpr double LOG2_E = 1.44269504088896340736;
#ifdef PPGEN_DOUBLE
// ln 2 in two parts, the first with so few bits that its product with an exponent is exact.
constexpr T LN2_HIGH = 0x1.62e42fee00000p-1;
constexpr T LN2_LOW = 1.90821492927058770002e-10;
constexpr T EXP_LOWEST = -746, EXP_HIGHEST = 710, EXPM1_LOWEST = -40;
#else
constexpr T LN2_HIGH = 0.693359375f;
constexpr T LN2_LOW = -2.12194440054690583e-4f;
constexpr T EXP_LOWEST = -104, EXP_HIGHEST = 89, EXPM1_LOWEST = -20;
#endif

struct Reduced {
    V n; // a whole number
    I k; // the same
    V r; // x = n ln 2 + r, |r| <= ln(2) / 2
};

// For |x| < 2^10.
PPGEN_INLINE Reduced reduce_by_ln2(V x) {
    // Adding it leaves the whole number in the last bits.
    const T magic = (T)(3ull << (MANTISSA_BITS - 1));
    V shifted = x * (T)LOG2_E + magic;
    V n = shifted - magic;
    I k = (I)shifted - (I)splat(magic);
    return {n, k, (x - n * LN2_HIGH) - n * LN2_LOW};
}

// exp(r) - 1 for |r| <= ln(2) / 2.
PPGEN_INLINE V expm1_core(V r) {
#ifdef PPGEN_DOUBLE
    V p = polynomial(r, 2.09147553258932022e-9, 2.51053127296221018e-8, 2.75572734787185805e-7,
                     2.75572551700008874e-6, 2.48015873256774619e-5, 1.98412698750022788e-4,
                     1.38888888888837112e-3, 8.33333333332608312e-3, 4.16666666666666698e-2,
                     0.16666666666666671, 0.5);
#else
    V p = polynomial(r, 0.00139262508314976117, 0.0083632328836826182, 0.0416665542129841503,
                     0.166665766661199283, 0.5);
#endif
    return (r * r) * p + r;
}

// 2^k, for k that gives a normal number.
PPGEN_INLINE V power_of_two(I k) { return (V)((k + EXPONENT_BIAS) << MANTISSA_BITS); }

// x 2^n with the right overflow and underflow.
PPGEN_INLINE V scale_by_power(V x, V n, I k) {
#if defined(PPGEN_AVX512) && defined(PPGEN_DOUBLE)
    (void)k;
    return __builtin_ia32_scalefpd512_mask(x, n, x, 0xff, 4);
#elif defined(PPGEN_AVX512)
    (void)k;
    return __builtin_ia32_scalefps512_mask(x, n, x, 0xffff, 4);
#else
    (void)n;
    I half = k >> 1;
    return (x * power_of_two(half)) * power_of_two(k - half);
#endif
}

// exp(x + low) for small low: exp(x) (1 + (exp(low) - 1)), which loses nothing.
PPGEN_INLINE V exp_of_sum(V x, V low) {
    Reduced a = reduce_by_ln2(clamped(x, EXP_LOWEST, EXP_HIGHEST));
    V p = expm1_core(a.r) + 1;
    return scale_by_power(p + p * expm1_core(low), a.n, a.k);
}

PPGEN_FUNCTION V v_exp(V x) {
    Reduced a = reduce_by_ln2(clamped(x, EXP_LOWEST, EXP_HIGHEST));
    return scale_by_power(expm1_core(a.r) + 1, a.n, a.k);
}

PPGEN_FUNCTION V v_expm1(V x) {
    Reduced a = reduce_by_ln2(clamped(x, EXPM1_LOWEST, EXP_HIGHEST));
    // Half of 2^n, which stays finite.
    V s = power_of_two(a.k - 1);
    return (s * expm1_core(a.r) + (s - (T)0.5)) * 2;
}

struct LogParts {
    V e;    // exponent
    V f;    // x = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2)
    V rest; // log(1 + f) - f
};

// For positive finite x.
PPGEN_INLINE LogParts log_parts(V x) {
    I tiny = (I)(x < SMALLEST_NORMAL);
    x = select(tiny, x * (T)(1ull << MANTISSA_BITS), x);
    // The bits of sqrt(1/2), so that the exponent changes there.
    const I root_half = (I)splat((T)0.70710678118654752440);
    I k = ((I)x - root_half) >> MANTISSA_BITS;
    V f = (V)((I)x - (k << MANTISSA_BITS)) - 1;
    V e = to_float(select(tiny, k - MANTISSA_BITS, k));
#ifdef PPGEN_DOUBLE
    // log(1 + f) = 2 atanh(s), s = f / (2 + f).
    V s = f / (f + 2), z = s * s, half = (T)0.5 * f * f;
    V p = z * polynomial(z, 0.146300313641228605, 0.153306173067433049, 0.181829225135159416,
                         0.222222106742385152, 0.285714286288109956, 0.399999999998932218,
                         0.666666666666666991);
    return {e, f, s * (half + p) - half};
#else
    V p = polynomial(f, 0.0697161147145117783, -0.114797338466376356, 0.116854199234867393,
                     -0.124256873314511061, 0.142490576456974804, -0.166678023195012541,
                     0.200007157488921017, -0.24999996957950882, 0.333333311800300481);
    V z = f * f;
    return {e, f, (z * f) * p - (T)0.5 * z};
#endif
}

// log(x) + low for positive finite x and small low.
PPGEN_INLINE V log_core(V x, V low = V{}) {
    LogParts a = log_parts(x);
    return a.e * LN2_HIGH + (a.f + (a.rest + (a.e * LN2_LOW + low)));
}

// What is not positive and finite: log(0) = -inf, log(inf) = inf, else NaN.
PPGEN_INLINE V log_special(V x, V value) {
    V special = select((I)(x == 0), splat(-INF), select((I)(x == INF), x, splat(__builtin_nan(""))));
    return select((I)(x > 0) & (I)(x < INF), value, special);
}

PPGEN_FUNCTION V v_log(V x) { return log_special(x, log_core(x)); }

PPGEN_FUNCTION V v_log1p(V x) {
    V u = x + 1;
    // What rounding took from 1 + x, relative to it.
    V lost = (v_abs(x) > 1 ? 1 - (u - x) : x - (u - 1)) / u;
    return log_special(u, log_core(u, lost));
}

// log(1 + t) for 0 <= t <= 1, or NaN.
PPGEN_FUNCTION V log1p_unit(V t) {
#ifdef PPGEN_DOUBLE
    V p = polynomial(t, 0.0000349649999951775279, -0.000387011110858030387, 0.0020308462484097632,
                     -0.0067614194988498022, 0.0161774482920837739, -0.0300062489220241489,
                     0.0457183288742196421, -0.060245718496051139, 0.072060527838905025,
                     -0.0816358369873179002, 0.0904403840581878174, -0.0998994097833761753,
                     0.111094697271044939, -0.124998021936408679, 0.142856973681769039,
                     -0.166666656967697302, 0.199999999658224018, -0.249999999993596206,
                     0.333333333333285468, -0.49999999999999994);
#else
    V p = polynomial(t, -0.00446621160126570798, 0.0252240543466625993, -0.0667577250631736123,
                     0.115618454463667484, -0.158475657204594699, 0.19854106231202432,
                     -0.249865261681872793, 0.333328418873713467, -0.499999969830840257);
#endif
    return (t * t) * p + t;
}

PPGEN_FUNCTION V v_tanh(V x) {
    V e = v_expm1(-2 * v_abs(x));
    return copy_sign(-e / (e + 2), x);
}

// The logistic function of x, given e = exp(-|x|), which cannot overflow.
PPGEN_INLINE V sigmoid_from(V x, V e) { return select((I)(x < 0), e, splat(1)) / (e + 1); }
PPGEN_FUNCTION V v_sigmoid(V x) { return sigmoid_from(x, v_exp(-v_abs(x))); }

// log x, given e = exp(x) as computed: what overflows or vanishes there does so here.
PPGEN_INLINE V log_of_exp(V x, V e) {
    return select((I)(e == 0), splat(-INF), select((I)(e == INF), e, x));
}

// Through exp(|x| / 2), which does not overflow where the result does not.
PPGEN_FUNCTION V v_cosh(V x) {
    V t = v_exp(v_abs(x) * (T)0.5);
    return ((T)0.5 * t) * t + ((T)0.5 / t) / t;
}

PPGEN_FUNCTION V v_sinh(V x) {
    V size = v_abs(x), t = v_exp(size * (T)0.5), m = v_expm1(size);
    V large = ((T)0.5 * t) * t - ((T)0.5 / t) / t;
    return copy_sign(select((I)(size > 1), large, (T)0.5 * (m + m / (m + 1))), x);
}

// The leading half of the mantissa, whose products are exact.
PPGEN_INLINE V leading_half(V x) {
    return (V)((I)x & ~(((TI)1 << (MANTISSA_BITS / 2 + 1)) - 1));
}

// a + b = sum + error, for |a| >= |b| or a = 0.
PPGEN_INLINE V sum_error(V a, V b, V sum) { return b - (sum - a); }

// exp(y log x) with log x in two parts; what is not positive and finite lane by lane.
PPGEN_FUNCTION V v_pow(V x, V y) {
    LogParts a = log_parts(x);
    V whole = a.e * LN2_HIGH, first = whole + a.f;
    V rest = sum_error(whole, a.f, first) + (a.rest + a.e * LN2_LOW);
    V log_x = first + rest;
    V log_high = leading_half(log_x), log_low = (first - log_high) + rest;
    V y_high = leading_half(y), y_low = y - y_high;
    V product = y_high * log_high;
    V result = exp_of_sum(product, clamped(y_low * log_high + y * log_low, -1, 1));
    I ordinary = (I)(x > 0) & (I)(x < INF) & (I)(v_abs(y) < (T)1e6);
    if (all(ordinary)) return result;
    V slow = per_lane([](T u, T v) { return PPGEN_PER_LANE(pow)(u, v); }, x, y);
    return select(ordinary, result, slow);
}
