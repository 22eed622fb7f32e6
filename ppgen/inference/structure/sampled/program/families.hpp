// What states of chains share: sets of nodes, random numbers, sums of families.
//
// Families of a node are sorted by falling score, so that sums over those that fit a state end as soon as
// the rest cannot change them: `tail[f]` is the logsumexp of rows f, f + 1, ... Sets of nodes are
// PPGEN_WORDS words of bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int W = PPGEN_WORDS, MAX = 64 * W, BLOCK = 16;
// What lies so many nats below a sum is left out: less than 1e-13 of it.
constexpr double CUT = 30.0;
constexpr double NONE = -INFINITY;

using Lanes = uint64_t __attribute__((vector_size(64)));
constexpr Lanes ONE_BIT = {1, 2, 4, 8, 16, 32, 64, 128};

struct Set {
  uint64_t w[W] = {};
  void add(int v) { w[v >> 6] |= uint64_t(1) << (v & 63); }
  Set with(int v) const { Set s = *this; s.add(v); return s; }
  Set joined(const Set& o) const { Set s; for (int i = 0; i < W; ++i) s.w[i] = w[i] | o.w[i]; return s; }
};

// SplitMix64 (Steele, Lea and Flood 2014): the number of a draw is hashed with the stream's key.
struct Random {
  uint64_t key, counter;
  uint64_t bits() {
    uint64_t z = key + 0x9E3779B97F4A7C15ull * ++counter;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  double uniform() { return (double(bits() >> 11) + 0.5) * 0x1p-53; }  // inside (0, 1)
  int below(int n) { return int(uniform() * n); }
};

double log_add(double a, double b) {
  double high = a > b ? a : b, low = a > b ? b : a;
  return low == NONE ? high : high + std::log1p(std::exp(low - high));
}

struct Families {
  int n;
  int64_t total;
  const int64_t* offset;  // (n + 1): rows of each node, filled up to whole blocks
  const uint64_t* mask;   // (W, total); filled rows hold every node
  const double *score, *tail;
  const double *base, *weight;  // a row's score is base + log(weight); few different bases a node
  const double *empty, *single;  // (n), (n, n): scores of no parent, and of [v, p] the parent p

  bool within(int64_t f, const Set& outside) const {
    uint64_t extra = 0;
    for (int i = 0; i < W; ++i) extra |= mask[i * total + f] & outside.w[i];
    return !extra;
  }
  template <class Use>
  void members(int64_t f, Use use) const {
    for (int i = 0; i < W; ++i)
      for (uint64_t bits = mask[i * total + f]; bits; bits &= bits - 1) use(64 * i + __builtin_ctzll(bits));
  }
  int holds(int64_t f, int v) const { return mask[(v >> 6) * total + f] >> (v & 63) & 1; }
  bool meets(int64_t f, const Set& s) const { return !within(f, s); }

  // Bit j says whether row f + j is within: one comparison of vectors, and no branches.
  uint64_t fitting(int64_t f, const Set& outside) const {
    Lanes found = {};
    for (int half = 0; half < BLOCK / 8; ++half) {
      Lanes extra = {}, sets;
      for (int i = 0; i < W; ++i) {
        std::memcpy(&sets, mask + i * total + f + 8 * half, sizeof sets);
        extra |= sets & outside.w[i];
      }
      found |= (Lanes)(extra == 0) & (ONE_BIT << (8 * half));
    }
    uint64_t bits = 0;
    for (int j = 0; j < 8; ++j) bits |= found[j];
    return bits;
  }

  // Calls `use(row)` for the rows of v inside `allowed`, until `done(tail)`.
  template <class Use, class Done>
  void scan(int v, const Set& allowed, Use use, Done done) const {
    Set outside;
    for (int i = 0; i < W; ++i) outside.w[i] = ~allowed.w[i];
    for (int64_t f = offset[v]; f < offset[v + 1]; f += BLOCK) {
      if (done(tail[f])) return;
      uint64_t bits = fitting(f, outside);
      for (; bits; bits &= bits - 1) use(f + __builtin_ctzll(bits));
    }
  }
};

// Of rows that come in falling order, all of one node.
struct LogSum {
  const Families& fam;
  double first = NONE, base = 0.0, sum = 0.0;

  explicit LogSum(const Families& f) : fam(f) {}
  double relative(int64_t f) const {  // the row's weight, as a multiple of exp(base)
    double gap = fam.base[f] - base;
    return gap == 0.0 ? fam.weight[f] : fam.weight[f] * std::exp(gap);
  }
  void add(int64_t f) {
    if (sum == 0.0) first = fam.score[f], base = fam.base[f];
    sum += relative(f);
  }
  bool settled(double rest) const { return rest < first - CUT; }
  double log() const { return sum > 0.0 ? base + std::log(sum) : NONE; }
};

}  // namespace
