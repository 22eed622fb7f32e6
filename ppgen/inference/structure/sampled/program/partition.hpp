// Ordered partitions: families within the elements before, with a member in the last of them.
#pragma once

#include "graph.hpp"
#include "order.hpp"

namespace {

// By way of orders: graphs at either end, and the share of the moves.
constexpr int TRIES = 16;
constexpr double JUMPS = 0.2;

struct Partition {
  const Families& fam;
  int n, m;
  int place[MAX], size[MAX];
  double score[MAX];
  Set element[MAX], before[MAX + 1];  // before[i]: union of elements 0, ..., i - 1

  Partition(const Families& f, const int64_t* places) : fam(f), n(f.n) {
    for (int v = 0; v < n; ++v) place[v] = int(places[v]);
    index();
  }

  void index(int aside = -1) {
    m = 0;
    for (int i = 0; i < n; ++i) element[i] = Set(), size[i] = 0;
    for (int v = 0; v < n; ++v) {
      if (v == aside) continue;
      element[place[v]].add(v);
      ++size[place[v]];
      if (place[v] >= m) m = place[v] + 1;
    }
    before[0] = Set();
    for (int i = 1; i <= m; ++i) before[i] = before[i - 1].joined(element[i - 1]);
  }

  template <class Use, class Done>
  void admissible(int v, Use use, Done done) const {
    int i = place[v];
    fam.scan(v, i ? before[i] : Set(), [&](int64_t f) {
      if (!i || fam.meets(f, element[i - 1])) use(f);
    }, done);
  }

  double node_score(int v) const {
    if (!place[v]) return fam.empty[v];
    LogSum s(fam);
    admissible(v, [&](int64_t f) { s.add(f); }, [&](double t) { return s.settled(t); });
    return s.log();
  }

  void rescore() { for (int v = 0; v < n; ++v) score[v] = node_score(v); }

  // Gibbs: one node into any element, or into a new one anywhere, by its probability given the others.
  // Choice 2 i + 1 is to join the i-th element of the others, choice 2 i a new element before it.
  void relocate(Random& random, double beta) {
    int v = random.below(n), old = place[v];
    bool alone = size[old] == 1;
    Partition rest(*this);
    for (int u = 0; u < n; ++u) rest.place[u] = place[u] - (alone && place[u] > old);
    rest.index(v);
    int num = 2 * rest.m + 1;
    double far[MAX], joined[MAX], next[MAX], absent[MAX];
    double others[2 * MAX + 1], own[2 * MAX + 1];
    for (int p = 0; p < num; ++p) others[p] = 0.0;
    for (int u = 0; u < n; ++u) {
      if (u == v) continue;
      int i = rest.place[u];
      if (!i) {
        absent[u] = fam.empty[u], next[u] = fam.single[u * n + v];
        joined[u] = far[u] = NONE;
      } else {
        const Set& last = rest.element[i - 1];
        // Has it a member in the last element, 1; v, 2; both, 3.
        LogSum sums[4] = {LogSum(fam), LogSum(fam), LogSum(fam), LogSum(fam)};
        const LogSum &plain = sums[1], &only = sums[2], &both = sums[3];
        fam.scan(u, rest.before[i].with(v),
                 [&](int64_t f) { sums[fam.meets(f, last) + 2 * fam.holds(f, v)].add(f); },
                 [&](double t) { return plain.settled(t) && (both.settled(t) || only.settled(t)); });
        absent[u] = plain.log();
        next[u] = log_add(both.log(), only.log());
        far[u] = log_add(absent[u], both.log());
        joined[u] = log_add(absent[u], next[u]);
      }
      for (int p = 0; p < num; ++p) others[p] += rest.term(u, p, far, joined, next, absent);
    }
    auto own_score = [&](int p) {
      rest.place[v] = p / 2;
      return rest.node_score(v);
    };
    int p = Order::choose(random, beta, num, others, own, fam.tail[fam.offset[v]], own_score);
    for (int u = 0; u < n; ++u) {
      if (u == v) continue;
      score[u] = rest.term(u, p, far, joined, next, absent);
      place[u] = rest.place[u] + (p % 2 == 0 && rest.place[u] >= p / 2);
    }
    place[v] = p / 2;
    score[v] = own[p];
    index();
  }

  double term(int u, int p, const double* far, const double* joined, const double* next,
              const double* absent) const {
    int gap = p - 2 * place[u];
    return gap > 0 ? absent[u] : gap == 0 ? next[u] : gap == -1 ? joined[u] : far[u];
  }

  // Metropolis: to the places of `to`, where scores change in elements from, ..., until - 1.
  bool propose(Random& random, double beta, const int* to, int from, int until, double log_hastings) {
    Partition other(*this);
    std::memcpy(other.place, to, sizeof place);
    other.index();
    double change = 0.0;
    for (int u = 0; u < n; ++u) {
      if (to[u] < from || to[u] >= until) continue;
      other.score[u] = other.node_score(u);
      change += other.score[u] - score[u];
    }
    if (!(std::log(random.uniform()) < beta * change + log_hastings)) return false;
    copy(other);
    return true;
  }

  void copy(const Partition& o) {
    m = o.m;
    std::memcpy(place, o.place, sizeof place);
    std::memcpy(size, o.size, sizeof size);
    std::memcpy(score, o.score, sizeof score);
    std::memcpy(element, o.element, sizeof element);
    std::memcpy(before, o.before, sizeof before);
  }

  int member(Random& random, int i) const {
    int left = random.below(size[i]);
    for (int v = 0; v < n; ++v) if (place[v] == i && left-- == 0) return v;
    return -1;
  }

  // Two nodes of neighbouring elements change places. Sizes stay, so the way back is as likely.
  bool swap_neighbours(Random& random, double beta) {
    if (m < 2) return false;
    int i = random.below(m - 1), v = member(random, i), w = member(random, i + 1), to[MAX];
    std::memcpy(to, place, sizeof to);
    to[v] = i + 1, to[w] = i;
    return propose(random, beta, to, i, i + 3, 0.0);
  }

  // Two nodes of different elements change places.
  bool swap_any(Random& random, double beta) {
    int v = random.below(n), w = random.below(n), to[MAX];
    if (place[v] == place[w]) return false;
    std::memcpy(to, place, sizeof to);
    to[v] = place[w], to[w] = place[v];
    int low = place[v] < place[w] ? place[v] : place[w], high = place[v] + place[w] - low;
    return propose(random, beta, to, low, high + 2, 0.0);
  }

  // A merge takes each neighbouring pair alike; a split takes an element of two or more nodes, the
  // size of its first part, and that part, alike.
  static double log_split(int wide, int k, int c) {
    double ways = std::lgamma(k + 1.0) - std::lgamma(c + 1.0) - std::lgamma(k - c + 1.0);
    return -std::log(double(wide)) - std::log(k - 1.0) - ways;
  }

  bool split_or_merge(Random& random, double beta) {
    int to[MAX], wide = 0;
    std::memcpy(to, place, sizeof to);
    for (int i = 0; i < m; ++i) wide += size[i] > 1;
    if (random.uniform() < 0.5) {
      if (!wide) return false;
      int left = random.below(wide), i = 0;
      for (; i < m; ++i) if (size[i] > 1 && left-- == 0) break;
      int k = size[i], c = 1 + random.below(k - 1), first = c, seen = 0;
      for (int v = 0; v < n; ++v) {
        if (place[v] > i) ++to[v];
        if (place[v] != i) continue;
        if (random.uniform() * (k - seen++) < first) --first; else ++to[v];
      }
      double log_hastings = -std::log(double(m)) - log_split(wide, k, c);
      return propose(random, beta, to, i + 1, i + 3, log_hastings);
    }
    if (m < 2) return false;
    int i = random.below(m - 1), k = size[i] + size[i + 1];
    for (int v = 0; v < n; ++v) to[v] -= place[v] > i;
    int wide_after = wide - (size[i] > 1) - (size[i + 1] > 1) + 1;
    double log_hastings = log_split(wide_after, k, size[i]) + std::log(m - 1.0);
    return propose(random, beta, to, i, i + 2, log_hastings);
  }

  // By way of orders. Draw a graph G given the partition and an order o ~ q(o | G) of it, and move the order
  // by Gibbs relocations, which are reversible for its marginal weight S(o) = sum of p(G) over the graphs
  // that fit it. With K graphs from p(G | o) at either end, G itself among those of o, acceptance by the
  // ratio of their sums of q keeps p(G) q(o | G) and so p(G), whatever the number of orders of G: the
  // sum over K, over K, is an unbiased estimate of E[q(o | G) | o] (Andrieu and Roberts 2009).
  bool by_order(Random& random, int steps) {
    int at[MAX], k = 0;
    int64_t places[MAX];
    double weight[TRIES];
    for (int i = 0; i < m; ++i)
      for (int v = 0; v < n; ++v) if (place[v] == i) at[k++] = v;
    double before = NONE, after = NONE;
    before = Graph(Posterior(*this), random).order(at, &random);
    for (int i = 0; i < n; ++i) places[at[i]] = i;
    Order order(fam, places);
    Posterior here(order);
    for (int j = 1; j < TRIES; ++j) before = log_add(before, Graph(here, random).order(order.at, nullptr));
    for (int i = 0; i < steps; ++i) order.relocate(random, 1.0);
    Posterior there(order);
    std::vector<Graph> graphs;
    graphs.reserve(TRIES);
    for (int j = 0; j < TRIES; ++j) {
      graphs.emplace_back(there, random);
      weight[j] = graphs[j].order(order.at, nullptr);
      after = log_add(after, weight[j]);
    }
    if (!(std::log(random.uniform()) < after - before)) return false;
    double left = random.uniform();
    int chosen = 0;
    while (chosen + 1 < TRIES && (left -= std::exp(weight[chosen] - after)) >= 0.0) ++chosen;
    const Graph& graph = graphs[chosen];
    for (int i = 0; i < n; ++i) {
      int v = order.at[i];
      place[v] = 0;
      for (int j = 0; j < graph.size[v]; ++j)
        if (place[graph.parents[v][j]] >= place[v]) place[v] = place[graph.parents[v][j]] + 1;
    }
    index();
    rescore();
    return true;
  }

  void move(Random& random, double beta, double* counts) {
    double kind = random.uniform();
    if (beta == 1.0 && random.uniform() < JUMPS) {
      counts[1] += 1;
      int steps = int(std::pow(2.0 * n, random.uniform()));
      counts[8] += by_order(random, steps);
    } else if (kind < 0.7) { relocate(random, beta); counts[0] += 1; }
    else if (kind < 0.8) { counts[2] += 1; counts[3] += swap_neighbours(random, beta); }
    else if (kind < 0.9) { counts[2] += 1; counts[3] += swap_any(random, beta); }
    else { counts[4] += 1; counts[5] += split_or_merge(random, beta); }
  }
};

}  // namespace
