// The error function, its complement and its inverse.
#pragma once

#include "elementary.hpp"

// Of |x| <= 1.
PPGEN_INLINE V erf_core(V x) {
    V z = x * x;
#ifdef PPGEN_DOUBLE
    return x * polynomial(z, -4.23094582429533782e-12, 8.70904512905310669e-11, -1.21645600572834501e-9,
                          1.4792401209404813e-8, -1.63646421581676153e-7, 1.64620454414684189e-6,
                          -1.49256475675193321e-5, 1.20553329028887354e-4, -8.5483270219348296e-4,
                          5.22397762542329831e-3, -2.68661706451298408e-2, 0.112837916709551202,
                          -0.376126389031837524, 1.12837916709551257);
#else
    return x * polynomial(z, -9.66704457148699642e-6, 0.00011265959025606609, -0.000848408040553510629,
                          0.0052210318078580228, -0.0268654307276702429, 0.112837824952368445,
                          -0.376126384680287104, 1.12837916706154342);
#endif
}

// Of x >= 0.4: (1 + 2x) exp(x^2) erfc(x) is smooth in (x - 3) / (x + 3) (Shepherd and Laframboise 1981).
PPGEN_INLINE V erfc_core(V x) {
    x = clamped(x, 0, 28);
    V t = (x - 3) / (x + 3);
#ifdef PPGEN_DOUBLE
    V p = polynomial(t, -5.19864265851605943e-9, -9.78399604642328323e-9, 3.66047610929137346e-8,
                     9.63531534761413759e-8, -1.37096138867431075e-7, -6.11761674360537018e-7,
                     3.54520490934249065e-7, 3.46970651358436195e-6, -7.30801380059356884e-7,
                     -2.00995966513305503e-5, 4.9493672336696494e-6, 1.25099126586181714e-4,
                     -1.05159793167873059e-4, -7.79832238988079038e-4, 1.8886903599099314e-3,
                     2.52939181317525133e-3, -2.37705149187566833e-2, 6.8308027344113117e-2,
                     -0.119273663415304529, 0.129645158702757904, -4.75622943534507904e-2,
                     -0.135621106124581158, 1.25300805826972965);
#else
    V p = polynomial(t, -0.000207610665708023671, -0.000704672241555206944, 0.00197367784920648052,
                     0.00251550222397823801, -0.023795161161817204, 0.0683084705779827897,
                     -0.119270705088680684, 0.129645224142865094, -0.0475624208649949562,
                     -0.135621108600425419, 1.25300805915016997);
#endif
    // x^2 in two parts, the first exact.
    V high = leading_half(x);
    return exp_of_sum(-(high * high), (high - x) * (high + x)) * p / (2 * x + 1);
}

PPGEN_FUNCTION V v_erf(V x) {
    V size = v_abs(x);
    return select((I)(size < 1), erf_core(x), copy_sign(1 - erfc_core(size), x));
}

PPGEN_FUNCTION V v_erfc(V x) {
    V tail = erfc_core(v_abs(x));
    return select((I)(v_abs(x) < (T)0.5), 1 - erf_core(x), select((I)(x < 0), 2 - tail, tail));
}

// Polynomials in log(1 - y^2) (the form of Giles 2010) and steps of Halley's method from there.
PPGEN_FUNCTION V v_erfinv(V y) {
    V size = v_abs(y);
    V w = -v_log((1 - size) * (1 + size));
    V near = w - (T)2.5, far = v_sqrt(w) - 4;
    V x = select((I)(w < 5),
                 size * polynomial(near, -3.20866724130854476e-6, -6.15928483675630462e-7,
                                   0.000217549351974426999, -0.00126562343518474905,
                                   -0.00417675739469637133, 0.246650168538966113, 1.50140935111079192),
                 polynomial(far, 1.70597861321890365e-5, -1.0125430170770596e-4, 3.11955360731256534e-4,
                            -8.30071385988325007e-4, 1.2384814978219496e-3, 1.00948450315970074,
                            3.83978563485989695));
    for (int step = 0; step < (sizeof(T) == 8 ? 2 : 1); step++) {
        V high = leading_half(x);
        V slope = exp_of_sum(-(high * high), (high - x) * (high + x)) * (T)1.12837916709551257;
        V gap = select((I)(size < (T)0.5), v_erf(x) - size, (1 - size) - v_erfc(x));
        V ratio = gap / slope;
        x = x - ratio / (1 + x * ratio);
    }
    V edge = select((I)(size == 1), splat(INF), splat(__builtin_nan("")));
    return copy_sign(select((I)(size < 1), x, edge), y);
}
