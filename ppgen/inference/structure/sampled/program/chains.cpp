// Markov chains over orders and over ordered partitions of up to 64 PPGEN_WORDS nodes.
//
// A state gives every node a place: its position in the order, or the number of its element in the
// partition. Entry points and their arguments are at the end.
#include "partition.hpp"

namespace {

struct Arguments {
  Families fam;
  const double* betas;
  int64_t *places;       // (T, n)
  double* scores;        // (T, n)
  const uint64_t* keys;  // (T + 1): one stream a temperature, and one of exchanges and draws
  uint64_t* counters;    // (T + 1)
  int32_t* rows;         // (S, n)
  double *log_scores, *edges, *counts;  // (S), (n, n), (9)
  int64_t num_temperatures, num_draws, sweeps, keep;

  Arguments(const void* const* p, const int64_t* k) {
    fam = {int(k[0]), k[1], (const int64_t*)p[0], (const uint64_t*)p[1], (const double*)p[2],
           (const double*)p[3], (const double*)p[4], (const double*)p[5], (const double*)p[6],
           (const double*)p[7]};
    betas = (const double*)p[8];
    places = (int64_t*)p[9];
    scores = (double*)p[10];
    keys = (const uint64_t*)p[11];
    counters = (uint64_t*)p[12];
    rows = (int32_t*)p[13];
    log_scores = (double*)p[14];
    edges = (double*)p[15];
    counts = (double*)p[16];
    num_temperatures = k[3], num_draws = k[4], sweeps = k[5], keep = k[6];
  }
};

template <class State>
void run(const Arguments& a) {
  int n = a.fam.n, num = int(a.num_temperatures);
  std::vector<State> states;
  std::vector<Random> randoms;
  for (int t = 0; t <= num; ++t) randoms.push_back({a.keys[t], a.counters[t]});
  for (int t = 0; t < num; ++t) {
    states.emplace_back(a.fam, a.places + t * n);
    std::memcpy(states[t].score, a.scores + t * n, n * sizeof(double));
  }
  std::vector<int> at(num);  // the state at each temperature
  for (int t = 0; t < num; ++t) at[t] = t;
  auto total = [&](int t) {
    double sum = 0.0;
    for (int v = 0; v < n; ++v) sum += states[at[t]].score[v];
    return sum;
  };
  double unused[9] = {};
  for (int64_t s = 0; s < a.num_draws; ++s) {
    for (int64_t sweep = 0; sweep < a.sweeps; ++sweep) {
      for (int t = 0; t < num; ++t)
        for (int i = 0; i < n; ++i) states[at[t]].move(randoms[t], a.betas[t], t ? unused : a.counts);
      for (int t = 0; t + 1 < num; ++t) {
        double gain = (a.betas[t] - a.betas[t + 1]) * (total(t + 1) - total(t));
        bool taken = std::log(randoms[num].uniform()) < gain;
        a.counts[6] += 1;
        a.counts[7] += taken;
        if (taken) { int k = at[t]; at[t] = at[t + 1]; at[t + 1] = k; }
      }
    }
    if (!a.keep) continue;
    Posterior posterior(states[at[0]]);
    posterior.add(a.edges);
    a.log_scores[s] = 0.0;
    for (int v = 0; v < n; ++v) {
      int64_t row = posterior.sample(randoms[num], v);
      a.rows[s * n + v] = int32_t(row - a.fam.offset[v]);
      a.log_scores[s] += a.fam.score[row];
    }
  }
  for (int t = 0; t < num; ++t) {
    const State& state = states[at[t]];
    for (int v = 0; v < n; ++v) a.places[t * n + v] = state.place[v], a.scores[t * n + v] = state.score[v];
  }
  for (int t = 0; t <= num; ++t) a.counters[t] = randoms[t].counter;
}

template <class State>
void score(const Arguments& a) {
  int n = a.fam.n;
  for (int t = 0; t < int(a.num_temperatures); ++t) {
    State state(a.fam, a.places + t * n);
    state.rescore();
    std::memcpy(a.scores + t * n, state.score, n * sizeof(double));
  }
}

}  // namespace

// Numbers: n, rows of all families, kind (0 orders, 1 partitions), temperatures T, draws S, sweeps of n
// moves a draw, whether to draw graphs.
extern "C" void ppgen_graph_chain(const void* const* pointers, const int64_t* numbers) {
  Arguments a(pointers, numbers);
  if (numbers[2]) run<Partition>(a); else run<Order>(a);
}

// Scores of the nodes in each of T states.
extern "C" void ppgen_graph_scores(const void* const* pointers, const int64_t* numbers) {
  Arguments a(pointers, numbers);
  if (numbers[2]) score<Partition>(a); else score<Order>(a);
}
