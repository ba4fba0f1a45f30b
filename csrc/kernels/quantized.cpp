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

template <int M, typename Y>
__attribute__((noinline)) void int8_block(const LinearQuantizedArgs& args, OperandRows x, int row, int panel) {
  const uint8_t* weight = args.weight + static_cast<size_t>(panel) * kPanelColumns * args.k_padded;
  F32x16 y[M][2];
  for (int first = 0; first < 2; first += kHalves, weight += 64) {
    I32x16 sum[M][kHalves];
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r)
      for (int half = 0; half < kHalves; ++half) sum[r][half] = broadcast_int(0);
    for (int k = 0; k < args.k_padded; k += 4) {
      const uint8_t* columns = weight + static_cast<ptrdiff_t>(k) * kPanelColumns;
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

// One group of M rows by a half of a panel: exact sums of 32 values of k, scaled and added to `total`.
template <int M, Format format>
INTERLEAF_INLINE void add_group(const LinearQuantizedArgs& args, OperandRows x, const uint8_t* columns, ptrdiff_t x_place,
                                ptrdiff_t scale_place, F32x16 (&total)[M][kHalves]) {
  constexpr bool kNibbles = has_nibbles(format);
  constexpr int kZero = zero_of(format), kStep = kNibbles ? 8 : 4, kValueBytes = kNibbles ? 1 : kRowValueBytes;
  const auto start = [&](int r) __attribute__((always_inline)) {
    return kZero ? -kZero * args.x_sums[x_place + static_cast<ptrdiff_t>(r) * args.groups] : 0;
  };
  std::conditional_t<kNibbles, NibbleSum, I32x16> sum[M][kHalves];
#pragma GCC unroll 12
  for (int r = 0; r < M; ++r)
    for (int half = 0; half < kHalves; ++half) clear_sum(sum[r][half], start(r));
#pragma GCC unroll 8
  for (int i = 0; i < kGroupSize / kStep; ++i)
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r)
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half) {
        const uint8_t* values = x.data + r * x.stride + i * kStep * kValueBytes;
        if constexpr (kNibbles) {
          add_nibbles(sum[r][half], columns + i * 128 + half * 64, values);
        } else {
          add_unsigned(sum[r][half], columns + i * 128 + half * 64, values);
        }
      }
  F32x16 scales[kHalves], minima[kHalves];
  for (int half = 0; half < kHalves; ++half) {
    scales[half] = load_half(args.group_scales + scale_place + half * kLanes);
    if constexpr (has_minimum(format)) minima[half] = load_half(args.group_minima + scale_place + half * kLanes);
  }
#pragma GCC unroll 12
  for (int r = 0; r < M; ++r) {
    const ptrdiff_t place = x_place + static_cast<ptrdiff_t>(r) * args.groups;
    const F32x16 x_scale = broadcast(args.x_scales[place]);
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      total[r][half] = fma(to_floats(total_of(sum[r][half], start(r))) * x_scale, scales[half], total[r][half]);
      if constexpr (has_minimum(format))
        total[r][half] = fma(minima[half], broadcast(args.x_scales[place] * static_cast<float>(args.x_sums[place])), total[r][half]);
    }
  }
}

template <int M, typename Y, Format format>
__attribute__((noinline)) void group_block(const LinearQuantizedArgs& args, OperandRows x, int row, int panel) {
  constexpr int kGroupBytes = kGroupSize * kPanelColumns / (has_nibbles(format) ? 2 : 1);
  constexpr int kXBytes = kGroupSize * (has_nibbles(format) ? 1 : kRowValueBytes);
  const ptrdiff_t first_group = static_cast<ptrdiff_t>(panel) * args.groups;
  F32x16 y[M][2];
  for (int first = 0; first < 2; first += kHalves) {
    F32x16 total[M][kHalves];
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r)
      for (int half = 0; half < kHalves; ++half) total[r][half] = broadcast(0.0f);
    for (int group = 0; group < args.groups; ++group)
      add_group<M, format>(args, {x.data + group * kXBytes, x.stride},
                           args.weight + (first_group + group) * kGroupBytes + first * 64,
                           static_cast<ptrdiff_t>(row) * args.groups + group,
                           (first_group + group) * kPanelColumns + first * kLanes, total);
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r)
      for (int half = 0; half < kHalves; ++half) y[r][first + half] = total[r][half];
  }
#pragma GCC unroll 12
  for (int r = 0; r < M; ++r) finish<Y>(args, row + r, panel, y[r][0], y[r][1]);
}

// Rows multiplied together, by what the registers hold.
#if defined(__AVX512F__)
constexpr int kInt8Rows = kHasByteProduct ? 12 : 8, kGroupRowsInRegisters = kHasByteProduct ? 8 : 6;
#elif defined(__AVX2__)
constexpr int kInt8Rows = kHasByteProduct ? 6 : 4, kGroupRowsInRegisters = 4;
#else
constexpr int kInt8Rows = 1, kGroupRowsInRegisters = 1;
#endif

constexpr int kRowStep = 64;  // rows that pass over a panel while it is in a cache

template <typename Y, Format format>
void quantized_vectors(const LinearQuantizedArgs& args, int rows, Range panels, char* scratch) {
  constexpr bool kInt8 = format == Format::kInt8, kWiden = kHasWordProduct && !has_nibbles(format);
  constexpr int kMost = kInt8 ? kInt8Rows : kGroupRowsInRegisters;
  const size_t row_bytes = static_cast<size_t>(args.k_padded);
  const int step = kWiden ? higher(kMost, lower(kRowStep, static_cast<int>(kScratchBytes / 2 / row_bytes))) : kRowStep;
  for (int first = 0; first < rows; first += step) {
    const int count = lower(step, rows - first);
    const uint8_t* source = args.x + static_cast<size_t>(first) * row_bytes;
    OperandRows x = {source, args.k_padded};
    if constexpr (kWiden) {
      int16_t* words = reinterpret_cast<int16_t*>(scratch);
      using Byte = std::conditional_t<kInt8, uint8_t, int8_t>;
      widen_rows(reinterpret_cast<const Byte*>(source), static_cast<size_t>(count) * row_bytes, words);
      x = {reinterpret_cast<const uint8_t*>(scratch), 2 * static_cast<ptrdiff_t>(args.k_padded)};
    }
    for (int panel = panels.begin; panel < panels.end; ++panel)
      for_row_blocks<kMost>(count, [&]<int M>(int row) __attribute__((always_inline)) {
        const OperandRows block = {x.data + row * x.stride, x.stride};
        if constexpr (kInt8) {
          int8_block<M, Y>(args, block, first + row, panel);
        } else {
          group_block<M, Y, format>(args, block, first + row, panel);
        }
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
    case Format::kInt8: return quantized_vectors<Y, Format::kInt8>(args, rows, panels, worker.scratch);
    case Format::kGroup4: return quantized_vectors<Y, Format::kGroup4>(args, rows, panels, worker.scratch);
    case Format::kGroup4Min: return quantized_vectors<Y, Format::kGroup4Min>(args, rows, panels, worker.scratch);
    case Format::kGroup8: return quantized_vectors<Y, Format::kGroup8>(args, rows, panels, worker.scratch);
    case Format::kGroup8Min: return quantized_vectors<Y, Format::kGroup8Min>(args, rows, panels, worker.scratch);
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
