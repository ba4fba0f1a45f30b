#include <type_traits>

#include "epilogue.h"
#include "group_tiles.h"
#include "integer_product.h"
#include "product.h"
#include "rotation.h"
#include "tile_gemm.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

// Turns a row's exact sums into floats: columns [16 half, 16 half + 16) of a panel.
INTERLEAF_INLINE F32x16 scale_sums(const LinearQuantizedArgs& args, I32x16 sum, int row, int panel, int half) {
  const int column = panel * kPanelColumns + half * kLanes;
  const F32x16 plain = to_floats(subtract(sum, load_ints(args.compensation + column)));
  return plain * (load(args.scales + column) * broadcast(args.x_scales[row]));
}

// Rows as the level multiplies them; `stride` bytes apart.
struct OperandRows {
  const uint8_t* data;
  ptrdiff_t stride;
};

// Halves of a panel that a pass over it multiplies: 16 registers hold no more than one.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int kHalves = 1;
#else
constexpr int kHalves = 2;
#endif

// Rows multiplied together, by what the registers hold.
#if defined(__AVX512F__)
constexpr int kInt8Rows = kHasByteProduct ? 12 : 8, kGroupRowsInRegisters = kHasByteProduct ? 12 : 6;
constexpr int kGroupRowsOfWholePanels = kHasByteProduct ? 8 : 6;
#elif defined(__AVX2__)
constexpr int kInt8Rows = kHasByteProduct ? 6 : 4, kGroupRowsInRegisters = 4, kGroupRowsOfWholePanels = 4;
#else
constexpr int kInt8Rows = 1, kGroupRowsInRegisters = 1, kGroupRowsOfWholePanels = 1;
#endif

template <int M, Format format>
constexpr bool kAsks = kAsksAhead<M> || has_nibbles(format);  // nibbles give each column more to do

template <int M, typename Y>
__attribute__((noinline)) void int8_block(const LinearQuantizedArgs& args, OperandRows x, int row, int panel,
                                          WeightsAhead ahead) {
  const uint8_t* weight = args.weight + static_cast<size_t>(panel) * kPanelColumns * args.k_padded;
  F32x16 y[M][2];
  for (int first = 0; first < 2; first += kHalves, weight += 64) {
    I32x16 sum[M][kHalves];
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r)
      for (int half = 0; half < kHalves; ++half) sum[r][half] = broadcast_int(0);
    for (int k = 0; k < args.k_padded; k += 4) {
      const uint8_t* columns = weight + static_cast<ptrdiff_t>(k) * kPanelColumns;
      if constexpr (kAsks<M, Format::kInt8>)
        for (int half = 0; half < kHalves; ++half) ahead.ask();
#pragma GCC unroll 12
      for (int r = 0; r < M; ++r)
#pragma GCC unroll 2
        for (int half = 0; half < kHalves; ++half)
          add_signed(sum[r][half], columns + 64 * half, x.data + r * x.stride + k * kRowValueBytes);
    }
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r)
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half)
        y[r][first + half] = scale_sums(args, sum[r][half], row + r, panel, first + half);
  }
#pragma GCC unroll 12
  for (int r = 0; r < M; ++r) finish<Y>(args, row + r, panel, y[r][0], y[r][1]);
}

// What a block of M rows brings to each group, side by side: values as the level multiplies them [M][32], and for each
// row the scale [M], and the sum of its values [M]: as an integer times the format's zero, or as a float times the
// scale.
template <int M, Format format>
struct BlockOfGroups {
  static constexpr int kRowBytes = kGroupSize * (has_nibbles(format) ? 1 : kRowValueBytes);
  static constexpr int kBytes = M * (kRowBytes + 8);
  const char* data;

  const uint8_t* values(int group, int row) const {
    return reinterpret_cast<const uint8_t*>(data + static_cast<ptrdiff_t>(group) * kBytes + row * kRowBytes);
  }
  const float* scales(int group) const {
    return reinterpret_cast<const float*>(data + static_cast<ptrdiff_t>(group) * kBytes + M * kRowBytes);
  }
  float scaled_sum(int group, int row) const { return scales(group)[M + row]; }
  int32_t start(int group, int row) const {
    int32_t start;
    std::memcpy(&start, scales(group) + M + row, sizeof start);
    return start;
  }

  static BlockOfGroups lay_out(const LinearQuantizedArgs& args, int first, char* to) {
    for (int group = 0; group < args.groups; ++group) {
      char* values = to + static_cast<ptrdiff_t>(group) * kBytes;
      float* scales = reinterpret_cast<float*>(values + M * kRowBytes);
      for (int r = 0; r < M; ++r, values += kRowBytes) {
        const ptrdiff_t row = first + r, place = row * args.groups + group;
        const uint8_t* x = args.x + row * args.k_padded + group * kGroupSize;
        if constexpr (kRowBytes == kGroupSize) {
          std::memcpy(values, x, kGroupSize);
        } else {
          widen_rows(reinterpret_cast<const int8_t*>(x), kGroupSize, reinterpret_cast<int16_t*>(values));
        }
        scales[r] = args.x_scales[place];
        const int32_t start = -zero_of(format) * args.x_sums[place];
        const float sum = args.x_scales[place] * static_cast<float>(args.x_sums[place]);
        if constexpr (has_minimum(format)) {
          scales[M + r] = sum;
        } else {
          std::memcpy(scales + M + r, &start, sizeof start);
        }
      }
    }
    return {to};
  }
};

// One group of M rows by a half of a panel or a whole: exact sums of 32 values of k, scaled and added to `total`.
template <int M, Format format, int halves>
INTERLEAF_INLINE void add_group(const LinearQuantizedArgs& args, BlockOfGroups<M, format> x, int group,
                                const uint8_t* columns, ptrdiff_t scale_place, WeightsAhead& ahead,
                                F32x16 (&total)[M][halves]) {
  constexpr bool kNibbles = has_nibbles(format);
  constexpr int kStep = kNibbles ? 8 : 4, kValueBytes = kNibbles ? 1 : kRowValueBytes;
  const auto start = [&](int r) __attribute__((always_inline)) { return zero_of(format) ? x.start(group, r) : 0; };
  std::conditional_t<kNibbles, NibbleSum, I32x16> sum[M][halves];
#pragma GCC unroll 12
  for (int r = 0; r < M; ++r)
    for (int half = 0; half < halves; ++half) clear_sum(sum[r][half], start(r));
#pragma GCC unroll 8
  for (int i = 0; i < kGroupSize / kStep; ++i) {
    if constexpr (kAsks<M, format>)
      for (int half = 0; half < halves; ++half) ahead.ask();
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r)
#pragma GCC unroll 2
      for (int half = 0; half < halves; ++half) {
        const uint8_t* values = x.values(group, r) + i * kStep * kValueBytes;
        if constexpr (kNibbles) {
          add_nibbles(sum[r][half], columns + i * 128 + half * 64, values);
        } else {
          add_unsigned(sum[r][half], columns + i * 128 + half * 64, values);
        }
      }
  }
  F32x16 scales[halves], minima[halves];
  for (int half = 0; half < halves; ++half) {
    scales[half] = load_half(args.group_scales + scale_place + half * kLanes);
    if constexpr (has_minimum(format)) minima[half] = load_half(args.group_minima + scale_place + half * kLanes);
  }
#pragma GCC unroll 12
  for (int r = 0; r < M; ++r) {
    const F32x16 x_scale = broadcast(x.scales(group)[r]);
#pragma GCC unroll 2
    for (int half = 0; half < halves; ++half) {
      total[r][half] = fma(to_floats(total_of(sum[r][half], start(r))) * x_scale, scales[half], total[r][half]);
      if constexpr (has_minimum(format))
        total[r][half] = fma(minima[half], broadcast(x.scaled_sum(group, r)), total[r][half]);
    }
  }
}

// With sums and totals of many rows, 32 registers hold one half of a panel.
template <int M>
constexpr int kGroupHalves = M > kGroupRowsOfWholePanels ? 1 : kHalves;

template <Format format>
constexpr int kBytesOfGroup = kGroupSize * kPanelColumns / (has_nibbles(format) ? 2 : 1);

template <int M, typename Y, Format format>
__attribute__((noinline)) void group_block(const LinearQuantizedArgs& args, BlockOfGroups<M, format> x, int row,
                                           int panel, WeightsAhead ahead) {
  constexpr int kGroupBytes = kBytesOfGroup<format>, kStep = kGroupHalves<M>;
  const ptrdiff_t first_group = static_cast<ptrdiff_t>(panel) * args.groups;
  F32x16 y[M][2];
  for (int first = 0; first < 2; first += kStep) {
    F32x16 total[M][kStep];
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r)
      for (int half = 0; half < kStep; ++half) total[r][half] = broadcast(0.0f);
    for (int group = 0; group < args.groups; ++group)
      add_group<M, format, kStep>(args, x, group, args.weight + (first_group + group) * kGroupBytes + first * 64,
                                  (first_group + group) * kPanelColumns + first * kLanes, ahead, total);
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r)
      for (int half = 0; half < kStep; ++half) y[r][first + half] = total[r][half];
  }
#pragma GCC unroll 12
  for (int r = 0; r < M; ++r) finish<Y>(args, row + r, panel, y[r][0], y[r][1]);
}

constexpr int kRowStep = 64;  // rows that pass over a panel while it is in a cache

template <typename Y>
void int8_vectors(const LinearQuantizedArgs& args, int rows, Range panels, char* scratch) {
  const size_t row_bytes = static_cast<size_t>(args.k_padded);
  const int widened_rows = higher(kInt8Rows, lower(kRowStep, static_cast<int>(kScratchBytes / 2 / row_bytes)));
  const int step = kHasWordProduct ? widened_rows : kRowStep;
  for (int first = 0; first < rows; first += step) {
    const int count = lower(step, rows - first);
    const uint8_t* source = args.x + static_cast<size_t>(first) * row_bytes;
    OperandRows x = {source, args.k_padded};
    if constexpr (kHasWordProduct) {
      widen_rows(source, static_cast<size_t>(count) * row_bytes, reinterpret_cast<int16_t*>(scratch));
      x = {reinterpret_cast<const uint8_t*>(scratch), 2 * static_cast<ptrdiff_t>(args.k_padded)};
    }
    const size_t panel_bytes = row_bytes * kPanelColumns;
    const int blocks = num_row_blocks(count, kInt8Rows);
    for (int panel = panels.begin; panel < panels.end; ++panel)
      for_row_blocks<kInt8Rows>(count, [&]<int M>(int row) __attribute__((always_inline)) {
        const uint8_t* weight = args.weight + panel_bytes * static_cast<size_t>(panel);
        const WeightsAhead ahead(weight, panel_bytes, row, count, blocks, kHalves == 1);
        int8_block<M, Y>(args, {x.data + row * x.stride, x.stride}, first + row, panel, ahead);
      });
  }
}

template <typename Y, Format format>
void group_vectors(const LinearQuantizedArgs& args, int rows, Range panels, char* scratch) {
  constexpr int kRowBytes = BlockOfGroups<1, format>::kBytes;
  const int most = static_cast<int>(kScratchBytes / static_cast<size_t>(kRowBytes * args.groups));
  const int step = higher(kGroupRowsInRegisters, lower(kRowStep, most));
  for (int first = 0; first < rows; first += step) {
    const int count = lower(step, rows - first);
    const auto place = [&](int row) { return scratch + static_cast<ptrdiff_t>(row) * kRowBytes * args.groups; };
    for_row_blocks<kGroupRowsInRegisters>(count, [&]<int M>(int row) __attribute__((always_inline)) {
      BlockOfGroups<M, format>::lay_out(args, first + row, place(row));
    });
    const size_t panel_bytes = static_cast<size_t>(kBytesOfGroup<format>) * static_cast<size_t>(args.groups);
    const int blocks = num_row_blocks(count, kGroupRowsInRegisters);
    for (int panel = panels.begin; panel < panels.end; ++panel)
      for_row_blocks<kGroupRowsInRegisters>(count, [&]<int M>(int row) __attribute__((always_inline)) {
        const uint8_t* weight = args.weight + panel_bytes * static_cast<size_t>(panel);
        const WeightsAhead ahead(weight, panel_bytes, row, count, blocks, kGroupHalves<M> == 1);
        group_block<M, Y, format>(args, {place(row)}, first + row, panel, ahead);
      });
  }
}

#if defined(__AMX_BF16__)
// kInt8 on tiles: the sums are the same integers.
template <typename Y>
void int8_tiles(const LinearQuantizedArgs& args, int rows, Range panels, const Worker& worker) {
  const size_t row_bytes = static_cast<size_t>(args.k_padded);
  tile_gemm<TileKind::kInt8>(
      args.x, row_bytes, rows, panels, worker.scratch,
      [&](int count, bool first) {
        // Few rows wait for nothing but memory, and the hardware runs ahead of them.
        return PackedPanels(args.weight, row_bytes * kPanelColumns, count, first && count > kBlockRows);
      },
      [&](int row, int panel, const float* sums) __attribute__((always_inline)) {
        const int32_t* ints = reinterpret_cast<const int32_t*>(sums);
        finish<Y>(args, row, panel, scale_sums(args, load_ints(ints), row, panel, 0),
                  scale_sums(args, load_ints(ints + kLanes), row, panel, 1));
      });
}

constexpr int kRowsForTiles = 16;  // from here on tiles are faster than vectors, whose bits they give

template <typename Y>
void quantized_tiles(const LinearQuantizedArgs& args, int rows, Range panels, const Worker& worker) {
  switch (args.format) {
    case Format::kInt8: return int8_tiles<Y>(args, rows, panels, worker);
    case Format::kGroup4: return group_tiles<Y, Format::kGroup4>(args, rows, panels, worker.scratch);
    case Format::kGroup4Min: return group_tiles<Y, Format::kGroup4Min>(args, rows, panels, worker.scratch);
    case Format::kGroup8: return group_tiles<Y, Format::kGroup8>(args, rows, panels, worker.scratch);
    case Format::kGroup8Min: return group_tiles<Y, Format::kGroup8Min>(args, rows, panels, worker.scratch);
  }
}
#endif

template <typename Y>
void linear_quantized_to(const LinearQuantizedArgs& args, int rows, const Worker& worker) {
  const Range panels = part_of(num_panels(args), worker);
#if defined(__AMX_BF16__)
  if (args.format == Format::kInt8 || rows >= kRowsForTiles) return quantized_tiles<Y>(args, rows, panels, worker);
#endif
  switch (args.format) {
    case Format::kInt8: return int8_vectors<Y>(args, rows, panels, worker.scratch);
    case Format::kGroup4: return group_vectors<Y, Format::kGroup4>(args, rows, panels, worker.scratch);
    case Format::kGroup4Min: return group_vectors<Y, Format::kGroup4Min>(args, rows, panels, worker.scratch);
    case Format::kGroup8: return group_vectors<Y, Format::kGroup8>(args, rows, panels, worker.scratch);
    case Format::kGroup8Min: return group_vectors<Y, Format::kGroup8Min>(args, rows, panels, worker.scratch);
  }
}

// One weight as a float; of kInt8, as it is rotated.
INTERLEAF_INLINE float weight_at(const LinearQuantizedArgs& table, int column, int k) {
  const size_t panel = static_cast<size_t>(column / kPanelColumns), within = static_cast<size_t>(column % kPanelColumns);
  const size_t padded = static_cast<size_t>(table.k_padded), place = static_cast<size_t>(k);
  if (table.format == Format::kInt8) {
    const size_t byte = panel * kPanelColumns * padded + place / 4 * 128 + within * 4 + place % 4;
    return static_cast<float>(static_cast<int8_t>(table.weight[byte])) * table.scales[column];
  }
  const size_t group = (panel * static_cast<size_t>(table.groups) + place / kGroupSize) * kPanelColumns + within;
  int value;
  if (has_nibbles(table.format)) {
    const size_t byte =
        panel * kPanelColumns * padded / 2 + place / 8 * 128 + within / 16 * 64 + within % 16 * 4 + place % 4;
    value = place % 8 < 4 ? table.weight[byte] & 15 : table.weight[byte] >> 4;
  } else {
    value = table.weight[panel * kPanelColumns * padded + place / 4 * 128 + within * 4 + place % 4];
  }
  const float scale = half_to_float(table.group_scales[group]);
  if (has_minimum(table.format)) return scale * static_cast<float>(value) + half_to_float(table.group_minima[group]);
  return scale * static_cast<float>(value - zero_of(table.format));
}

}  // namespace

void linear_quantized(const LinearQuantizedArgs& args, int rows, const Worker& worker) {
  if (args.y_type == DType::kF32) {
    linear_quantized_to<float>(args, rows, worker);
  } else {
    linear_quantized_to<bf16>(args, rows, worker);
  }
}

void embedding_quantized(const EmbeddingQuantizedArgs& args, int rows, const Worker& worker) {
  const Range part = part_of(rows, worker);
  for (int row = part.begin; row < part.end; ++row) {
    float* y = args.y + static_cast<ptrdiff_t>(row) * args.width;
    for (int k = 0; k < args.width; ++k) y[k] = args.scale * weight_at(args.table, args.ids[row], k);
    if (args.table.format == Format::kInt8 && rotates(args.width)) rotate(y, args.width, y);
  }
}

}  // namespace interleaf::INTERLEAF_LEVEL
