// Recursions over chains of K states: scaled forward and backward sums, heaviest paths, draws of paths.
//
// Potentials of sums are linear, not logarithms: obs (B, T, K), transitions padded with zeros to W vectors of 8
// columns; `per_sequence` and `per_step` are the distances between their matrices, 0 where one serves all. Every
// step divides by its sum, so that nothing overflows. A sum of zero gives log_z = -inf; a state that underflowed
// beside others sets `faint`, and the backward recursion says in `lost` whether it would have counted: the
// caller works both out in logarithms. Sequence b has lengths[b] steps.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int64_t LANES = 8;

template <class S> struct Vec {
  typedef S type __attribute__((vector_size(LANES * sizeof(S)), aligned(sizeof(S))));
};

// out = left @ matrix, with matrix (K, columns); columns a multiple of 8, W vectors at a time.
template <class S, int W>
inline void product(const S* left, const S* matrix, int64_t K, int64_t columns, S* out) {
  typedef typename Vec<S>::type V;
  for (int64_t first = 0; first < columns; first += W * LANES) {
    V sums[W] = {};
    for (int64_t i = 0; i < K; ++i)
      for (int w = 0; w < W; ++w)
        sums[w] += left[i] * *reinterpret_cast<const V*>(matrix + i * columns + first + w * LANES);
    for (int w = 0; w < W; ++w) *reinterpret_cast<V*>(out + first + w * LANES) = sums[w];
  }
}

template <class S>
void times(const S* left, const S* matrix, int64_t K, int64_t columns, S* out) {
  const int64_t vectors = columns / LANES;
  if (vectors % 4 == 0) product<S, 4>(left, matrix, K, columns, out);
  else if (vectors % 3 == 0) product<S, 3>(left, matrix, K, columns, out);
  else if (vectors % 2 == 0) product<S, 2>(left, matrix, K, columns, out);
  else product<S, 1>(left, matrix, K, columns, out);
}

// Normalised messages alpha (B, T, K) and their sums before normalising, scale (B, T); both may be null.
template <class S>
void forward(int64_t B, int64_t T, int64_t K, int64_t columns, const S* obs, const S* transitions,
             int64_t per_sequence, int64_t per_step, const int64_t* lengths, S* alpha, S* scale, double* log_z,
             bool* faint) {
  std::vector<S> buffer(2 * columns);
  for (int64_t b = 0; b < B; ++b) {
    S *now = buffer.data(), *next = now + columns;
    const S* row = obs + b * T * K;
    const S* matrix = transitions + b * per_sequence;
    double total = 0;
    int small = 0;
    // The product of a few sums needs one logarithm; their number keeps it in range.
    double product_of_sums = 1;
    for (int64_t t = 0; t < lengths[b]; ++t, row += K) {
      if (t) {
        times(now, matrix, K, columns, next);
        matrix += per_step;
      }
      S sum = 0;
      for (int64_t k = 0; k < K; ++k) {
        const S weight = (t ? next[k] : S(1)) * row[k];
        sum += next[k] = weight;
        small |= weight < std::numeric_limits<S>::min();
      }
      if (!(sum > 0) || !std::isfinite(sum)) {
        total = sum == 0 ? -INFINITY : NAN;
        break;
      }
      const S inverse = S(1) / sum;
      for (int64_t k = 0; k < K; ++k) next[k] *= inverse;
      if (alpha) std::memcpy(alpha + (b * T + t) * K, next, K * sizeof(S));
      if (scale) scale[b * T + t] = sum;
      product_of_sums *= sum;
      if (product_of_sums < 1e-200 || product_of_sums > 1e200) {
        total += std::log(product_of_sums);
        product_of_sums = 1;
      }
      std::swap(now, next);
    }
    log_z[b] = total + std::log(product_of_sums);
    faint[b] = small;
  }
}

// From alpha and scale: nodes (B, T, K) are p(state at t), edges, laid out as the transitions, expected
// transitions divided by the transition's potential, weighted by weight (B,) and added up where one matrix
// serves all.
template <class S>
void backward(int64_t B, int64_t T, int64_t K, int64_t columns, const S* obs, const S* transposed,
              int64_t per_sequence, int64_t per_step, const int64_t* lengths, const S* alpha, const S* scale,
              const S* weight, S* nodes, S* edges, bool* lost) {
  typedef typename Vec<S>::type V;
  std::vector<S> buffer(2 * columns);
  const S least = std::numeric_limits<S>::min(), share_lost = std::numeric_limits<S>::epsilon();
  for (int64_t b = 0; b < B; ++b) {
    S *beta = buffer.data(), *message = beta + columns;
    const int64_t last = lengths[b] - 1;
    for (int64_t k = 0; k < K; ++k) beta[k] = 1;
    lost[b] = false;
    for (int64_t t = last; t >= 0; --t) {
      const S* here = alpha + (b * T + t) * K;
      S* out = nodes + (b * T + t) * K;
      const S sum = scale[b * T + t], floor = least / sum, limit = share_lost / K / floor;
      // A weight below the smallest normal number may have been anything up to it.
      bool counted = false;
      for (int64_t k = 0; k < K; ++k) {
        out[k] = here[k] * beta[k];
        counted |= (here[k] <= floor) & !(beta[k] <= limit);
      }
      lost[b] |= counted;
      if (!t) break;
      const S* row = obs + (b * T + t) * K;
      const S inverse = S(1) / sum;
      std::memset(message, 0, columns * sizeof(S));
      for (int64_t k = 0; k < K; ++k) message[k] = row[k] * beta[k] * inverse;
      const S* before = here - K;
      const int64_t matrix = b * per_sequence + (t - 1) * per_step;
      for (int64_t i = 0; i < K; ++i) {
        const S share = weight[b] * before[i];
        for (int64_t first = 0; first < columns; first += LANES)
          *reinterpret_cast<V*>(edges + matrix + i * columns + first) +=
              share * *reinterpret_cast<const V*>(message + first);
      }
      times(message, transposed + matrix, K, columns, beta);
    }
  }
}

// Heaviest paths (B, T), from logarithms, K columns a matrix; of equally heavy states, the lowest.
template <class S>
void heaviest(int64_t B, int64_t T, int64_t K, const S* unary, const S* pairwise, int64_t per_sequence,
              int64_t per_step, const int64_t* lengths, int64_t* path) {
  std::vector<S> buffer(2 * K);
  std::vector<int32_t> pointers(T * K);
  for (int64_t b = 0; b < B; ++b) {
    S *now = buffer.data(), *next = now + K;
    const S *row = unary + b * T * K, *matrix = pairwise + b * per_sequence;
    std::memcpy(now, row, K * sizeof(S));
    for (int64_t t = 1; t < lengths[b]; ++t, matrix += per_step) {
      row += K;
      int32_t* from = pointers.data() + t * K;
      for (int64_t j = 0; j < K; ++j) {
        next[j] = now[0] + matrix[j];
        from[j] = 0;
      }
      for (int64_t i = 1; i < K; ++i) {
        const S here = now[i];
        const S* onward = matrix + i * K;
        for (int64_t j = 0; j < K; ++j) {
          const S weight = here + onward[j];
          const bool better = weight > next[j];
          next[j] = better ? weight : next[j];
          from[j] = better ? int32_t(i) : from[j];
        }
      }
      S top = -INFINITY;
      for (int64_t j = 0; j < K; ++j) {
        next[j] += row[j];
        top = next[j] > top ? next[j] : top;
      }
      // Only differences matter, and small numbers are the exact ones.
      if (std::isfinite(top))
        for (int64_t j = 0; j < K; ++j) next[j] -= top;
      std::swap(now, next);
    }
    int64_t state = 0;
    for (int64_t k = 1; k < K; ++k)
      if (now[k] > now[state]) state = k;
    for (int64_t t = lengths[b] - 1; t >= 0; --t) {
      path[b * T + t] = state;
      state = pointers[t * K + state];
    }
  }
}

// Paths (N, B, T) drawn backwards from alpha and the transposed transitions; uniform (N, B, T).
template <class S>
void draw(int64_t N, int64_t B, int64_t T, int64_t K, int64_t columns, const S* transposed,
          int64_t per_sequence, int64_t per_step, const int64_t* lengths, const S* alpha, const S* uniform,
          int64_t* path) {
  std::vector<S> weights(K);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t b = 0; b < B; ++b) {
      const int64_t start = (n * B + b) * T;
      const S* onward = nullptr;
      for (int64_t t = lengths[b] - 1; t >= 0; --t) {
        const S* here = alpha + (b * T + t) * K;
        S total = 0;
        for (int64_t k = 0; k < K; ++k) total += weights[k] = onward ? here[k] * onward[k] : here[k];
        const S point = uniform[start + t] * total;
        int64_t state = 0;
        S passed = 0;
        for (int64_t k = 0; k < K && passed <= point; ++k)
          if (weights[k] > 0) {
            passed += weights[k];
            state = k;
          }
        path[start + t] = state;
        if (t) onward = transposed + b * per_sequence + (t - 1) * per_step + state * columns;
      }
    }
}

}  // namespace

extern "C" {

#define PPGEN_CHAINS(S, NAME)                                                                             \
  void forward_##NAME(int64_t B, int64_t T, int64_t K, int64_t columns, const S* obs,                     \
                      const S* transitions, int64_t per_sequence, int64_t per_step,                       \
                      const int64_t* lengths, S* alpha, S* scale, double* log_z, bool* faint) {           \
    forward<S>(B, T, K, columns, obs, transitions, per_sequence, per_step, lengths, alpha, scale, log_z,  \
               faint);                                                                                    \
  }                                                                                                       \
  void backward_##NAME(int64_t B, int64_t T, int64_t K, int64_t columns, const S* obs,                    \
                       const S* transposed, int64_t per_sequence, int64_t per_step,                       \
                       const int64_t* lengths, const S* alpha, const S* scale, const S* weight, S* nodes, \
                       S* edges, bool* lost) {                                                            \
    backward<S>(B, T, K, columns, obs, transposed, per_sequence, per_step, lengths, alpha, scale, weight, \
                nodes, edges, lost);                                                                      \
  }                                                                                                       \
  void heaviest_##NAME(int64_t B, int64_t T, int64_t K, const S* unary, const S* pairwise,                \
                       int64_t per_sequence, int64_t per_step, const int64_t* lengths, int64_t* path) {   \
    heaviest<S>(B, T, K, unary, pairwise, per_sequence, per_step, lengths, path);                         \
  }                                                                                                       \
  void draw_##NAME(int64_t N, int64_t B, int64_t T, int64_t K, int64_t columns, const S* transposed,      \
                   int64_t per_sequence, int64_t per_step, const int64_t* lengths, const S* alpha,        \
                   const S* uniform, int64_t* path) {                                                     \
    draw<S>(N, B, T, K, columns, transposed, per_sequence, per_step, lengths, alpha, uniform, path);      \
  }

PPGEN_CHAINS(float, float32)
PPGEN_CHAINS(double, float64)
}
