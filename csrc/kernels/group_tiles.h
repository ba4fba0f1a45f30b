// Weights with groups on AMX tiles. A group of 32 values of k is one step: its sums are exact integers, as they are in
// vectors, and are scaled and added in float32 in the same order, so that many rows give the bits that one row gives.
#pragma once

#if defined(__AMX_BF16__)

#include "epilogue.h"
#include "integer_product.h"
#include "tiles.h"

namespace interleaf::INTERLEAF_LEVEL {

constexpr int kGroupRows = 128;  // that pass over a panel while it is unpacked
constexpr int kGroupBlocks = kGroupRows / kBlockRows;

// What the rows of a pass bring to each group: [blocks][groups][2][32] scales, and scales times sums.
struct GroupRows {
  float* data;
  int groups;

  const float* of(int block, int group) const {
    return data + (static_cast<ptrdiff_t>(block) * groups + group) * 2 * kBlockRows;
  }
  void fill(const LinearQuantizedArgs& args, int first, int rows) {
    for (int row = 0; row < rows; ++row) {
      const ptrdiff_t place = static_cast<ptrdiff_t>(first + row) * groups;
      float* to = data + static_cast<ptrdiff_t>(row / kBlockRows) * groups * 2 * kBlockRows + row % kBlockRows;
      for (int group = 0; group < groups; ++group, to += 2 * kBlockRows) {
        to[0] = args.x_scales[place + group];
        to[kBlockRows] = args.x_scales[place + group] * static_cast<float>(args.x_sums[place + group]);
      }
    }
  }
};

// A panel as bytes [K/4][32][4], less the format's zero.
template <Format format>
INTERLEAF_INLINE const uint8_t* unpack_panel(const LinearQuantizedArgs& args, int panel, uint8_t* bytes) {
  const size_t values = static_cast<size_t>(kPanelColumns) * static_cast<size_t>(args.k_padded);
  const uint8_t* packed = args.weight + values / (has_nibbles(format) ? 2 : 1) * static_cast<size_t>(panel);
  if (format == Format::kGroup8Min) return packed;
  const __m512i mask = _mm512_set1_epi8(15), zero = _mm512_set1_epi8(static_cast<char>(zero_of(format)));
  if constexpr (!has_nibbles(format)) {
    for (size_t i = 0; i < values; i += 64)
      _mm512_store_si512(bytes + i, _mm512_sub_epi8(_mm512_loadu_si512(packed + i), zero));
    return bytes;
  }
  for (size_t i = 0; i < values; i += 256, packed += 128)
#pragma GCC unroll 2
    for (int half = 0; half < 128; half += 64) {
      const __m512i both = _mm512_loadu_si512(packed + half);
      uint8_t* to = bytes + i + half;
      _mm512_store_si512(to, _mm512_sub_epi8(_mm512_and_si512(both, mask), zero));
      _mm512_store_si512(to + 128, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(both, 4), mask), zero));
    }
  return bytes;
}

#define INTERLEAF_MULTIPLY_GROUP(sum, a, b)  \
  do {                                       \
    if constexpr (has_minimum(format)) {     \
      _tile_dpbsud(sum, a, b);               \
    } else {                                 \
      _tile_dpbssd(sum, a, b);               \
    }                                        \
  } while (0)

// Integer sums [rows, 32] of one group.
template <Format format>
INTERLEAF_INLINE void multiply_group(const uint8_t* x, size_t row_bytes, int rows, const uint8_t* weight, int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_loadd(4, x, row_bytes);
  _tile_loadd(6, weight, 128);
  INTERLEAF_MULTIPLY_GROUP(0, 4, 6);
  _tile_loadd(7, weight + 64, 128);
  INTERLEAF_MULTIPLY_GROUP(1, 4, 7);
  if (rows > kTileRows) {
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(5, x + kTileRows * row_bytes, row_bytes);
    INTERLEAF_MULTIPLY_GROUP(2, 5, 6);
    INTERLEAF_MULTIPLY_GROUP(3, 5, 7);
  }
  tile_store(reinterpret_cast<float*>(sums), kPanelColumns, rows, true);
}
#undef INTERLEAF_MULTIPLY_GROUP

// totals[rows, 32] += the group's sums, scaled.
template <Format format>
INTERLEAF_INLINE void add_scaled(const LinearQuantizedArgs& args, size_t place, const float* of_rows, int rows,
                                 const int32_t* sums, float* totals) {
  const F32x16 low = load_half(args.group_scales + place), high = load_half(args.group_scales + place + kLanes);
  F32x16 low_minimum = broadcast(0.0f), high_minimum = low_minimum;
  if constexpr (has_minimum(format)) {
    low_minimum = load_half(args.group_minima + place);
    high_minimum = load_half(args.group_minima + place + kLanes);
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    const F32x16 x_scale = broadcast(of_rows[r]);
    float* total = totals + r * kPanelColumns;
    F32x16 a = fma(to_floats(load_ints(sums + r * kPanelColumns)) * x_scale, low, load(total));
    F32x16 b = fma(to_floats(load_ints(sums + r * kPanelColumns + kLanes)) * x_scale, high, load(total + kLanes));
    if constexpr (has_minimum(format)) {
      const F32x16 x_sum = broadcast(of_rows[kBlockRows + r]);
      a = fma(low_minimum, x_sum, a);
      b = fma(high_minimum, x_sum, b);
    }
    store(total, a);
    store(total + kLanes, b);
  }
}

// A block of rows of one panel. The tiles of a group are at work while the vector units add the group before.
template <typename Y, Format format>
void group_block_on_tiles(const LinearQuantizedArgs& args, int row, int rows, int panel, const uint8_t* weight,
                          const float* of_rows, float* totals) {
  const size_t row_bytes = static_cast<size_t>(args.k_padded);
  const uint8_t* x = args.x + static_cast<size_t>(row) * row_bytes;
  const size_t base = static_cast<size_t>(panel) * static_cast<size_t>(args.groups) * kPanelColumns;
  constexpr int kSums = kBlockRows * kPanelColumns, kRowValues = 2 * kBlockRows;
  int32_t* sums = reinterpret_cast<int32_t*>(totals + kSums);
  const auto add = [&](int group) __attribute__((always_inline)) {
    add_scaled<format>(args, base + static_cast<size_t>(group) * kPanelColumns, of_rows + static_cast<ptrdiff_t>(group) * kRowValues,
                       rows, sums + group % 2 * kSums, totals);
  };
  for (int i = 0; i < rows * kPanelColumns; i += kLanes) store(totals + i, broadcast(0.0f));
  for (int group = 0; group < args.groups; ++group) {
    multiply_group<format>(x + group * kGroupSize, row_bytes, rows, weight + group * kGroupSize * kPanelColumns,
                           sums + group % 2 * kSums);
    if (group > 0) add(group - 1);
  }
  add(args.groups - 1);
  for (int r = 0; r < rows; ++r)
    finish<Y>(args, row + r, panel, load(totals + r * kPanelColumns), load(totals + r * kPanelColumns + kLanes));
}

template <typename Y, Format format>
void group_tiles(const LinearQuantizedArgs& args, int rows, Range panels, char* scratch) {
  float* totals = reinterpret_cast<float*>(scratch);
  uint8_t* bytes = reinterpret_cast<uint8_t*>(totals + 3 * kBlockRows * kPanelColumns);
  GroupRows of_rows = {reinterpret_cast<float*>(bytes + static_cast<size_t>(args.k_padded) * kPanelColumns), args.groups};
  TileShape shape;
  for (int first = 0; first < rows; first += kGroupRows) {
    const int count = lower(kGroupRows, rows - first);
    of_rows.fill(args, first, count);
    for (int panel = panels.begin; panel < panels.end; ++panel) {
      const uint8_t* weight = unpack_panel<format>(args, panel, bytes);
      for (int row = 0; row < count; row += kBlockRows) {
        const int block_rows = lower(kBlockRows, count - row);
        shape.set(block_rows, kGroupSize / 2);
        group_block_on_tiles<Y, format>(args, first + row, block_rows, panel, weight, of_rows.of(row / kBlockRows, 0), totals);
      }
    }
  }
}

}  // namespace interleaf::INTERLEAF_LEVEL

#endif
