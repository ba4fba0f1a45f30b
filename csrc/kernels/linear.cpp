#include "epilogue.h"
#include "product.h"
#include "tiles.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

// Activations of this many bytes stay in the second-level cache while all panels pass over them.
#if defined(__AMX_BF16__)
constexpr int kActivationBytes = 1024 << 10;
#else
constexpr int kActivationBytes = 512 << 10;
#endif

constexpr int kColumnsAhead = 4096;  // bytes: how far ahead weights are asked for

template <typename A, typename B>
INTERLEAF_INLINE size_t panel_values(int k) {
  return size_t{kPanelColumns} * static_cast<size_t>(sizeof(B) == 2 ? round_up(k, 2) : k);
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
  for_row_blocks(rows, [&]<int M>(int begin) __attribute__((always_inline)) {
    F32x16 sum[M][2];
    clear<M>(sum);
    const A* x = a + static_cast<ptrdiff_t>(begin) * args.k;
    if constexpr (M == 1) {
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
  const int step = higher(1, lower(kActivationBytes / row_bytes, 384) / kMaxRows) * kMaxRows;
  for (int first = 0; first < rows; first += step) {
    const int count = lower(step, rows - first);
    const X* x = static_cast<const X*>(args.x) + static_cast<ptrdiff_t>(first) * args.k;
    const Operand<X>* a = operand_rows(x, static_cast<size_t>(count) * args.k, worker.scratch);
    for (int panel = panels.begin; panel < panels.end; ++panel)
      panel_rows<Operand<X>, B, Y>(args, a, first, count, panel);
  }
}

#if defined(__AMX_BF16__)
constexpr int kStepBytes = kTileDepth * kPanelColumns * 2;  // of a panel, multiplied at once
constexpr int kFetchBytes = 8 * kStepBytes;                 // how far ahead memory is asked for

// A block of rows of one panel whose sums wait to be finished.
struct PendingBlock {
  int row, rows, panel;
};

template <typename Y>
INTERLEAF_INLINE void finish_block(const LinearArgs& args, const PendingBlock& block, const float* sums) {
  for (int r = 0; r < block.rows; ++r)
    finish<Y>(args, block.row + r, block.panel, load(sums + r * kPanelColumns), load(sums + r * kPanelColumns + kLanes));
}

// The same on tile registers, 32 rows by one panel at a time. The tiles of a block are started before the block
// before it is finished: the two use different units.
template <typename Y>
void linear_tiles(const LinearArgs& args, int rows, const Worker& worker) {
  const Range panels = part_of(num_panels(args), worker);
  const int row_step = higher(1, lower(kActivationBytes / (args.k * 2), 512) / kBlockRows) * kBlockRows;
  float* sums[2] = {reinterpret_cast<float*>(worker.scratch),
                    reinterpret_cast<float*>(worker.scratch) + kBlockRows * kPanelColumns};
  PendingBlock pending = {0, 0, 0};
  int turn = 0;
  TileShape shape;
  for (int first = 0; first < rows; first += row_step) {
    const int last = lower(first + row_step, rows);
    for (int panel = panels.begin; panel < panels.end; ++panel) {
      const bf16* weight =
          static_cast<const bf16*>(args.weight) + panel_values<bf16, bf16>(args.k) * static_cast<size_t>(panel);
      const auto columns = [weight](int step) __attribute__((always_inline)) {
        const bf16* b = weight + static_cast<ptrdiff_t>(step) * kTileDepth * kPanelColumns;
        return TileColumns{b, b + 32, 128};
      };
      // The first pass over a panel asks for what comes a little later in memory; the hardware follows one stream, but
      // not from page to page. Asking beyond the end of a weight does no harm.
      const auto fetch = [weight](int step) __attribute__((always_inline)) {
        const char* later = reinterpret_cast<const char*>(weight) + kFetchBytes + step * kStepBytes;
#pragma GCC unroll 32
        for (int i = 0; i < kStepBytes; i += 64) _mm_prefetch(later + i, _MM_HINT_T1);
      };
      for (int row = first; row < last; row += kBlockRows) {
        const int count = lower(kBlockRows, last - row);
        shape.set(count, kTileDepth);
        const bf16* x = static_cast<const bf16*>(args.x) + static_cast<ptrdiff_t>(row) * args.k;
        if (row == 0) {
          tile_product<kTileDepth>(x, args.k, count, args.k / kTileDepth, columns, fetch);
        } else {
          tile_product<kTileDepth>(x, args.k, count, args.k / kTileDepth, columns, nothing_ahead);
        }
        finish_block<Y>(args, pending, sums[turn]);
        turn ^= 1;
        tile_store(sums[turn], kPanelColumns, count, true);
        pending = {row, count, panel};
      }
    }
  }
  finish_block<Y>(args, pending, sums[turn]);
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
