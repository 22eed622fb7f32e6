// Random numbers, one stream a lane: xoshiro128++ (Blackman and Vigna 2021).
#pragma once

#include "elementary.hpp"
#include "trigonometric.hpp"

// Draws for one group of lanes. The state is (4, W) 32-bit words.
//
// `normal` makes two numbers at once and keeps the second for the next call, until `only` or `store`. The
// stream of a lane moves on only where it is wanted: so its draws are the same whatever other lanes do, and
// however transitions are spread over calls.
class Rng {
  public:
    explicit Rng(uint32_t *state) : home_(state) { __builtin_memcpy(s_, state, sizeof(s_)); }

    void store() {
        __builtin_memcpy(home_, s_, sizeof(s_));
        has_spare_ = false;
    }

    // From now on only the streams of these lanes move on; what others are given means nothing.
    void only(I lanes) {
        wanted_ = __builtin_convertvector(lanes, I32);
        has_spare_ = false;
    }

    // In [0, 1): a multiple of 2^-24 or 2^-53.
    V uniform() {
#ifdef PPGEN_DOUBLE
        V high = whole(next() >> 5), low = whole(next() >> 6);
        return (high * 0x1p26 + low) * 0x1p-53;
#else
        return whole(next() >> 8) * 0x1p-24f;
#endif
    }

    // Standard normal, by Box and Muller (1958).
    V normal() {
        if (has_spare_) {
            has_spare_ = false;
            return spare_;
        }
        V radius = v_sqrt(-2 * log_core(positive_uniform()));
        SinCos angle = sin_cos_of_turns(uniform());
        spare_ = radius * angle.sin;
        has_spare_ = true;
        return radius * angle.cos;
    }

  private:
    U32 s_[4];
    I32 wanted_ = 0 == I32{};
    V spare_ = {};
    uint32_t *home_;
    bool has_spare_ = false;

    static V whole(U32 bits) { return __builtin_convertvector((I32)bits, V); }

    // In (0, 1], fine near zero, so that normals reach far out.
    V positive_uniform() {
#ifdef PPGEN_DOUBLE
        return 1 - uniform();
#else
        return whole(next() >> 1) * 0x1p-31f + 0x1p-32f;
#endif
    }

    static U32 rotated(U32 x, int by) { return (x << by) | (x >> (32 - by)); }

    U32 next() {
        U32 s0 = s_[0], s1 = s_[1], s2 = s_[2] ^ s_[0], s3 = s_[3] ^ s_[1];
        U32 result = rotated(s0 + s_[3], 7) + s0;
        s_[0] = wanted_ ? s0 ^ s3 : s0;
        s_[1] = wanted_ ? s1 ^ s2 : s1;
        s_[2] = wanted_ ? s2 ^ (s1 << 9) : s_[2];
        s_[3] = wanted_ ? rotated(s3, 11) : s_[3];
        return result;
    }
};
