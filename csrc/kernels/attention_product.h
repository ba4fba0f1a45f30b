// The two products of attention, queries by keys and weights by values, in registers and on tiles.
//
// Groups of 16 keys lie scattered, too short for the hardware to see a stream. So whoever works on a group asks for the
// line of the group `ahead` that lies where it is itself: a chunk's values while its keys are worked on, then the keys
// of the next chunk.
#pragma once

#include "attention_span.h"

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
// The same on tiles, which need whole steps of k.
INTERLEAF_INLINE void score_keys_on_tiles(const bf16* queries, int num_rows, int padded, const bf16* const* keys,
                                          const bf16* const* ahead, int num_groups, TileShape& shape, float* scores) {
  for (int row = 0; row < num_rows; row += kBlockRows) {
    const int rows = lower(kBlockRows, num_rows - row);
    const bool first = row == 0;
    shape.set(rows, kTileDepth);
    for (int g = 0; g < num_groups; g += 2) {
      const int second = g + 1 < num_groups ? g + 1 : g;
      const bf16 *low = keys[g], *high = keys[second], *low_ahead = ahead[g], *high_ahead = ahead[second];
      const auto columns = [=](int step) __attribute__((always_inline)) {
        const int offset = step * kTileDepth * kKeyGroup;
        return TileColumns{low + offset, high + offset, 64};
      };
      const auto fetch = [=](int step) __attribute__((always_inline)) {
        if (!first) return;
        for (int i = step * kTileDepth * kKeyGroup; i < (step + 1) * kTileDepth * kKeyGroup; i += 32) {
          prefetch(low_ahead + i);
          prefetch(high_ahead + i);
        }
      };
      tile_product<kTileDepth>(queries + static_cast<ptrdiff_t>(row) * padded, padded, rows, padded / kTileDepth, columns,
                               fetch);
      tile_store(scores + static_cast<ptrdiff_t>(row) * kScoreStride + g * kKeyGroup, kScoreStride, rows, true);
    }
  }
}

// The same on tiles, a group of keys a step: the weights behind the last key are zero, and its group's values finite.
INTERLEAF_INLINE void sum_values_on_tiles(const bf16* weights, int num_rows, int padded, const bf16* const* values,
                                          const bf16* const* ahead, int num_groups, TileShape& shape, float* sums) {
  const size_t stride = static_cast<size_t>(padded) * 4;
  for (int row = 0; row < num_rows; row += kBlockRows) {
    const int rows = lower(kBlockRows, num_rows - row);
    const bool first = row == 0;
    shape.set(rows, kKeyGroup);
    for (int d = 0; d < padded; d += 2 * kLanes) {
      const auto columns = [=](int step) __attribute__((always_inline)) {
        const bf16* from = values[step] + d * 2;
        return TileColumns{from, from + 2 * kLanes, stride};
      };
      const auto fetch = [=](int step) __attribute__((always_inline)) {
        if (!first) return;
        const bf16* later = ahead[step] + d * 2;
        for (int i = 0; i < kKeyGroup / 2; ++i, later += padded * 2) {
          prefetch(later);
          prefetch(later + 2 * kLanes);
        }
      };
      tile_product<kKeyGroup>(weights + static_cast<ptrdiff_t>(row) * kWeightStride, kWeightStride, rows, num_groups,
                              columns, fetch);
      tile_store(sums + static_cast<ptrdiff_t>(row) * padded + d, padded, rows, true);
    }
  }
}
#endif

}  // namespace interleaf::INTERLEAF_LEVEL
