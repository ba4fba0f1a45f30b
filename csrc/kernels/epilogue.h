// What becomes of a linear layer's sums: bias, then stored, added, or gated.
#pragma once

#include "level.h"

namespace interleaf::INTERLEAF_LEVEL {

// Args: LinearArgs or LinearQuantizedArgs.
template <typename Args>
INTERLEAF_INLINE int num_panels(const Args& args) {
  const int columns = is_gated(args.epilogue) ? round_up(args.n / 2, kLanes) * 2 : args.n;
  return (columns + kPanelColumns - 1) / kPanelColumns;
}

template <typename Y, typename Args>
INTERLEAF_INLINE void finish_column_group(const Args& args, Y* y, F32x16 sum, int column) {
  const int count = lower(kLanes, args.n - column);
  if (count <= 0) return;
  if (args.bias) sum = sum + load_partial(args.bias + column, count);
  if (args.epilogue == Epilogue::kAdd) sum = sum + load_partial(y + column, count);
  if (count == kLanes) {
    store(y + column, sum);
  } else {
    store_partial(y + column, sum, count);
  }
}

// Writes one row's 32 sums of a panel.
template <typename Y, typename Args>
INTERLEAF_INLINE void finish(const Args& args, int row, int panel, F32x16 low, F32x16 high) {
  if (is_gated(args.epilogue)) {
    const int width = args.n / 2, column = panel * kLanes;
    Y* y = static_cast<Y*>(args.y) + static_cast<ptrdiff_t>(row) * width + column;
    if (args.bias) {
      low = low + load(args.bias + panel * kPanelColumns);
      high = high + load(args.bias + panel * kPanelColumns + kLanes);
    }
    const F32x16 gated = (args.epilogue == Epilogue::kSiluMul ? silu(low) : gelu_tanh(low)) * high;
    if (column + kLanes <= width) {
      store(y, gated);
    } else {
      store_partial(y, gated, width - column);
    }
    return;
  }
  Y* y = static_cast<Y*>(args.y) + static_cast<ptrdiff_t>(row) * args.n;
  finish_column_group(args, y, low, panel * kPanelColumns);
  finish_column_group(args, y, high, panel * kPanelColumns + kLanes);
}

}  // namespace interleaf::INTERLEAF_LEVEL
