#include <type_traits>

#include "epilogue.h"
#include "product.h"
#include "tile_gemm.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

// Activations of this many bytes stay in the second-level cache while all panels pass over them.
constexpr int kActivationBytes = 512 << 10;

template <typename B>
INTERLEAF_INLINE size_t panel_values(int k) {
  return size_t{kPanelColumns} * static_cast<size_t>(sizeof(B) == 2 ? round_up(k, 2) : k);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Sixteen registers hold six rows by a half of a panel, for which each value of B is loaded (and widened) less often
// than for two rows by a panel.
constexpr bool kHalves = true;
constexpr int kRows = 6;
#else
constexpr bool kHalves = false;
constexpr int kRows = kMaxRows;
#endif

template <int M, typename Stride>
INTERLEAF_INLINE void half_product(const float* a, Stride lda, int k_size, const float* b, WeightsAhead& ahead,
                                   F32x16 (&sum)[M]) {
  for (int k = 0; k < k_size; ++k, b += kPanelColumns) {
    ahead.ask();
    const F32x16 columns = load(b);
#pragma GCC unroll 6
    for (int r = 0; r < M; ++r) sum[r] = fma(broadcast(a[r * lda + k]), columns, sum[r]);
  }
}

template <int M, typename Stride>
INTERLEAF_INLINE void half_product(const float* a, Stride lda, int k_size, const bf16* b, WeightsAhead& ahead,
                                   F32x16 (&sum)[M]) {
  for (int k = 0; k < k_size; k += 2, b += 2 * kPanelColumns) {
    ahead.ask();
    const F32x16 even = load_even(b);
#pragma GCC unroll 6
    for (int r = 0; r < M; ++r) sum[r] = fma(broadcast(a[r * lda + k]), even, sum[r]);
    if (k + 1 == k_size) break;
    const F32x16 odd = load_odd(b);
#pragma GCC unroll 6
    for (int r = 0; r < M; ++r) sum[r] = fma(broadcast(a[r * lda + k + 1]), odd, sum[r]);
  }
}

// The same sums as product() gives, half a panel at a time.
template <int M, typename A, typename Stride, typename B>
INTERLEAF_INLINE void product_in_halves(const A* a, Stride lda, int k, const B* panel, WeightsAhead& ahead,
                                        F32x16 (&sum)[M][2]) {
  constexpr int kHalf = static_cast<int>(kLanes * (4 / sizeof(B)));
  for (int half = 0; half < 2; ++half) {
    F32x16 total[M];
#pragma GCC unroll 6
    for (int r = 0; r < M; ++r) total[r] = sum[r][half];
    half_product<M>(a, lda, k, panel + half * kHalf, ahead, total);
#pragma GCC unroll 6
    for (int r = 0; r < M; ++r) sum[r][half] = total[r];
  }
}

// Rows as the level multiplies them, in slices of k: row r of slice s lies at (s * rows + r) * stride.
template <typename A, typename Stride>
struct OperandRows {
  const A* data;
  int rows;
  Stride stride;
  int slice_depth;
};

// bf16 is widened into scratch where there is no product of bf16, in slices with one stride for all layers: then a
// block's rows are one address and constants.
constexpr int kWideDepth = 512;
using WideStride = std::integral_constant<ptrdiff_t, kWideDepth + 16>;

INTERLEAF_INLINE OperandRows<float, WideStride> widen_rows(const bf16* x, int rows, int k, char* scratch) {
  float* wide = reinterpret_cast<float*>(scratch);
  float* to = wide;
  for (int begin = 0; begin < k; begin += kWideDepth)
    for (int row = 0; row < rows; ++row, to += WideStride::value) {
      const bf16* from = x + static_cast<ptrdiff_t>(row) * k + begin;
      const int count = lower(kWideDepth, k - begin);
      int i = 0;
      for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
      for (; i < count; ++i) to[i] = to_float(from[i]);
    }
  return {wide, rows, {}, kWideDepth};
}

template <int M>
constexpr bool kInHalves = kHalves && M > 2;

// A block of M rows by a panel. A function of its own, or gcc 12 keeps its sums in memory.
template <int M, typename B, typename Y, typename Rows>
__attribute__((noinline)) void row_block(const LinearArgs& args, Rows rows, int begin, int first, int panel,
                                         WeightsAhead ahead) {
  constexpr int kStride = sizeof(B) == 2 ? 2 * kPanelColumns : kPanelColumns, kDeep = sizeof(B) == 2 ? 2 : 1;
  const B* weight = static_cast<const B*>(args.weight) + panel_values<B>(args.k) * static_cast<size_t>(panel);
  F32x16 sum[M][2];
  clear<M>(sum);
  const auto* x = rows.data + begin * rows.stride;
  for (int k = 0; k < args.k; k += rows.slice_depth, x += rows.rows * rows.stride) {
    const int depth = lower(rows.slice_depth, args.k - k);
    const B* here = weight + static_cast<ptrdiff_t>(k / kDeep) * kStride;
    const auto columns = [here, &ahead](int j) __attribute__((always_inline)) {
      const B* row = here + static_cast<ptrdiff_t>(j) * kStride;
      if constexpr (kAsksAhead<M>) {
        ahead.ask();
        ahead.ask();
      }
      return Columns<B>{row, row + kStride / 2};
    };
    if constexpr (kInHalves<M>) {
      product_in_halves<M>(x, rows.stride, depth, here, ahead, sum);
    } else {
      product<M>(x, rows.stride, depth, columns, static_cast<const B*>(nullptr), sum);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < M; ++r) finish<Y>(args, first + begin + r, panel, sum[r][0], sum[r][1]);
}

template <typename X, typename B, typename Y>
void linear_typed(const LinearArgs& args, int rows, const Worker& worker) {
  const Range panels = part_of(num_panels(args), worker);
  const int row_bytes = args.k * static_cast<int>(sizeof(Operand<X>));
  const int step = higher(1, lower(kActivationBytes / row_bytes, 384) / kRows) * kRows;
  for (int first = 0; first < rows; first += step) {
    const int count = lower(step, rows - first);
    const X* x = static_cast<const X*>(args.x) + static_cast<ptrdiff_t>(first) * args.k;
    const auto operand = [&] {
      if constexpr (sizeof(X) == sizeof(Operand<X>)) {
        return OperandRows<X, ptrdiff_t>{x, count, args.k, args.k};
      } else {
        return widen_rows(x, count, args.k, worker.scratch);
      }
    }();
    const size_t panel_bytes = panel_values<B>(args.k) * sizeof(B);
    const int blocks = num_row_blocks(count, kRows);
    for (int panel = panels.begin; panel < panels.end; ++panel)
      for_row_blocks<kRows>(count, [&]<int M>(int begin) __attribute__((always_inline)) {
        const char* weight = static_cast<const char*>(args.weight) + panel_bytes * static_cast<size_t>(panel);
        const WeightsAhead ahead(weight, panel_bytes, begin, count, blocks, kInHalves<M>);
        row_block<M, B, Y>(args, operand, begin, first, panel, ahead);
      });
  }
}

#if defined(__AMX_BF16__)
// The same on tile registers.
template <typename Y>
void linear_tiles(const LinearArgs& args, int rows, const Worker& worker) {
  const Range panels = part_of(num_panels(args), worker);
  const size_t row_bytes = static_cast<size_t>(args.k) * 2;
  tile_gemm<TileKind::kBf16>(
      args.x, row_bytes, rows, panels, worker.scratch,
      [&](int count, bool first) { return PackedPanels(args.weight, row_bytes * kPanelColumns, count, first); },
      [&](int row, int panel, const float* sums) __attribute__((always_inline)) {
        finish<Y>(args, row, panel, load(sums), load(sums + kLanes));
      });
}
#endif

template <typename X, typename B>
void linear_to(const LinearArgs& args, int rows, const Worker& worker) {
  if (args.y_type == DType::kF32) {
    linear_typed<X, B, float>(args, rows, worker);
  } else {
    linear_typed<X, B, bf16>(args, rows, worker);
  }
}

}  // namespace

void linear(const LinearArgs& args, int rows, const Worker& worker) {
  if (args.x_type == DType::kF32) {
    if (args.weight_type == DType::kF32) return linear_to<float, float>(args, rows, worker);
    return linear_to<float, bf16>(args, rows, worker);
  }
#if defined(__AMX_BF16__)
  if (args.k % kTileDepth == 0) {
    if (args.y_type == DType::kF32) return linear_tiles<float>(args, rows, worker);
    return linear_tiles<bf16>(args, rows, worker);
  }
#endif
  linear_to<bf16, bf16>(args, rows, worker);
}

}  // namespace interleaf::INTERLEAF_LEVEL
