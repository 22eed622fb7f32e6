// Sine, cosine and their kin.
#pragma once

#include "lanes.hpp"

#ifdef PPGEN_DOUBLE
constexpr T TRIG_LARGEST = 1e8;
#else
constexpr T TRIG_LARGEST = 2e4;
#endif

// Of |r| <= pi / 4.
PPGEN_INLINE V sin_core(V r) {
    V z = r * r;
#ifdef PPGEN_DOUBLE
    V p = polynomial(z, -7.58549250782123976e-13, 1.60585109795353505e-10, -2.50521061009266732e-8,
                     2.75573192189567317e-6, -1.98412698412645685e-4, 8.33333333333333126e-3,
                     -0.166666666666666667);
#else
    V p = polynomial(z, 2.72438119752581066e-6, -0.000198400391130122136, 0.00833333178567172974,
                     -0.166666666636240228);
#endif
    return (z * r) * p + r;
}
PPGEN_INLINE V cos_core(V r) {
    V z = r * r;
#ifdef PPGEN_DOUBLE
    V p = polynomial(z, 4.74520215570235903e-14, -1.14704494124097097e-11, 2.08767557179572941e-9,
                     -2.75573192211901992e-7, 2.48015873015843704e-5, -1.38888888888888877e-3,
                     4.16666666666666667e-2);
#else
    V p = polynomial(z, 0.0000245428963369446271, -0.00138882794496495371, 0.0416666645369460917);
#endif
    return (z * z) * p + (1 - (T)0.5 * z);
}

struct SinCos {
    V sin, cos;
};

// From the sine and cosine of what is left after k quarter turns.
PPGEN_INLINE SinCos turned(V r, I k) {
    V s = sin_core(r), c = cos_core(r);
    I odd = (I)((k & 1) != 0);
    I sin_flip = (k & 2) != 0 ? splat_int(SIGN_BIT) : I{};
    I cos_flip = ((k + 1) & 2) != 0 ? splat_int(SIGN_BIT) : I{};
    return {(V)((I)select(odd, c, s) ^ sin_flip), (V)((I)select(odd, s, c) ^ cos_flip)};
}

// Reduction by pi / 2 in three parts (Cody and Waite 1980).
PPGEN_INLINE SinCos sin_cos(V x) {
    V n = v_round(x * (T)0.63661977236758134308);
#ifdef PPGEN_DOUBLE
    V r = ((x - n * 0x1.921fb54400000p+0) - n * 0x1.0b4611a600000p-34) - n * 0x1.3198a2e037073p-69;
#else
    V r = ((x - n * 1.5703125f) - n * 4.837512969970703125e-4f) - n * 7.5497899548918821e-8f;
#endif
    return turned(r, to_int(n));
}

// Of 2 pi u, for u in [0, 1].
PPGEN_INLINE SinCos sin_cos_of_turns(V u) {
    V n = v_round(u * 4);
    return turned((u - n * (T)0.25) * (2 * PI), to_int(n));
}

#define PPGEN_TRIGONOMETRIC(name, result)                                                          \
    PPGEN_FUNCTION V v_##name(V x) {                                                               \
        I ordinary = (I)(v_abs(x) < TRIG_LARGEST);                                                 \
        SinCos a = sin_cos(select(ordinary, x, V{}));                                              \
        V value = result;                                                                          \
        if (all(ordinary)) return value;                                                           \
        V slow = per_lane([](T v) { return PPGEN_PER_LANE(name)(v); }, x);                         \
        return select(ordinary, value, slow);                                                      \
    }
PPGEN_TRIGONOMETRIC(sin, a.sin)
PPGEN_TRIGONOMETRIC(cos, a.cos)
PPGEN_TRIGONOMETRIC(tan, a.sin / a.cos)

// Rare in models: lane by lane.
#define PPGEN_LANE_BY_LANE(name)                                                                   \
    PPGEN_FUNCTION V v_##name(V x) {                                                               \
        return per_lane([](T v) { return PPGEN_PER_LANE(name)(v); }, x);                           \
    }
PPGEN_LANE_BY_LANE(asin)
PPGEN_LANE_BY_LANE(acos)
PPGEN_LANE_BY_LANE(atan)

PPGEN_FUNCTION V v_atan2(V y, V x) {
    return per_lane([](T u, T v) { return PPGEN_PER_LANE(atan2)(u, v); }, y, x);
}
PPGEN_FUNCTION V v_fmod(V a, V b) {
    return per_lane([](T u, T v) { return PPGEN_PER_LANE(fmod)(u, v); }, a, b);
}
