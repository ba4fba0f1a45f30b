// The two products of attention, queries by keys and weights by values, in registers and on tiles.
//
// Groups of 16 keys lie scattered, too short for the hardware to see a stream. So whoever works on a group asks for the
// line of the group `ahead` that lies where it is itself: a chunk's values while its keys are worked on, then the keys
// of the next chunk.
#pragma once

#include "attention_softmax.h"

namespace interleaf::INTERLEAF_LEVEL {

// scores[row, key] = queries . keys, two groups at a time (the last may be doubled).
template <typename A, typename B>
void score_keys(const A* queries, int num_rows, int padded, const B* const* keys, const B* const* ahead, int num_groups,
                float* scores) {
  constexpr int kStride = kPairOf<B> * kKeyGroup;
  for (int g = 0; g < num_groups; g += 2) {
    const int second = g + 1 < num_groups ? g + 1 : g;
    const B *low = keys[g], *high = keys[second], *low_ahead = ahead[g], *high_ahead = ahead[second];
    const auto columns = [=](int j) __attribute__((always_inline)) {
      prefetch(low_ahead + j * kStride);
      prefetch(high_ahead + j * kStride);
      return Columns<B>{low + j * kStride, high + j * kStride};
    };
    for_row_blocks(num_rows, [&]<int M>(int row) __attribute__((always_inline)) {
      F32x16 dot[M][2];
      clear<M>(dot);
      product<M>(queries + static_cast<ptrdiff_t>(row) * padded, padded, padded, columns, static_cast<const B*>(nullptr),
                 dot);
      float* to = scores + static_cast<ptrdiff_t>(row) * kScoreStride + g * kKeyGroup;
#pragma GCC unroll 12
      for (int r = 0; r < M; ++r) {
        store(to + r * kScoreStride, dot[r][0]);
        store(to + r * kScoreStride + kKeyGroup, dot[r][1]);
      }
    });
  }
}

// sums[row] = weights . values over `num_keys` keys.
template <typename A, typename B>
void sum_values(const A* weights, int num_rows, int padded, const B* const* values, const B* const* ahead, int num_keys,
                float* sums) {
  constexpr int kPair = kPairOf<B>, kGroupRows = kKeyGroup / kPair;
  const int steps = (num_keys + kPair - 1) / kPair;
  for (int d = 0; d < padded; d += 2 * kLanes) {
    const bool both = d + kLanes < padded;
    const int high = both ? kLanes * kPair : 0;
    const auto columns = [=](int j) __attribute__((always_inline)) {
      const ptrdiff_t offset = (static_cast<ptrdiff_t>(j % kGroupRows) * padded + d) * kPair;
      const B *row = values[j / kGroupRows] + offset, *later = ahead[j / kGroupRows] + offset;
      prefetch(later);
      prefetch(later + high);
      return Columns<B>{row, row + high};
    };
    for_row_blocks(num_rows, [&]<int M>(int row) __attribute__((always_inline)) {
      F32x16 dot[M][2];
      clear<M>(dot);
      product<M>(weights + static_cast<ptrdiff_t>(row) * kWeightStride, kWeightStride, steps * kPair, columns,
                 static_cast<const B*>(nullptr), dot);
      float* to = sums + static_cast<ptrdiff_t>(row) * padded + d;
#pragma GCC unroll 12
      for (int r = 0; r < M; ++r) {
        store(to + r * padded, dot[r][0]);
        if (both) store(to + r * padded + kLanes, dot[r][1]);
      }
    });
  }
}

#if defined(__AMX_BF16__)
// The same on tiles, which need whole steps of k, for up to kBlockRows rows. `mix(group, step)` is called between tile
// products, for what the vector units can do meanwhile.
template <typename Mix>
INTERLEAF_INLINE void score_keys_on_tiles(const bf16* queries, int num_rows, int padded, const bf16* const* keys,
                                          int num_groups, float* scores, Mix mix) {
  for (int g = 0; g < num_groups; g += 2) {
    const bf16 *low = keys[g], *high = keys[g + 1 < num_groups ? g + 1 : g];
    const auto columns = [=](int step) __attribute__((always_inline)) {
      const int offset = step * kTileDepth * kKeyGroup;
      return TileColumns{low + offset, high + offset, 64};
    };
    const auto ahead = [&](int step) __attribute__((always_inline)) { if (step > 0) mix(g, step - 1); };
    tile_product<kTileDepth>(queries, padded, num_rows, padded / kTileDepth, columns, ahead);
    mix(g, padded / kTileDepth - 1);
    tile_store(scores + g * kKeyGroup, kScoreStride, num_rows, true);
  }
}

// The same on tiles, of values that lie side by side. The weights behind the last key are zero, and its values finite.
template <typename Mix>
INTERLEAF_INLINE void sum_values_on_tiles(const bf16* weights, int num_rows, int padded, const bf16* values, int num_keys,
                                          float* sums, Mix mix) {
  const size_t stride = static_cast<size_t>(padded) * 4;
  const int steps = (num_keys + kTileDepth - 1) / kTileDepth;
  for (int d = 0; d < padded; d += 2 * kLanes) {
    const auto columns = [=](int step) __attribute__((always_inline)) {
      const bf16* from = values + static_cast<ptrdiff_t>(step) * kTileDepth * padded + d * 2;
      return TileColumns{from, from + 2 * kLanes, stride};
    };
    const auto ahead = [&](int step) __attribute__((always_inline)) { if (step > 0) mix(d, step - 1); };
    tile_product<kTileDepth>(weights, kWeightStride, num_rows, steps, columns, ahead);
    mix(d, steps - 1);
    tile_store(sums + d, padded, num_rows, true);
  }
}
#endif

}  // namespace interleaf::INTERLEAF_LEVEL
