#include "level.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

// Sum of squares in sixteen lanes, then in a fixed tree.
INTERLEAF_INLINE float sum_of_squares(const float* x, int width) {
  F32x16 sum = broadcast(0.0f);
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const F32x16 v = load(x + i);
    sum = fma(v, v, sum);
  }
  if (i < width) {
    const F32x16 v = load_partial(x + i, width - i);
    sum = fma(v, v, sum);
  }
  return reduce_add(sum);
}

template <typename Y>
INTERLEAF_INLINE void normalize_row(const float* x, const float* weight, Y* y, int width, float eps) {
  const float mean = sum_of_squares(x, width) / static_cast<float>(width);
  const F32x16 scale = broadcast(1.0f / __builtin_sqrtf(mean + eps));
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) store(y + i, load(x + i) * scale * load(weight + i));
  if (i < width)
    store_partial(y + i, load_partial(x + i, width - i) * scale * load_partial(weight + i, width - i), width - i);
}

// The same, added to `y`.
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
    const int source = args.row_index ? args.row_index[row] : row;
    normalize_row(args.x + static_cast<ptrdiff_t>(source) * args.width, args.weight,
                  static_cast<Y*>(args.y) + static_cast<ptrdiff_t>(row) * args.width, args.width, args.eps);
  }
}

// One head: normalized (when weights are given) and rotated, in `head`.
INTERLEAF_INLINE void prepare_head(const RotaryCacheArgs& args, const float* source, const float* norm, int position,
                                   float* head) {
  if (norm) {
    normalize_row(source, norm, head, args.head_dim, args.eps);
    source = head;
  }
  const int half = args.rotary_dim / 2;
  const float* cosines = args.cos_sin + static_cast<ptrdiff_t>(position) * args.rotary_dim;
  const float* sines = cosines + half;
  for (int i = 0; i < half; i += kLanes) {
    const int count = lower(kLanes, half - i);
    const F32x16 a = load_partial(source + i, count), b = load_partial(source + half + i, count);
    const F32x16 c = load_partial(cosines + i, count), s = load_partial(sines + i, count);
    store_partial(head + i, a * c - b * s, count);
    store_partial(head + half + i, b * c + a * s, count);
  }
  for (int i = args.rotary_dim; i < args.head_dim; ++i) head[i] = source[i];
}

INTERLEAF_INLINE void convert(float value, float* to) { *to = value; }
INTERLEAF_INLINE void convert(float value, bf16* to) { *to = to_bf16(value); }

template <typename T>
INTERLEAF_INLINE void copy_head(const float* head, T* to, int count) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(head + i));
  if (i < count) store_partial(to + i, load_partial(head + i, count - i), count - i);
}

// Key: values of one token lie `kKeyGroup` apart; for bf16 pairs of them do.
INTERLEAF_INLINE void write_key(const float* head, int head_dim, int padded, int offset, float* group) {
  for (int d = 0; d < padded; ++d) group[d * kKeyGroup + offset] = d < head_dim ? head[d] : 0.0f;
}
INTERLEAF_INLINE void write_key(const float* head, int head_dim, int padded, int offset, bf16* group) {
  alignas(64) bf16 values[1024];
  copy_head(head, values, head_dim);
  for (int d = head_dim; d < padded; ++d) values[d] = 0;
  for (int d = 0; d < padded; d += 2) std::memcpy(group + d * kKeyGroup + offset * 2, values + d, 4);
}

// Value: tokens lie in pairs for bf16.
template <typename T>
INTERLEAF_INLINE void write_value(const float* head, int head_dim, int padded, int offset, T* block) {
  constexpr int kPair = sizeof(T) == 2 ? 2 : 1;
  T* row = block + static_cast<ptrdiff_t>(offset / kPair) * padded * kPair + offset % kPair;
  for (int d = 0; d < padded; ++d) convert(d < head_dim ? head[d] : 0.0f, row + d * kPair);
}

// How many of the following rows continue this row's key group in this step.
INTERLEAF_INLINE int rows_in_group(const int32_t* slots, int row, int num_rows, int most) {
  int count = 1;
  while (count < most && row + count < num_rows && slots[row + count] == slots[row] + count) ++count;
  return count;
}

// Zeroes the values of a key group from token `first` on. What lies there is an earlier owner's, and a NaN there, times
// a probability of zero, is NaN.
template <typename T>
INTERLEAF_INLINE void clear_values(int first, int padded, T* group) {
  constexpr int kPair = sizeof(T) == 2 ? 2 : 1;
  for (int token = first; token < kKeyGroup; ++token) {
    T* row = group + static_cast<ptrdiff_t>(token / kPair) * padded * kPair + token % kPair;
    for (int d = 0; d < padded; ++d) row[d * kPair] = 0;
  }
}

template <typename T>
void rotary_cache_rows(const RotaryCacheArgs& args, Range rows, int num_rows) {
  alignas(64) float head[1024];
  const int d = args.head_dim, padded = round_up(d, kLanes);
  const int heads = args.num_heads, kv_heads = args.num_kv_heads;
  for (int row = rows.begin; row < rows.end; ++row) {
    const float* qkv = args.qkv + static_cast<ptrdiff_t>(row) * (heads + 2 * kv_heads) * d;
    T* q = static_cast<T*>(args.q) + static_cast<ptrdiff_t>(row) * heads * d;
    for (int h = 0; h < heads; ++h) {
      prepare_head(args, qkv + h * d, args.q_norm, args.positions[row], head);
      copy_head(head, q + h * d, d);
    }
    const int slot = args.slots[row], block = slot / args.block_size, offset = slot % args.block_size;
    const int in_group = offset % kKeyGroup;
    const int filled = in_group ? kKeyGroup : rows_in_group(args.slots, row, num_rows, kKeyGroup);
    for (int g = 0; g < kv_heads; ++g) {
      const ptrdiff_t base = (static_cast<ptrdiff_t>(block) * kv_heads + g) * args.block_size * padded +
                             static_cast<ptrdiff_t>(offset - in_group) * padded;
      T* values = static_cast<T*>(args.v_cache) + base;
      prepare_head(args, qkv + (heads + g) * d, args.k_norm, args.positions[row], head);
      write_key(head, d, padded, in_group, static_cast<T*>(args.k_cache) + base);
      write_value(qkv + (heads + kv_heads + g) * d, d, padded, in_group, values);
      clear_values(filled, padded, values);
    }
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

void rotary_cache(const RotaryCacheArgs& args, int rows, const Worker& worker) {
  const Range part = part_of(rows, worker);
  if (args.type == DType::kF32) {
    rotary_cache_rows<float>(args, part, rows);
  } else {
    rotary_cache_rows<bf16>(args, part, rows);
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
