// Root mean square normalization of one row. (Zhang & Sennrich 2019)
#pragma once

#include "level.h"

namespace interleaf::INTERLEAF_LEVEL {

// Sum of squares in sixteen lanes, then in a fixed tree.
INTERLEAF_INLINE float sum_of_squares(const float* x, int width) {
  F32x16 sum = broadcast(0.0f);
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const F32x16 v = load(x + i);
    sum = fma(v, v, sum);
  }
  if (i < width) {
    const F32x16 v = load_partial(x + i, width - i);
    sum = fma(v, v, sum);
  }
  return reduce_add(sum);
}

template <typename Y>
INTERLEAF_INLINE void normalize_row(const float* x, const float* weight, Y* y, int width, float eps) {
  const float mean = sum_of_squares(x, width) / static_cast<float>(width);
  const F32x16 scale = broadcast(1.0f / __builtin_sqrtf(mean + eps));
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) store(y + i, load(x + i) * scale * load(weight + i));
  if (i < width)
    store_partial(y + i, load_partial(x + i, width - i) * scale * load_partial(weight + i, width - i), width - i);
}

}  // namespace interleaf::INTERLEAF_LEVEL
