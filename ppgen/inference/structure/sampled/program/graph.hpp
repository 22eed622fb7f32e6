// Graphs given the state of a chain, and orders of graphs.
#pragma once

#include "families.hpp"

namespace {

// Graphs given a state: nodes take their families apart from one another.
struct Posterior {
  struct Hit { int64_t row; double weight; };
  const Families& fam;
  std::vector<Hit> hits;
  int begin[MAX + 1];
  double sum[MAX];

  template <class State>
  explicit Posterior(const State& s) : fam(s.fam) {
    for (int v = 0; v < fam.n; ++v) {
      LogSum total(fam);
      begin[v] = int(hits.size());
      s.admissible(v,
          [&](int64_t f) {
            total.add(f);
            hits.push_back({f, total.relative(f)});
          },
          [&](double t) { return total.settled(t); });
      sum[v] = total.sum;
    }
    begin[fam.n] = int(hits.size());
  }

  int64_t sample(Random& random, int v) const {
    double left = random.uniform() * sum[v];
    int h = begin[v];
    while (h + 1 < begin[v + 1] && (left -= hits[h].weight) >= 0.0) ++h;
    return hits[h].row;
  }

  // Adds the probabilities of the edges.
  void add(double* edges) const {
    for (int v = 0; v < fam.n; ++v)
      for (int h = begin[v]; h < begin[v + 1]; ++h)
        fam.members(hits[h].row, [&](int p) { edges[p * fam.n + v] += hits[h].weight / sum[v]; });
  }
};

struct Graph {
  int n;
  int64_t row[MAX];
  int16_t size[MAX], parents[MAX][MAX];

  Graph(const Posterior& posterior, Random& random) : n(posterior.fam.n) {
    for (int v = 0; v < n; ++v) {
      row[v] = posterior.sample(random, v);
      size[v] = 0;
      posterior.fam.members(row[v], [&](int p) { parents[v][size[v]++] = int16_t(p); });
    }
  }

  // An order of the graph, near to uniform: next comes one of the nodes whose parents have all come, by
  // its mass, which is 1 and the masses of its children, each shared among its parents. In forests, where
  // a node has one parent, this is uniform (the hook formula). Returns log q(at | graph).
  // `at` is an order of the graph when called; where `random` is given, it is drawn anew.
  double order(int* at, Random* random) const {
    double mass[MAX], total = 0.0, ratio = 1.0, log_probability = 0.0;
    int left[MAX], num = 0;
    int16_t open[MAX];
    int16_t children[MAX][MAX], num_children[MAX];
    for (int v = 0; v < n; ++v) mass[v] = 1.0, num_children[v] = 0, left[v] = size[v];
    for (int i = n - 1; i >= 0; --i) {
      int v = at[i];
      for (int j = 0; j < size[v]; ++j) {
        int p = parents[v][j];
        mass[p] += mass[v] / size[v];
        children[p][num_children[p]++] = int16_t(v);
      }
      if (!size[v]) total += mass[v];
    }
    if (random)
      for (int v = 0; v < n; ++v) if (!size[v]) open[num++] = int16_t(v);
    for (int i = 0; i < n; ++i) {
      if (random) {
        double sum = 0.0;
        for (int k = 0; k < num; ++k) sum += mass[open[k]];
        double rest = random->uniform() * sum;
        int k = 0;
        while (k + 1 < num && (rest -= mass[open[k]]) >= 0.0) ++k;
        at[i] = open[k];
        open[k] = open[--num];
      }
      int v = at[i];
      ratio *= mass[v] / total;
      if (ratio < 1e-200) log_probability += std::log(ratio), ratio = 1.0;
      total -= mass[v];
      for (int j = 0; j < num_children[v]; ++j) {
        int c = children[v][j];
        if (--left[c]) continue;
        total += mass[c];
        if (random) open[num++] = int16_t(c);
      }
    }
    return log_probability + std::log(ratio);
  }
};

}  // namespace
