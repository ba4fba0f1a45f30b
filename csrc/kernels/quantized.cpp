#include "epilogue.h"
#include "group_tiles.h"
#include "integers.h"
#include "tile_gemm.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

#if defined(__AVX512F__)
constexpr int kIntRows = 8;
#else
constexpr int kIntRows = 1;
#endif

// sum += four products a lane, of unsigned by signed bytes.
#if defined(__AVX512VNNI__)
INTERLEAF_INLINE void add_products(I32x16& sum, __m512i unsigned_bytes, __m512i signed_bytes) {
  // The intrinsic makes gcc 12 copy accumulators around.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(unsigned_bytes), "v"(signed_bytes));
}
#endif

INTERLEAF_INLINE int32_t four_bytes(const uint8_t* source) {
  int32_t bits;
  std::memcpy(&bits, source, 4);
  return bits;
}

// Weights signed, activations unsigned: 16 columns by four values of k against one row's four.
INTERLEAF_INLINE void add_int8(I32x16& sum, const uint8_t* weight, const uint8_t* x) {
#if defined(__AVX512VNNI__)
  add_products(sum, _mm512_set1_epi32(four_bytes(x)), _mm512_loadu_si512(weight));
#else
  int32_t values[16];
  std::memcpy(values, &sum, sizeof values);
  for (int c = 0; c < 16; ++c)
    for (int i = 0; i < 4; ++i) values[c] += int32_t{static_cast<int8_t>(weight[4 * c + i])} * int32_t{x[i]};
  std::memcpy(&sum, values, sizeof values);
#endif
}

// Weights unsigned (already in bytes), activations signed.
INTERLEAF_INLINE void add_group(I32x16& sum, const uint8_t* weight, const uint8_t* x) {
#if defined(__AVX512VNNI__)
  add_products(sum, _mm512_loadu_si512(weight), _mm512_set1_epi32(four_bytes(x)));
#else
  int32_t values[16];
  std::memcpy(values, &sum, sizeof values);
  for (int c = 0; c < 16; ++c)
    for (int i = 0; i < 4; ++i) values[c] += int32_t{weight[4 * c + i]} * int32_t{static_cast<int8_t>(x[i])};
  std::memcpy(&sum, values, sizeof values);
#endif
}

// 64 bytes of nibbles against eight values of k: the low ones belong to the first four.
INTERLEAF_INLINE void add_nibbles(I32x16& sum, const uint8_t* weight, const uint8_t* x) {
#if defined(__AVX512VNNI__)
  const __m512i packed = _mm512_loadu_si512(weight), mask = _mm512_set1_epi8(0x0f);
  add_products(sum, _mm512_and_si512(packed, mask), _mm512_set1_epi32(four_bytes(x)));
  add_products(sum, _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask), _mm512_set1_epi32(four_bytes(x + 4)));
#else
  int32_t values[16];
  std::memcpy(values, &sum, sizeof values);
  for (int c = 0; c < 16; ++c)
    for (int i = 0; i < 4; ++i) {
      const uint8_t both = weight[4 * c + i];
      values[c] += int32_t{both & 15} * int32_t{static_cast<int8_t>(x[i])} +
                   int32_t{both >> 4} * int32_t{static_cast<int8_t>(x[4 + i])};
    }
  std::memcpy(&sum, values, sizeof values);
#endif
}

template <typename X>
INTERLEAF_INLINE float largest_magnitude(const X* x, int count) {
  F32x16 top = broadcast(0.0f);
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const F32x16 v = load(x + i);
    top = maximum(maximum(v, broadcast(0.0f) - v), top);
  }
  float result = reduce_max(top);
  for (; i < count; ++i) {
    const float v = to_float(x[i]);
    result = v > result ? v : -v > result ? -v : result;
  }
  return result;
}

// Rounds to nearest; what is not a number becomes the middle.
INTERLEAF_INLINE int quantized(float value) {
  return value >= -127.0f && value <= 127.0f ? static_cast<int>(__builtin_nearbyintf(value)) : value > 0.0f ? 127 : value < 0.0f ? -127 : 0;
}

INTERLEAF_INLINE void store_quantized(F32x16 scaled, int zero, uint8_t* y) {
#if defined(__AVX512F__)
  const __m512i bounded = _mm512_cvtps_epi32(
      _mm512_max_ps(_mm512_min_ps(scaled.v, _mm512_set1_ps(127.0f)), _mm512_set1_ps(-127.0f)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm512_cvtepi32_epi8(_mm512_add_epi32(bounded, _mm512_set1_epi32(zero))));
#else
  float values[16];
  store(values, scaled);
  for (int i = 0; i < 16; ++i) y[i] = static_cast<uint8_t>(quantized(values[i]) + zero);
#endif
}

// `count` values of which the largest has magnitude `top` by one scale; returns the scale.
template <typename X>
INTERLEAF_INLINE float quantize_up_to(float top, const X* x, int count, int zero, uint8_t* y) {
  const float scale = top > 0.0f && top < 3.4e38f ? top / 127.0f : 1.0f;
  const float inverse = 1.0f / scale;
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store_quantized(load(x + i) * broadcast(inverse), zero, y + i);
  for (; i < count; ++i) y[i] = static_cast<uint8_t>(quantized(to_float(x[i]) * inverse) + zero);
  return scale;
}

template <typename X>
INTERLEAF_INLINE float quantize_span(const X* x, int count, int zero, uint8_t* y) {
  return quantize_up_to(largest_magnitude(x, count), x, count, zero, y);
}

// See kRotationRun. A row of 2^halvings parts, a run of each at a time; returns the largest magnitude. y may be x.
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
      top = maximum(maximum(mixed, broadcast(0.0f) - mixed), top);
      store(y + p * part + i, mixed);
    }
  }
  return reduce_max(top);
}

template <typename X>
float rotate(const X* x, int k, float* y) {
  static_assert(kLanes == kRotationRun);
  switch (rotation_halvings(k)) {
    case 2: return rotate_parts<2>(x, k, y);
    case 1: return rotate_parts<1>(x, k, y);
    default: return rotate_parts<0>(x, k, y);
  }
}

template <typename X>
void quantize_rows(const QuantizeArgs& args, Range rows, char* scratch) {
  for (int row = rows.begin; row < rows.end; ++row) {
    const X* x = static_cast<const X*>(args.x) + static_cast<ptrdiff_t>(row) * args.k;
    uint8_t* y = args.y + static_cast<ptrdiff_t>(row) * args.k_padded;
    std::memset(y + args.k, 0, static_cast<size_t>(args.k_padded - args.k));
    if (args.format == Format::kInt8) {
      float* rotated = reinterpret_cast<float*>(scratch);
      args.scales[row] = rotates(args.k) ? quantize_up_to(rotate(x, args.k, rotated), rotated, args.k, 128, y)
                                         : quantize_span(x, args.k, 128, y);
      continue;
    }
    for (int group = 0; group < args.groups; ++group) {
      const int begin = group * kGroupSize;
      const ptrdiff_t place = static_cast<ptrdiff_t>(row) * args.groups + group;
      args.scales[place] = quantize_span(x + begin, lower(kGroupSize, args.k - begin), 0, y + begin);
      int32_t sum = 0;
      for (int i = 0; i < kGroupSize; ++i) sum += static_cast<int8_t>(y[begin + i]);
      args.sums[place] = sum;
    }
  }
}

// Turns a row's exact sums into floats: columns [16 half, 16 half + 16) of a panel.
INTERLEAF_INLINE F32x16 scale_sums(const LinearQuantizedArgs& args, I32x16 sum, int row, int panel, int half) {
  const int column = panel * kPanelColumns + half * kLanes;
  const F32x16 plain = to_floats(subtract(sum, load_ints(args.compensation + column)));
  return plain * (load(args.scales + column) * broadcast(args.x_scales[row]));
}

template <int M, typename Y>
INTERLEAF_INLINE void int8_block(const LinearQuantizedArgs& args, int row, int panel) {
  const uint8_t* weight = args.weight + static_cast<size_t>(panel) * kPanelColumns * args.k_padded;
  const uint8_t* x = args.x + static_cast<ptrdiff_t>(row) * args.k_padded;
  I32x16 sum[M][2];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) sum[r][0] = sum[r][1] = broadcast_int(0);
  for (int k = 0; k < args.k_padded; k += 4) {
    const uint8_t* columns = weight + static_cast<ptrdiff_t>(k) * kPanelColumns;
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      add_int8(sum[r][0], columns, x + static_cast<ptrdiff_t>(r) * args.k_padded + k);
      add_int8(sum[r][1], columns + 64, x + static_cast<ptrdiff_t>(r) * args.k_padded + k);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r)
    finish<Y>(args, row + r, panel, scale_sums(args, sum[r][0], row + r, panel, 0),
              scale_sums(args, sum[r][1], row + r, panel, 1));
}

// One panel's column groups: exact sums of 32 values of k, scaled and added up in float.
template <int M, typename Y, Format format>
INTERLEAF_INLINE void group_block(const LinearQuantizedArgs& args, int row, int panel) {
  constexpr bool kNibbles = has_nibbles(format);
  constexpr int kZero = zero_of(format);
  constexpr int kGroupBytes = kGroupSize * kPanelColumns / (kNibbles ? 2 : 1);
  const uint8_t* weight = args.weight + static_cast<size_t>(panel) * args.groups * kGroupBytes;
  const ptrdiff_t scale_base = static_cast<ptrdiff_t>(panel) * args.groups * kPanelColumns;
  F32x16 total[M][2];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) total[r][0] = total[r][1] = broadcast(0.0f);
  for (int group = 0; group < args.groups; ++group) {
    const uint8_t* columns = weight + static_cast<ptrdiff_t>(group) * kGroupBytes;
    const uint8_t* x = args.x + static_cast<ptrdiff_t>(row) * args.k_padded + group * kGroupSize;
    const ptrdiff_t x_place = static_cast<ptrdiff_t>(row) * args.groups + group;
    const uint16_t* scales = args.group_scales + scale_base + static_cast<ptrdiff_t>(group) * kPanelColumns;
    I32x16 sum[M][2];
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r)
      sum[r][0] = sum[r][1] = broadcast_int(kZero ? -kZero * args.x_sums[x_place + static_cast<ptrdiff_t>(r) * args.groups] : 0);
#pragma GCC unroll 8
    for (int i = 0; i < kGroupSize / (kNibbles ? 8 : 4); ++i) {
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        const uint8_t* values = x + static_cast<ptrdiff_t>(r) * args.k_padded + i * (kNibbles ? 8 : 4);
        if constexpr (kNibbles) {
          add_nibbles(sum[r][0], columns + i * 128, values);
          add_nibbles(sum[r][1], columns + i * 128 + 64, values);
        } else {
          add_group(sum[r][0], columns + i * 128, values);
          add_group(sum[r][1], columns + i * 128 + 64, values);
        }
      }
    }
    const F32x16 low = load_half(scales), high = load_half(scales + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const ptrdiff_t place = x_place + static_cast<ptrdiff_t>(r) * args.groups;
      const F32x16 x_scale = broadcast(args.x_scales[place]);
      total[r][0] = fma(to_floats(sum[r][0]) * x_scale, low, total[r][0]);
      total[r][1] = fma(to_floats(sum[r][1]) * x_scale, high, total[r][1]);
      if constexpr (has_minimum(format)) {
        const uint16_t* minima = args.group_minima + scale_base + static_cast<ptrdiff_t>(group) * kPanelColumns;
        const F32x16 x_sum = broadcast(args.x_scales[place] * static_cast<float>(args.x_sums[place]));
        total[r][0] = fma(load_half(minima), x_sum, total[r][0]);
        total[r][1] = fma(load_half(minima + kLanes), x_sum, total[r][1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) finish<Y>(args, row + r, panel, total[r][0], total[r][1]);
}

template <int M, typename Y>
INTERLEAF_INLINE void quantized_block(const LinearQuantizedArgs& args, int row, int panel) {
  switch (args.format) {
    case Format::kInt8: return int8_block<M, Y>(args, row, panel);
    case Format::kGroup4: return group_block<M, Y, Format::kGroup4>(args, row, panel);
    case Format::kGroup4Min: return group_block<M, Y, Format::kGroup4Min>(args, row, panel);
    case Format::kGroup8: return group_block<M, Y, Format::kGroup8>(args, row, panel);
    case Format::kGroup8Min: return group_block<M, Y, Format::kGroup8Min>(args, row, panel);
  }
}

template <typename Y>
void panel_of_rows(const LinearQuantizedArgs& args, int first, int last, int panel) {
  int row = first;
  for (; row + kIntRows <= last; row += kIntRows) quantized_block<kIntRows, Y>(args, row, panel);
#if defined(__AVX512F__)
  switch (last - row) {
    case 7: return quantized_block<7, Y>(args, row, panel);
    case 6: return quantized_block<6, Y>(args, row, panel);
    case 5: return quantized_block<5, Y>(args, row, panel);
    case 4: return quantized_block<4, Y>(args, row, panel);
    case 3: return quantized_block<3, Y>(args, row, panel);
    case 2: return quantized_block<2, Y>(args, row, panel);
    case 1: return quantized_block<1, Y>(args, row, panel);
  }
#endif
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

constexpr int kRowsForTiles = 2 * kIntRows;  // from here on tiles are faster than vectors, whose bits they give

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
  constexpr int kRowStep = 64;
  for (int first = 0; first < rows; first += kRowStep)
    for (int panel = panels.begin; panel < panels.end; ++panel)
      panel_of_rows<Y>(args, first, lower(first + kRowStep, rows), panel);
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

void quantize(const QuantizeArgs& args, int rows, const Worker& worker) {
  const Range part = part_of(rows, worker);
  if (args.x_type == DType::kF32) {
    quantize_rows<float>(args, part, worker.scratch);
  } else {
    quantize_rows<bf16>(args, part, worker.scratch);
  }
}

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
