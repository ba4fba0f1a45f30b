#include "norm.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

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

constexpr int kMaxHeadDim = 1024;

INTERLEAF_INLINE void convert(float value, float* to) { *to = value; }
INTERLEAF_INLINE void convert(float value, bf16* to) { *to = to_bf16(value); }
INTERLEAF_INLINE void convert(float value, int8_t* to) { *to = static_cast<int8_t>(__builtin_nearbyintf(value)); }

template <typename T>
INTERLEAF_INLINE void copy_head(const float* head, T* to, int count) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(head + i));
  if (i < count) store_partial(to + i, load_partial(head + i, count - i), count - i);
}

// Key: values of one token lie `kKeyGroup` apart; for bf16 and int8 pairs of them do. `head` has `padded` values.
INTERLEAF_INLINE void write_key(const float* head, int padded, int offset, float* group) {
  for (int d = 0; d < padded; ++d) group[d * kKeyGroup + offset] = head[d];
}
INTERLEAF_INLINE void write_key(const float* head, int padded, int offset, bf16* group) {
  alignas(64) bf16 values[kMaxHeadDim];
  copy_head(head, values, padded);
  for (int d = 0; d < padded; d += 2) std::memcpy(group + d * kKeyGroup + offset * 2, values + d, 4);
}
INTERLEAF_INLINE void write_key(const float* head, int padded, int offset, int8_t* group) {
  int8_t* to = group + offset * 2;
  for (int d = 0; d < padded; ++d) convert(head[d], to + d / 2 * 2 * kKeyGroup + d % 2);
}

// Value: tokens lie in pairs for bf16 and int8.
template <typename T>
constexpr int kPairOf = sizeof(T) == 4 ? 1 : 2;

template <typename T>
INTERLEAF_INLINE void write_value(const float* head, int padded, int offset, T* group) {
  constexpr int kPair = kPairOf<T>;
  T* row = group + static_cast<ptrdiff_t>(offset / kPair) * padded * kPair + offset % kPair;
  for (int d = 0; d < padded; ++d) convert(head[d], row + d * kPair);
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
  constexpr int kPair = kPairOf<T>;
  for (int token = first; token < kKeyGroup; ++token) {
    T* row = group + static_cast<ptrdiff_t>(token / kPair) * padded * kPair + token % kPair;
    for (int d = 0; d < padded; ++d) row[d * kPair] = 0;
  }
}

// Divides a head by the scale at which its largest value is 127; returns the scale.
INTERLEAF_INLINE float normalize_to_int8(float* head, int padded) {
  F32x16 largest = broadcast(0.0f);
  for (int d = 0; d < padded; d += kLanes) {
    const F32x16 x = load(head + d);
    largest = maximum(largest, maximum(x, broadcast(0.0f) - x));
  }
  const float most = reduce_max(largest);
  const F32x16 inverse = broadcast(most > 0.0f ? 127.0f / most : 0.0f);
  for (int d = 0; d < padded; d += kLanes)
    store(head + d, maximum(minimum(load(head + d) * inverse, broadcast(127.0f)), broadcast(-127.0f)));
  return most / 127.0f;
}

// Where a token's key or value of head 0 lies: the group of 16 tokens that it belongs to, and its place there.
struct Slot {
  ptrdiff_t block;  // in bytes from block 0
  int group;        // first token of the group, in the block
  int in_group;
};

// Writes one head's key and value. `filled`: the tokens of the group, from the first on, that are written in this step.
template <typename C>
INTERLEAF_INLINE void write_head(const PagedCache& cache, Slot slot, int g, int filled, int padded, float* key,
                                 float* value) {
  const ptrdiff_t token = static_cast<ptrdiff_t>(g) * cache.block_size + slot.group;
  C* keys = reinterpret_cast<C*>(cache.keys + slot.block) + token * padded;
  C* values = reinterpret_cast<C*>(cache.values + slot.block) + token * padded;
  if constexpr (sizeof(C) == 1) {
    float* key_scales = reinterpret_cast<float*>(cache.key_scales + slot.block) + token;
    float* value_scales = reinterpret_cast<float*>(cache.value_scales + slot.block) + token;
    key_scales[slot.in_group] = normalize_to_int8(key, padded);
    value_scales[slot.in_group] = normalize_to_int8(value, padded);
    for (int i = filled; i < kKeyGroup; ++i) value_scales[i] = 0.0f;
  } else {
    clear_values(filled, padded, values);
  }
  write_key(key, padded, slot.in_group, keys);
  write_value(value, padded, slot.in_group, values);
}

template <typename T, typename C>
void rotary_cache_rows(const RotaryCacheArgs& args, Range rows, int num_rows) {
  alignas(64) float key[kMaxHeadDim] = {}, value[kMaxHeadDim] = {};
  const int d = args.head_dim, padded = round_up(d, kLanes), block_size = args.cache.block_size;
  const int heads = args.num_heads, kv_heads = args.cache.num_kv_heads;
  for (int row = rows.begin; row < rows.end; ++row) {
    const float* qkv = args.qkv + static_cast<ptrdiff_t>(row) * (heads + 2 * kv_heads) * d;
    T* q = static_cast<T*>(args.q) + static_cast<ptrdiff_t>(row) * heads * d;
    for (int h = 0; h < heads; ++h) {
      prepare_head(args, qkv + h * d, args.q_norm, args.positions[row], key);
      copy_head(key, q + h * d, d);
    }
    const int offset = args.slots[row] % block_size, in_group = offset % kKeyGroup;
    const Slot slot = {args.slots[row] / block_size * args.cache.block_stride, offset - in_group, in_group};
    const int filled = in_group ? kKeyGroup : rows_in_group(args.slots, row, num_rows, kKeyGroup);
    for (int g = 0; g < kv_heads; ++g) {
      prepare_head(args, qkv + (heads + g) * d, args.k_norm, args.positions[row], key);
      std::memcpy(value, qkv + (heads + kv_heads + g) * d, sizeof(float) * static_cast<size_t>(d));
      write_head<C>(args.cache, slot, g, filled, padded, key, value);
    }
  }
}

}  // namespace

void rotary_cache(const RotaryCacheArgs& args, int rows, const Worker& worker) {
  const Range part = part_of(rows, worker);
  const bool wide = args.type == DType::kF32, small = args.cache.type == DType::kInt8;
  if (wide && small) return rotary_cache_rows<float, int8_t>(args, part, rows);
  if (wide) return rotary_cache_rows<float, float>(args, part, rows);
  if (small) return rotary_cache_rows<bf16, int8_t>(args, part, rows);
  rotary_cache_rows<bf16, bf16>(args, part, rows);
}

}  // namespace interleaf::INTERLEAF_LEVEL
