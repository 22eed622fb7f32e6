// Everything that a generated program needs: include this file only.
//
// A generated program holds one chain in each lane of a vector. PPGEN_DOUBLE makes the lanes double
// instead of float; PPGEN_LANES is their number W, by default as many as fill 64 bytes.
// The code uses the vector extensions of gcc and clang and no header but <stdint.h>, so that an
// empty program compiles in well under a second.
#pragma once

#include "lanes.hpp"

#include "elementary.hpp"

#include "trigonometric.hpp"

#include "error_function.hpp"

#include "gamma.hpp"

#include "random.hpp"

#include "linear.hpp"
