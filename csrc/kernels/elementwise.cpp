#include "norm.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

// normalize_row(), added to `y`.
INTERLEAF_INLINE void add_normalized_row(const float* x, const float* weight, float* y, int width, float eps) {
  const float mean = sum_of_squares(x, width) / static_cast<float>(width);
  const F32x16 scale = broadcast(1.0f / __builtin_sqrtf(mean + eps));
  for (int i = 0; i < width; i += kLanes) {
    const int count = lower(kLanes, width - i);
    const F32x16 normalized = load_partial(x + i, count) * scale * load_partial(weight + i, count);
    store_partial(y + i, load_partial(y + i, count) + normalized, count);
  }
}

template <typename Y>
void rms_norm_rows(const RmsNormArgs& args, Range rows) {
  for (int row = rows.begin; row < rows.end; ++row) {
    const ptrdiff_t place = static_cast<ptrdiff_t>(row) * args.width;
    normalize_row(args.x + place, args.weight, static_cast<Y*>(args.y) + place, args.width, args.eps);
  }
}

template <typename T>
void embedding_rows(const EmbeddingArgs& args, Range rows) {
  constexpr int kPair = sizeof(T) == 2 ? 2 : 1;
  const size_t panel_values = size_t{kPanelColumns} * static_cast<size_t>(round_up(args.width, kPair));
  for (int row = rows.begin; row < rows.end; ++row) {
    const int id = args.ids[row];
    const T* column = static_cast<const T*>(args.table) + panel_values * static_cast<size_t>(id / kPanelColumns) +
                      (id % kPanelColumns) * kPair;
    float* y = args.y + static_cast<ptrdiff_t>(row) * args.width;
    for (int k = 0; k < args.width; ++k) y[k] = args.scale * to_float(column[(k / kPair) * kPanelColumns * kPair + k % kPair]);
  }
}

}  // namespace

float read_all(const float* data, size_t count) {
  F32x16 sums[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
  for (size_t i = 0; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int lane = 0; lane < 4; ++lane) sums[lane] = sums[lane] + load(data + i + static_cast<size_t>(lane * kLanes));
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

void take_rows(const TakeRowsArgs& args, int rows, const Worker& worker) {
  const Range part = part_of(rows, worker);
  const size_t bytes = static_cast<size_t>(args.row_bytes);
  for (int row = part.begin; row < part.end; ++row) {
    const char* from = args.x + static_cast<size_t>(args.row_index[row]) * bytes;
    std::memcpy(args.y + static_cast<size_t>(row) * bytes, from, bytes);
  }
}

void rms_norm(const RmsNormArgs& args, int rows, const Worker& worker) {
  const Range part = part_of(rows, worker);
  if (args.add) {
    for (int row = part.begin; row < part.end; ++row) {
      const ptrdiff_t place = static_cast<ptrdiff_t>(row) * args.width;
      add_normalized_row(args.x + place, args.weight, static_cast<float*>(args.y) + place, args.width, args.eps);
    }
  } else if (args.y_type == DType::kF32) {
    rms_norm_rows<float>(args, part);
  } else {
    rms_norm_rows<bf16>(args, part);
  }
}

void soft_cap(const SoftCapArgs& args, int rows, const Worker& worker) {
  const F32x16 cap = broadcast(args.cap), inverse = broadcast(1.0f / args.cap);
  const Range part = part_of(round_up(args.width, kLanes) / kLanes, worker);
  for (int row = 0; row < rows; ++row) {
    float* x = args.x + static_cast<ptrdiff_t>(row) * args.width;
    for (int i = part.begin * kLanes; i < lower(part.end * kLanes, args.width); i += kLanes) {
      const int count = lower(kLanes, args.width - i);
      store_partial(x + i, cap * tanh(load_partial(x + i, count) * inverse), count);
    }
  }
}

void embedding(const EmbeddingArgs& args, int rows, const Worker& worker) {
  const Range part = part_of(rows, worker);
  if (args.table_type == DType::kF32) {
    embedding_rows<float>(args, part);
  } else {
    embedding_rows<bf16>(args, part);
  }
}

}  // namespace interleaf::INTERLEAF_LEVEL
