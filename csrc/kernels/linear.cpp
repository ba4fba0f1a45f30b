#include "epilogue.h"
#include "product.h"
#include "tile_gemm.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

// Activations of this many bytes stay in the second-level cache while all panels pass over them.
constexpr int kActivationBytes = 512 << 10;

constexpr int kColumnsAhead = 4096;  // bytes: how far ahead weights are asked for

template <typename A, typename B>
INTERLEAF_INLINE size_t panel_values(int k) {
  return size_t{kPanelColumns} * static_cast<size_t>(sizeof(B) == 2 ? round_up(k, 2) : k);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Sixteen registers hold six rows by a half of a panel, for which each value of B is loaded (and widened) less often than for
// two rows by a panel.
constexpr bool kHalves = true;
constexpr int kRows = 6;
#else
constexpr bool kHalves = false;
constexpr int kRows = kMaxRows;
#endif

template <int M>
INTERLEAF_INLINE void half_product(const float* a, ptrdiff_t lda, int k_size, const float* b, F32x16 (&sum)[M]) {
  for (int k = 0; k < k_size; ++k, b += kPanelColumns) {
    const F32x16 columns = load(b);
#pragma GCC unroll 6
    for (int r = 0; r < M; ++r) sum[r] = fma(broadcast(a[r * lda + k]), columns, sum[r]);
  }
}

template <int M>
INTERLEAF_INLINE void half_product(const float* a, ptrdiff_t lda, int k_size, const bf16* b, F32x16 (&sum)[M]) {
  for (int k = 0; k < k_size; k += 2, b += 2 * kPanelColumns) {
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
template <int M, typename A, typename B>
INTERLEAF_INLINE void product_in_halves(const A* a, int k, const B* panel, F32x16 (&sum)[M][2]) {
  constexpr int kHalf = static_cast<int>(kLanes * (4 / sizeof(B)));
  for (int half = 0; half < 2; ++half) {
    F32x16 total[M];
#pragma GCC unroll 6
    for (int r = 0; r < M; ++r) total[r] = broadcast(0.0f);
    half_product<M>(a, k, k, panel + half * kHalf, total);
#pragma GCC unroll 6
    for (int r = 0; r < M; ++r) sum[r][half] = total[r];
  }
}

// Rows [first, first + rows) of one panel.
template <typename A, typename B, typename Y>
void panel_rows(const LinearArgs& args, const A* a, int first, int rows, int panel) {
  const B* weight = static_cast<const B*>(args.weight) + panel_values<A, B>(args.k) * static_cast<size_t>(panel);
  constexpr int kStride = sizeof(B) == 2 ? 2 * kPanelColumns : kPanelColumns;
  const auto columns = [weight](int j) __attribute__((always_inline)) {
    const B* row = weight + static_cast<ptrdiff_t>(j) * kStride;
    return Columns<B>{row, row + kStride / 2};
  };
  // One row waits for nothing but memory, and the hardware runs ahead of it. With several, the products that wait for
  // their operands keep later loads from starting.
  const auto columns_and_later = [columns](int j) __attribute__((always_inline)) {
    const Columns<B> here = columns(j);
    __builtin_prefetch(reinterpret_cast<const char*>(here.low) + kColumnsAhead, 0, 2);
    __builtin_prefetch(reinterpret_cast<const char*>(here.high) + kColumnsAhead, 0, 2);
    return here;
  };
  for_row_blocks<kRows>(rows, [&]<int M>(int begin) __attribute__((always_inline)) {
    F32x16 sum[M][2];
    clear<M>(sum);
    const A* x = a + static_cast<ptrdiff_t>(begin) * args.k;
    if constexpr (kHalves && M > 2) {
      product_in_halves<M>(x, args.k, weight, sum);
    } else if constexpr (M == 1) {
      product<M>(x, args.k, args.k, columns, static_cast<const B*>(nullptr), sum);
    } else {
      product<M>(x, args.k, args.k, columns_and_later, static_cast<const B*>(nullptr), sum);
    }
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r) finish<Y>(args, first + begin + r, panel, sum[r][0], sum[r][1]);
  });
}

// bf16 rows as the level multiplies them: as they are, or widened into scratch.
template <typename X>
INTERLEAF_INLINE const Operand<X>* operand_rows(const X* x, size_t count, char* scratch) {
  if constexpr (sizeof(X) == sizeof(Operand<X>)) {
    return x;
  } else {
    float* wide = reinterpret_cast<float*>(scratch);
    for (size_t i = 0; i < count; ++i) wide[i] = to_float(x[i]);
    return wide;
  }
}

template <typename X, typename B, typename Y>
void linear_typed(const LinearArgs& args, int rows, const Worker& worker) {
  const Range panels = part_of(num_panels(args), worker);
  const int row_bytes = args.k * static_cast<int>(sizeof(Operand<X>));
  const int step = higher(1, lower(kActivationBytes / row_bytes, 384) / kRows) * kRows;
  for (int first = 0; first < rows; first += step) {
    const int count = lower(step, rows - first);
    const X* x = static_cast<const X*>(args.x) + static_cast<ptrdiff_t>(first) * args.k;
    const Operand<X>* a = operand_rows(x, static_cast<size_t>(count) * args.k, worker.scratch);
    for (int panel = panels.begin; panel < panels.end; ++panel)
      panel_rows<Operand<X>, B, Y>(args, a, first, count, panel);
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
