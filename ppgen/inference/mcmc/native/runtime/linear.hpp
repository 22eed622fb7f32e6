// Small dense linear algebra, one matrix a lane; matrices are row-major.
#pragma once

#include "lanes.hpp"

// The lower triangular l (n, n) with l l' = a (n, n), of which the lower triangle is read; zeros above
// the diagonal. Where a lane's matrix is not positive definite, all of its triangle is NaN. l may be a.
PPGEN_FUNCTION void cholesky(const V *a, V *l, int n) {
    I fine = splat_int(-1);
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < i; j++) {
            V sum = a[i * n + j];
            for (int k = 0; k < j; k++) sum = sum - l[i * n + k] * l[j * n + k];
            l[i * n + j] = sum / l[j * n + j];
        }
        V pivot = a[i * n + i];
        for (int k = 0; k < i; k++) pivot = pivot - l[i * n + k] * l[i * n + k];
        fine = fine & (I)(pivot > 0);
        l[i * n + i] = v_sqrt(pivot);
    }
    bool clean = all(fine);
    for (int i = 0; i < n; i++) {
        for (int j = i + 1; j < n; j++) l[i * n + j] = V{};
        if (!clean)
            for (int j = 0; j <= i; j++)
                l[i * n + j] = select(fine, l[i * n + j], splat(__builtin_nan("")));
    }
}

// x (n, m) with op(a) x = b (n, m); op(a) is a or its transpose, a (n, n) triangular. x may be b.
PPGEN_FUNCTION void triangular_solve(const V *a, const V *b, V *x, int n, int m, bool upper,
                                     bool transpose, bool unitriangular) {
    bool forward = upper == transpose;
    int down = transpose ? 1 : n, across = transpose ? n : 1;
    for (int step = 0; step < n; step++) {
        int i = forward ? step : n - 1 - step;
        int first = forward ? 0 : i + 1, last = forward ? i : n;
        V inverse = unitriangular ? splat(1) : 1 / a[i * n + i];
        for (int j = 0; j < m; j++) {
            V sum = b[i * m + j];
            for (int k = first; k < last; k++) sum = sum - a[i * down + k * across] * x[k * m + j];
            x[i * m + j] = unitriangular ? sum : sum * inverse;
        }
    }
}
