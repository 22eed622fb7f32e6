// The logarithm of the gamma function and its derivatives.
//
// Large arguments: Stirling's series (Abramowitz and Stegun 6.1.41, 6.3.18, 6.4.12), after shifting
// small ones upwards by the recurrence. Negative arguments: reflection.
#pragma once

#include "elementary.hpp"
#include "trigonometric.hpp"

constexpr T HALF_LOG_TWO_PI = 0.91893853320467274178;

// Of pi u, for |u| <= 1/2.
PPGEN_INLINE SinCos sin_cos_of_half_turns(V u) {
    V n = v_round(u * 2);
    return turned((u - n * (T)0.5) * PI, to_int(n));
}

// log Gamma(1.5 + y) for |y| <= 1/2; zero at both ends.
PPGEN_INLINE V lgamma_core(V y) {
#ifdef PPGEN_DOUBLE
    V p = polynomial(y, 1.18209694454671452e-5, -1.85278039970329614e-5, 1.35842754591309424e-5,
                     -2.14877025206257627e-5, 4.28164286279477919e-5, -6.79373302739704651e-5,
                     1.05417152221859049e-4, -1.68571794503517222e-4, 2.71302735451140075e-4,
                     -4.38035161325805359e-4, 7.11520275205129861e-4, -1.164411377219605e-3,
                     1.92291623212279233e-3, -3.21207422060729068e-3, 5.44645784221955293e-3,
                     -9.425622444829649e-3, 1.67970986312139496e-2, -3.13084875010532718e-2,
                     6.29114010745648463e-2, -0.145959895914305938, 0.483128950540980889);
#else
    V p = polynomial(y, -0.00148748434067937303, 0.0024467446562019572, -0.00313773641201147136,
                     0.00532599199145505057, -0.00943241147891222555, 0.0168080977471733708,
                     -0.0313082731651902215, 0.0629110538603164424, -0.14595989698806494,
                     0.483128952280385483);
#endif
    return (y + (T)0.5) * (y - (T)0.5) * p;
}

PPGEN_INLINE V lgamma_positive(V x) {
    I large = (I)(x >= 3);
    // Small: log Gamma(x) = core(offset) - log(x), core(offset) or core(offset) + log(x - 1).
    V offset = x - select((I)(x < 1), splat((T)0.5), select((I)(x > 2), splat((T)2.5), splat((T)1.5)));
    V t = select((I)(x < 1), x, select((I)(x > 2), x - 1, splat(1)));
    V y = x;
#ifdef PPGEN_DOUBLE
    I shifted = large & (I)(x < 8);
    y = select(shifted, x + 5, x);
#endif
    V log_ty = v_log(select(large, y, t));
    V small = lgamma_core(select(large, V{}, offset)) + select((I)(x < 1), -log_ty, log_ty);
    V r = 1 / y, z = r * r;
#ifdef PPGEN_DOUBLE
    V series = r * polynomial(z, -2.9550653594771242e-2, 6.4102564102564103e-3, -1.9175269175269175e-3,
                              8.4175084175084175e-4, -5.9523809523809524e-4, 7.9365079365079365e-4,
                              -2.7777777777777778e-3, 8.3333333333333333e-2);
#else
    V series = r * polynomial(z, 8.4175084175084175e-4, -5.9523809523809524e-4, 7.9365079365079365e-4,
                              -2.7777777777777778e-3, 8.3333333333333333e-2);
#endif
    V stirling = (y - (T)0.5) * (log_ty - 1) + (series + (HALF_LOG_TWO_PI - (T)0.5));
#ifdef PPGEN_DOUBLE
    if (any(shifted)) {
        V product = (x * (x + 1)) * ((x + 2) * (x + 3)) * (x + 4);
        stirling = select(shifted, stirling - v_log(product), stirling);
    }
#endif
    return select(large, stirling, small);
}

PPGEN_FUNCTION V v_lgamma(V x) {
    I negative = (I)(x <= 0);
    V result = lgamma_positive(select(negative, splat(1), x));
    if (!any(negative)) return result;
    // Gamma(x) Gamma(1 - x) = pi / sin(pi x); for tiny |x| the reflection loses nothing.
    V r = v_abs(x - v_round(x));
    V reflected = v_log(PI / sin_cos_of_half_turns(r).sin) - lgamma_positive(select(negative, 1 - x, splat(1)));
    reflected = select((I)(r == 0) | v_isinf(x), splat(INF), reflected);
    return select(negative, reflected, result);
}

PPGEN_INLINE V digamma_positive(V x) {
    // Sum of 1 / (x + k) as one fraction.
    I shift = (I)(x < 8);
    V top = V{}, bottom = splat(1);
    for (int k = 0; k < 8; k++) {
        V factor = x + (T)k;
        top = top * factor + bottom;
        bottom = bottom * factor;
    }
    V y = select(shift, x + 8, x), r = 1 / y, z = r * r;
#ifdef PPGEN_DOUBLE
    V series = z * polynomial(z, -0.44325980392156863, 8.3333333333333333e-2, -2.1092796092796093e-2,
                              7.5757575757575758e-3, -4.1666666666666667e-3, 3.9682539682539683e-3,
                              -8.3333333333333333e-3, 8.3333333333333333e-2);
#else
    V series = z * polynomial(z, -4.1666666666666667e-3, 3.9682539682539683e-3, -8.3333333333333333e-3,
                              8.3333333333333333e-2);
#endif
    V value = v_log(y) - ((T)0.5 * r + series);
    return value - select(shift, top / bottom, V{});
}

PPGEN_FUNCTION V v_digamma(V x) {
    I negative = (I)(x <= 0);
    V result = digamma_positive(select(negative, splat(1), x));
    if (!any(negative)) return result;
    V r = x - v_round(x);
    SinCos a = sin_cos_of_half_turns(r);
    V reflected = digamma_positive(select(negative, 1 - x, splat(1))) - PI * a.cos / a.sin;
    reflected = select((I)(r == 0) | v_isinf(x), splat(__builtin_nan("")), reflected);
    reflected = select((I)(x == 0), copy_sign(splat(INF), (V)((I)x ^ SIGN_BIT)), reflected);
    return select(negative, reflected, result);
}

PPGEN_INLINE V trigamma_positive(V x) {
    I shift = (I)(x < 8);
    V sum = V{};
    for (int k = 0; k < 8; k++) {
        V r = 1 / (x + (T)k);
        sum = sum + r * r;
    }
    V y = select(shift, x + 8, x), r = 1 / y, z = r * r;
#ifdef PPGEN_DOUBLE
    V series = polynomial(z, -7.0921568627450980, 1.1666666666666667, -0.25311355311355311,
                          7.5757575757575758e-2, -3.3333333333333333e-2, 2.3809523809523810e-2,
                          -3.3333333333333333e-2, 0.16666666666666667);
#else
    V series = polynomial(z, -3.3333333333333333e-2, 2.3809523809523810e-2, -3.3333333333333333e-2,
                          0.16666666666666667);
#endif
    return r + (T)0.5 * z + z * r * series + select(shift, sum, V{});
}

PPGEN_FUNCTION V v_trigamma(V x) {
    I negative = (I)(x < 0);
    V result = trigamma_positive(select(negative, splat(1), x));
    if (!any(negative)) return result;
    V s = PI / sin_cos_of_half_turns(x - v_round(x)).sin;
    V reflected = s * s - trigamma_positive(select(negative, 1 - x, splat(1)));
    return select(negative, reflected, result);
}
