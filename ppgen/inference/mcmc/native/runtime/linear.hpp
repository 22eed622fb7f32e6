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

// Some rows of a triangular system, from `first` on, with what is known of x taken off: as many at once as
// the registers hold, so that x is read once for all of them.
template <int ROWS, class A>
PPGEN_INLINE void solve_rows(const A *a, const V *b, V *x, long stride, long down, long across, int first,
                             int begin, int end, bool forward, bool unitriangular) {
    V sum[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) sum[r] = b[(first + r) * stride];
    for (int k = begin; k < end; k++)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) sum[r] = sum[r] - a[(first + r) * down + k * across] * x[k * stride];
#pragma GCC unroll 8
    for (int step = 0; step < ROWS; step++) {
        int r = forward ? step : ROWS - 1 - step, i = first + r;
#pragma GCC unroll 8
        for (int q = 0; q < ROWS; q++)
            if (forward ? q < r : q > r) sum[r] = sum[r] - a[i * down + (first + q) * across] * sum[q];
        if (!unitriangular) sum[r] = sum[r] / (a[i * down + i * across] - V{});
        x[i * stride] = sum[r];
    }
}

// x (n, m) with op(a) x = b (n, m); op(a) is a or its transpose, a (n, n) triangular, of lanes (A = V) or the
// same for all (A = T). x may be b.
template <class A>
PPGEN_FUNCTION void triangular_solve(const A *a, const V *b, V *x, int n, int m, bool upper, bool transpose,
                                     bool unitriangular) {
    constexpr int ROWS = 8;
    bool forward = upper == transpose;
    long down = transpose ? 1 : n, across = transpose ? n : 1;
    for (int j = 0; j < m; j++) {
        int done = 0;
        for (; done + ROWS <= n; done += ROWS) {
            int first = forward ? done : n - done - ROWS;
            solve_rows<ROWS>(a, b + j, x + j, m, down, across, first, forward ? 0 : first + ROWS,
                             forward ? first : n, forward, unitriangular);
        }
        for (; done < n; done++) {
            int first = forward ? done : n - done - 1;
            solve_rows<1>(a, b + j, x + j, m, down, across, first, forward ? 0 : first + 1,
                          forward ? first : n, forward, unitriangular);
        }
    }
}
