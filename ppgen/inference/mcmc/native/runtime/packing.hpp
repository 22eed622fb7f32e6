// Between the tensors of the caller, (chains, numel), and groups of lanes, (G, numel, W).
//
// The caller's floats are T, its integers int64 and its bools bytes; packed, the last two are I, a bool
// as -1 or 0. Lanes beyond the last chain hold a copy of chain 0.
#pragma once

#include "lanes.hpp"

// Moves of numbers gain nothing from being optimised further, and compile sooner.
#if defined(__clang__)
#define PPGEN_PLAIN
#else
#define PPGEN_PLAIN __attribute__((optimize("O1")))
#endif

enum Kind { FLOAT = 0, INT = 1, BOOL = 2 };

template <class From, class To>
PPGEN_PLAIN static void pack(const From *from, To *to, int64_t chains, int64_t numel, To sign) {
    int64_t groups = (chains + W - 1) / W;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t i = 0; i < numel; i++)
            for (int64_t lane = 0; lane < W; lane++) {
                int64_t chain = g * W + lane < chains ? g * W + lane : 0;
                to[(g * numel + i) * W + lane] = sign * (To)from[chain * numel + i];
            }
}

template <class From, class To>
PPGEN_PLAIN static void unpack(const From *from, To *to, int64_t chains, int64_t numel, int64_t repeats, To sign) {
    int64_t groups = (chains + W - 1) / W;
    for (int64_t r = 0; r < repeats; r++, from += groups * numel * W, to += chains * numel)
        for (int64_t g = 0; g < groups; g++) {
            int64_t lanes = chains - g * W < W ? chains - g * W : W;
            for (int64_t lane = 0; lane < lanes; lane++)
                for (int64_t i = 0; i < numel; i++)
                    to[(g * W + lane) * numel + i] = sign * (To)from[(g * numel + i) * W + lane];
        }
}

extern "C" void ppgen_pack(int64_t kind, const void *from, void *to, int64_t chains, int64_t numel) {
    if (kind == FLOAT) pack((const T *)from, (T *)to, chains, numel, (T)1);
    if (kind == INT) pack((const int64_t *)from, (TI *)to, chains, numel, (TI)1);
    if (kind == BOOL) pack((const uint8_t *)from, (TI *)to, chains, numel, (TI)-1);
}

// `repeats` packed tensors, one after the other.
extern "C" void ppgen_unpack(int64_t kind, const void *from, void *to, int64_t chains, int64_t numel,
                             int64_t repeats) {
    if (kind == FLOAT) unpack((const T *)from, (T *)to, chains, numel, repeats, (T)1);
    if (kind == INT) unpack((const TI *)from, (int64_t *)to, chains, numel, repeats, (int64_t)1);
    if (kind == BOOL) unpack((const TI *)from, (int8_t *)to, chains, numel, repeats, (int8_t)-1);
}
