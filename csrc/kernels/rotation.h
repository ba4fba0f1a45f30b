// The rotation of rows that are rounded with one scale; see kRotationRun.
#pragma once

#include "level.h"

namespace interleaf::INTERLEAF_LEVEL {

// A row of 2^halvings parts, a run of each at a time; returns the largest magnitude. y may be x.
template <int halvings, typename X>
INTERLEAF_INLINE float rotate_parts(const X* x, int k, float* y) {
  constexpr int kParts = 1 << halvings;
  const int part = k / kParts;
  F32x16 top = broadcast(0.0f);
  for (int i = 0; i < part; i += kLanes) {
    F32x16 run[kParts];
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) run[p] = load(x + p * part + i);
#pragma GCC unroll 2
    for (int half = kParts / 2; half > 0; half /= 2)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p)
        if ((p & half) == 0) {
          const F32x16 low = run[p], high = run[p + half];
          run[p] = low + high;
          run[p + half] = low - high;
        }
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      const F32x16 mixed = butterfly<1>(butterfly<2>(butterfly<4>(butterfly<8>(run[p]))));
      top = largest_magnitude(top, mixed);
      store(y + p * part + i, mixed);
    }
  }
  return reduce_max(top);
}

template <typename X>
INTERLEAF_INLINE float rotate(const X* x, int k, float* y) {
  static_assert(kLanes == kRotationRun);
  switch (rotation_halvings(k)) {
    case 2: return rotate_parts<2>(x, k, y);
    case 1: return rotate_parts<1>(x, k, y);
    default: return rotate_parts<0>(x, k, y);
  }
}

}  // namespace interleaf::INTERLEAF_LEVEL
