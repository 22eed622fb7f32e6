// Orders: families within what comes before.
#pragma once

#include "families.hpp"

namespace {

struct Order {
  const Families& fam;
  int n;
  int at[MAX];      // node at each position
  int place[MAX];
  double score[MAX];

  Order(const Families& f, const int64_t* places) : fam(f), n(f.n) {
    for (int v = 0; v < n; ++v) place[v] = int(places[v]), at[place[v]] = v;
  }

  template <class Use, class Done>
  void admissible(int v, Use use, Done done) const {
    Set before;
    for (int i = 0; i < place[v]; ++i) before.add(at[i]);
    fam.scan(v, before, use, done);
  }

  double node_score(int v, const Set& before) const {
    LogSum s(fam);
    fam.scan(v, before, [&](int64_t f) { s.add(f); }, [&](double t) { return s.settled(t); });
    return s.log();
  }

  void rescore() {
    Set before;
    for (int i = 0; i < n; ++i) { score[at[i]] = node_score(at[i], before); before.add(at[i]); }
  }

  // Gibbs: one node to any position, by its probability given the order of the others.
  void relocate(Random& random, double beta) {
    int v = random.below(n), rest[MAX], m = 0;
    double without[MAX], with[MAX], others[MAX], own[MAX];
    for (int i = 0; i < n; ++i) if (at[i] != v) rest[m++] = at[i];
    Set before[MAX];
    for (int i = 0; i < m; ++i) before[i + 1] = before[i].with(rest[i]);
    for (int i = 0; i < m; ++i) {
      LogSum sums[2] = {LogSum(fam), LogSum(fam)};  // of families without v, and with
      fam.scan(rest[i], before[i].with(v), [&](int64_t f) { sums[fam.holds(f, v)].add(f); },
               [&](double t) { return sums[0].settled(t); });
      without[i] = sums[0].log();
      with[i] = log_add(without[i], sums[1].log());
    }
    for (int p = 0; p < n; ++p) {
      others[p] = 0.0;
      for (int i = 0; i < m; ++i) others[p] += p <= i ? with[i] : without[i];
    }
    auto own_score = [&](int p) { return node_score(v, before[p]); };
    int p = choose(random, beta, n, others, own, fam.tail[fam.offset[v]], own_score);
    for (int i = 0; i < m; ++i) {
      score[rest[i]] = p <= i ? with[i] : without[i];
      at[p <= i ? i + 1 : i] = rest[i];
    }
    at[p] = v;
    score[v] = own[p];
    for (int i = 0; i < n; ++i) place[at[i]] = i;
  }

  // Draws p with probability proportional to exp(beta (others + own)); own scores, at most `bound`,
  // are computed only where they can matter.
  template <class Own>
  static int choose(Random& random, double beta, int num, const double* others, double* own, double bound,
                    Own own_score) {
    double total[2 * MAX + 1], best = NONE;
    bool open[2 * MAX + 1];
    for (int p = 0; p < num; ++p) total[p] = NONE, open[p] = others[p] > NONE;
    for (;;) {
      int next = -1;
      for (int p = 0; p < num; ++p) if (open[p] && (next < 0 || others[p] > others[next])) next = p;
      if (next < 0 || beta * (others[next] + bound - best) < -CUT) break;
      open[next] = false;
      own[next] = own_score(next);
      total[next] = others[next] + own[next];
      if (total[next] > best) best = total[next];
    }
    double sum = 0.0;
    for (int p = 0; p < num; ++p) sum += total[p] = std::exp(beta * (total[p] - best));
    double left = random.uniform() * sum;
    int last = 0;
    for (int p = 0; p < num; ++p) {
      if (total[p] > 0.0) { last = p; left -= total[p]; }
      if (left < 0.0) break;
    }
    return last;
  }

  // Metropolis: two nodes change places.
  bool swap(Random& random, double beta) {
    int i = random.below(n), j = random.below(n - 1);
    j += j >= i;
    if (j < i) { int k = i; i = j; j = k; }
    double fresh[MAX], change = 0.0;
    Set before;
    for (int p = 0; p < i; ++p) before.add(at[p]);
    for (int p = i; p <= j; ++p) {
      int u = at[p == i ? j : p == j ? i : p];
      fresh[p] = node_score(u, before);
      change += fresh[p] - score[u];
      before.add(u);
    }
    if (!(std::log(random.uniform()) < beta * change)) return false;
    int k = at[i]; at[i] = at[j]; at[j] = k;
    for (int p = i; p <= j; ++p) score[at[p]] = fresh[p], place[at[p]] = p;
    return true;
  }

  void move(Random& random, double beta, double* counts) {
    double kind = random.uniform();
    if (n < 2 || kind < 0.85) { relocate(random, beta); counts[0] += 1; return; }
    counts[2] += 1;
    counts[3] += swap(random, beta);
  }
};

}  // namespace
