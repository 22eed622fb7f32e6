// Scaled forward and backward recursions of chains with K states and one K x K matrix of transitions.
//
// Potentials are linear, not logarithms: obs (B, T, K), transitions padded with zeros to W vectors of 8
// columns. Every step divides by its sum, so that nothing overflows; what underflows to a sum of zero is
// marked by log_z = -inf, and the caller works it out in logarithms. Sequence b has lengths[b] steps.

#include <cmath>
#include <cstdint>
#include <cstring>
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
             const int64_t* lengths, S* alpha, S* scale, double* log_z) {
  std::vector<S> buffer(2 * columns);
  for (int64_t b = 0; b < B; ++b) {
    S *now = buffer.data(), *next = now + columns;
    const S* row = obs + b * T * K;
    double total = 0;
    // The product of a few sums needs one logarithm; their number keeps it in range.
    double product_of_sums = 1;
    for (int64_t t = 0; t < lengths[b]; ++t, row += K) {
      if (t) times(now, transitions, K, columns, next);
      S sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += next[k] = (t ? next[k] : S(1)) * row[k];
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
  }
}

// From alpha and scale: nodes (B, T, K) are p(state at t), edges (K, K) the sum over sequences, weighted
// by weight (B,), of expected transitions divided by the transition's potential.
template <class S>
void backward(int64_t B, int64_t T, int64_t K, int64_t columns, const S* obs, const S* transposed,
              const int64_t* lengths, const S* alpha, const S* scale, const S* weight, S* nodes, S* edges) {
  typedef typename Vec<S>::type V;
  std::vector<S> buffer(2 * columns), sums(K * columns);
  for (int64_t b = 0; b < B; ++b) {
    S *beta = buffer.data(), *message = beta + columns;
    const int64_t last = lengths[b] - 1;
    for (int64_t k = 0; k < K; ++k) beta[k] = 1;
    for (int64_t t = last; t >= 0; --t) {
      const S* here = alpha + (b * T + t) * K;
      S* out = nodes + (b * T + t) * K;
      for (int64_t k = 0; k < K; ++k) out[k] = here[k] * beta[k];
      if (!t) break;
      const S* row = obs + (b * T + t) * K;
      const S inverse = S(1) / scale[b * T + t];
      std::memset(message, 0, columns * sizeof(S));
      for (int64_t k = 0; k < K; ++k) message[k] = row[k] * beta[k] * inverse;
      const S* before = here - K;
      for (int64_t i = 0; i < K; ++i) {
        const S share = weight[b] * before[i];
        for (int64_t first = 0; first < columns; first += LANES)
          *reinterpret_cast<V*>(&sums[i * columns + first]) +=
              share * *reinterpret_cast<const V*>(message + first);
      }
      times(message, transposed, K, columns, beta);
    }
  }
  for (int64_t i = 0; i < K; ++i)
    for (int64_t j = 0; j < K; ++j) edges[i * K + j] = sums[i * columns + j];
}

}  // namespace

extern "C" {

#define PPGEN_CHAINS(S, NAME)                                                                             \
  void forward_##NAME(int64_t B, int64_t T, int64_t K, int64_t columns, const S* obs,                     \
                      const S* transitions, const int64_t* lengths, S* alpha, S* scale, double* log_z) {  \
    forward<S>(B, T, K, columns, obs, transitions, lengths, alpha, scale, log_z);                         \
  }                                                                                                       \
  void backward_##NAME(int64_t B, int64_t T, int64_t K, int64_t columns, const S* obs,                    \
                       const S* transposed, const int64_t* lengths, const S* alpha, const S* scale,       \
                       const S* weight, S* nodes, S* edges) {                                             \
    backward<S>(B, T, K, columns, obs, transposed, lengths, alpha, scale, weight, nodes, edges);          \
  }

PPGEN_CHAINS(float, float32)
PPGEN_CHAINS(double, float64)
}
