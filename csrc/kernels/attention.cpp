#include "product.h"
#include "tiles.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

#if defined(__AMX_BF16__)
constexpr int kTileQueries = 64;  // rows (tokens x heads of a group) that share one pass over the keys
#else
constexpr int kTileQueries = 48;
#endif

constexpr float kMinusInfinity = -__builtin_huge_valf();
constexpr float kLog2E = 1.44269504088896341f;  // softmax is computed with powers of two

// Strides of a row's scores and weights: not powers of two, or all rows would meet in a few sets of the cache.
constexpr int kScoreStride = kAttentionChunk + 16;
constexpr int kWeightStride = kAttentionChunk + 32;

// One key-value head of one sequence, and the rows of queries that look at it. Row i is head i % group of new token
// i / group.
template <typename T>
struct Span {
  const AttentionArgs& args;
  const int32_t* block_table;
  int kv_head;
  int group;           // query heads a key-value head
  int padded;          // head_dim rounded up to 16
  int first_token;     // of the sequence, in T
  int first_position;  // of that token
  int first_row;
  int num_rows;

  int position_of(int row) const { return first_position + (first_row + row) / group; }
  ptrdiff_t offset_of(int row) const {
    const int index = first_row + row;
    return (static_cast<ptrdiff_t>(first_token + index / group) * args.num_heads + kv_head * group + index % group) *
           args.head_dim;
  }
  const T* key_group(int key) const {
    return static_cast<const T*>(args.k_cache) + block_base(key) +
           static_cast<ptrdiff_t>(key % args.block_size / kKeyGroup) * kKeyGroup * padded;
  }
  // The row of values of `key`: for bf16 of the pair that begins with it (`key` is even).
  const T* value_row(int key) const {
    return static_cast<const T*>(args.v_cache) + block_base(key) + static_cast<ptrdiff_t>(key % args.block_size) * padded;
  }
  ptrdiff_t block_base(int key) const {
    const ptrdiff_t block = block_table[key / args.block_size];
    return (block * args.num_kv_heads + kv_head) * args.block_size * padded;
  }
};

// Where one span is worked on. Everything is indexed by row.
template <typename T>
struct Workspace {
  using A = Operand<T>;
  A* queries;      // [rows, padded]
  float* scores;   // [rows, kScoreStride]
  A* weights;      // [rows, kWeightStride]
  float* partial;  // [rows, padded]: a chunk's weighted values
  float* output;   // [rows, padded]: merged over the chunks so far
  float* maximum;  // [rows]
  float* sum;      // [rows]

  Workspace(char* memory, int padded) {
    const auto take = [&memory]<typename Value>(Value*& pointer, int count) {
      pointer = reinterpret_cast<Value*>(memory);
      memory += round_up(count * static_cast<int>(sizeof(Value)), 64);
    };
    take(queries, kTileQueries * padded);
    take(scores, kTileQueries * kScoreStride);
    take(weights, kTileQueries * kWeightStride);
    take(partial, kTileQueries * padded);
    take(output, kTileQueries * padded);
    take(maximum, kTileQueries);
    take(sum, kTileQueries);
  }
};

template <typename T>
void gather_queries(const Span<T>& span, Workspace<T>& work) {
  using A = Operand<T>;
  const int d = span.args.head_dim;
  for (int row = 0; row < span.num_rows; ++row) {
    const T* source = static_cast<const T*>(span.args.q) + span.offset_of(row);
    A* query = work.queries + static_cast<ptrdiff_t>(row) * span.padded;
    if constexpr (sizeof(T) == sizeof(A)) {
      std::memcpy(query, source, sizeof(A) * static_cast<size_t>(d));
    } else {
      for (int i = 0; i < d; ++i) query[i] = to_float(source[i]);
    }
    for (int i = d; i < span.padded; ++i) query[i] = A{0};
    work.maximum[row] = kMinusInfinity;
    work.sum[row] = 0.0f;
  }
  std::memset(work.output, 0, sizeof(float) * static_cast<size_t>(span.num_rows * span.padded));
}

// scores[row][key - begin] = q . k for keys [begin, end), in groups of 32 (the last may look beyond `end`).
template <typename T>
void score_keys(const Span<T>& span, int begin, int end, Workspace<T>& work) {
  constexpr int kStride = sizeof(T) == 2 ? 2 * kKeyGroup : kKeyGroup;
  for (int key = begin; key < end; key += 2 * kKeyGroup) {
    const T* low = span.key_group(key);
    const T* high = key + kKeyGroup < end ? span.key_group(key + kKeyGroup) : low;
    const auto columns = [low, high](int j) __attribute__((always_inline)) {
      return Columns<T>{low + j * kStride, high + j * kStride};
    };
    for_row_blocks(span.num_rows, [&]<int M>(int row) __attribute__((always_inline)) {
      F32x16 dot[M][2];
      clear<M>(dot);
      product<M>(work.queries + static_cast<ptrdiff_t>(row) * span.padded, span.padded, span.padded, columns,
                 static_cast<const T*>(nullptr), dot);
      float* scores = work.scores + static_cast<ptrdiff_t>(row) * kScoreStride + (key - begin);
#pragma GCC unroll 12
      for (int r = 0; r < M; ++r) {
        store(scores + r * kScoreStride, dot[r][0]);
        store(scores + r * kScoreStride + kKeyGroup, dot[r][1]);
      }
    });
  }
}

#if defined(__AMX_BF16__)
// The same on tiles, which need whole steps of k.
void score_keys_on_tiles(const Span<bf16>& span, int begin, int end, TileShape& shape, Workspace<bf16>& work) {
  for (int row = 0; row < span.num_rows; row += kBlockRows) {
    const int rows = lower(kBlockRows, span.num_rows - row);
    shape.set(rows, kTileDepth);
    for (int key = begin; key < end; key += 2 * kKeyGroup) {
      const bf16* low = span.key_group(key);
      const bf16* high = key + kKeyGroup < end ? span.key_group(key + kKeyGroup) : low;
      tile_product<kTileDepth>(work.queries + static_cast<ptrdiff_t>(row) * span.padded, span.padded, rows,
                               span.padded / kTileDepth, [low, high](int step) __attribute__((always_inline)) {
                                 const int offset = step * kTileDepth * kKeyGroup;
                                 return TileColumns{low + offset, high + offset, 64};
                               },
                               nothing_ahead);
      tile_store(work.scores + static_cast<ptrdiff_t>(row) * kScoreStride + (key - begin), kScoreStride, rows, true);
    }
  }
}
#endif

// The keys of the chunk that a row sees: [first, last), relative to the chunk.
template <typename T>
INTERLEAF_INLINE Range visible_keys(const Span<T>& span, int row, int begin, int end) {
  const int position = span.position_of(row);
  const int first = span.args.window > 0 ? higher(position + 1 - span.args.window, 0) : 0;
  return {higher(first - begin, 0), lower(position + 1, end) - begin};
}

// Bends the scores of a row into (-soft_cap, soft_cap). (Gemma 2)
template <typename T>
INTERLEAF_INLINE void cap_row(const Span<T>& span, float* scores, int width) {
  const F32x16 scale = broadcast(span.args.scale / span.args.soft_cap), cap = broadcast(span.args.soft_cap);
  for (int i = 0; i < width; i += kLanes) store(scores + i, cap * tanh(load(scores + i) * scale));
}

// Turns a row's scores into softmax weights relative to the chunk's own maximum, zero outside of `visible`.
template <typename T>
void weigh_row(const Span<T>& span, int row, Range visible, int num_keys, float* chunk_max, float* chunk_sum,
               Workspace<T>& work) {
  float* scores = work.scores + static_cast<ptrdiff_t>(row) * kScoreStride;
  auto* weights = work.weights + static_cast<ptrdiff_t>(row) * kWeightStride;
  const int width = round_up(num_keys, 2 * kKeyGroup);
  const bool capped = span.args.soft_cap > 0.0f;
  if (capped) cap_row(span, scores, width);
  for (int i = 0; i < lower(visible.begin, width); ++i) scores[i] = kMinusInfinity;
  for (int i = higher(visible.end, 0); i < width; ++i) scores[i] = kMinusInfinity;
  F32x16 highest = broadcast(kMinusInfinity);
  for (int i = 0; i < width; i += kLanes) highest = maximum(load(scores + i), highest);
  const float scale = (capped ? 1.0f : span.args.scale) * kLog2E;
  const float top = reduce_max(highest) * scale;
  *chunk_max = top;
  *chunk_sum = 0.0f;
  if (top == kMinusInfinity) {
    for (int i = 0; i < width; ++i) weights[i] = 0;
    return;
  }
  F32x16 sum = broadcast(0.0f);
  for (int i = 0; i < width; i += kLanes) {
    const F32x16 weight = exp2_of_negative(fma(load(scores + i), broadcast(scale), broadcast(-top)));
    sum = sum + weight;
    store(weights + i, weight);
  }
  *chunk_sum = reduce_add(sum);
}

// partial[row] = weights . values over the chunk's keys.
template <typename T>
void sum_values(const Span<T>& span, int begin, int num_keys, Workspace<T>& work) {
  constexpr int kPair = sizeof(T) == 2 ? 2 : 1;
  const T* rows[kAttentionChunk / kPair];
  const int steps = (num_keys + kPair - 1) / kPair;
  for (int j = 0; j < steps; ++j) rows[j] = span.value_row(begin + j * kPair);
  for (int d = 0; d < span.padded; d += 2 * kLanes) {
    const bool both = d + kLanes < span.padded;
    const int high = both ? kLanes * kPair : 0;
    const auto columns = [&rows, d, high](int j) __attribute__((always_inline)) {
      const T* row = rows[j] + d * kPair;
      return Columns<T>{row, row + high};
    };
    for_row_blocks(span.num_rows, [&]<int M>(int row) __attribute__((always_inline)) {
      F32x16 dot[M][2];
      clear<M>(dot);
      product<M>(work.weights + static_cast<ptrdiff_t>(row) * kWeightStride, kWeightStride, steps * kPair, columns,
                 static_cast<const T*>(nullptr), dot);
      float* partial = work.partial + static_cast<ptrdiff_t>(row) * span.padded + d;
#pragma GCC unroll 12
      for (int r = 0; r < M; ++r) {
        store(partial + r * span.padded, dot[r][0]);
        if (both) store(partial + r * span.padded + kLanes, dot[r][1]);
      }
    });
  }
}

#if defined(__AMX_BF16__)
// The same on tiles, a group of keys a step: the weights behind the last key are zero, and its group's values finite.
void sum_values_on_tiles(const Span<bf16>& span, int begin, int num_keys, TileShape& shape, Workspace<bf16>& work) {
  const bf16* groups[kAttentionChunk / kKeyGroup];
  const int steps = (num_keys + kKeyGroup - 1) / kKeyGroup;
  for (int step = 0; step < steps; ++step) groups[step] = span.value_row(begin + step * kKeyGroup);
  const size_t stride = static_cast<size_t>(span.padded) * 4;
  for (int row = 0; row < span.num_rows; row += kBlockRows) {
    const int rows = lower(kBlockRows, span.num_rows - row);
    shape.set(rows, kKeyGroup);
    for (int d = 0; d < span.padded; d += 2 * kLanes) {
      tile_product<kKeyGroup>(work.weights + static_cast<ptrdiff_t>(row) * kWeightStride, kWeightStride, rows, steps,
                              [&groups, d, stride](int step) __attribute__((always_inline)) {
                                const bf16* values = groups[step] + d * 2;
                                return TileColumns{values, values + 2 * kLanes, stride};
                              },
                              nothing_ahead);
      tile_store(work.partial + static_cast<ptrdiff_t>(row) * span.padded + d, span.padded, rows, true);
    }
  }
}

// Asks for the chunk's values (and the next keys) while its keys are worked on: a page is too short for the hardware
// to see the stream.
void prefetch_chunk(const Span<bf16>& span, int begin, int num_keys) {
  const int group_bytes = kKeyGroup * span.padded * 2;
  for (int key = 0; key < num_keys; key += kKeyGroup) {
    const char* keys = reinterpret_cast<const char*>(span.key_group(begin + key));
    const char* values = reinterpret_cast<const char*>(span.value_row(begin + key));
    for (int i = 0; i < group_bytes; i += 64) _mm_prefetch(keys + i, _MM_HINT_T1);
    for (int i = 0; i < group_bytes; i += 64) _mm_prefetch(values + i, _MM_HINT_T1);
  }
}
#endif

// Folds a chunk's (maximum, sum, weighted values) into the row's.
template <typename T>
void merge_row(const Span<T>& span, int row, float chunk_max, float chunk_sum, Workspace<T>& work) {
  if (chunk_max == kMinusInfinity) return;
  const float top = work.maximum[row] > chunk_max ? work.maximum[row] : chunk_max;
  const float keep = exp2_of_negative(work.maximum[row] - top), add = exp2_of_negative(chunk_max - top);
  work.maximum[row] = top;
  work.sum[row] = work.sum[row] * keep + chunk_sum * add;
  float* output = work.output + static_cast<ptrdiff_t>(row) * span.padded;
  const float* partial = work.partial + static_cast<ptrdiff_t>(row) * span.padded;
  for (int d = 0; d < span.padded; d += kLanes)
    store(output + d, fma(load(output + d), broadcast(keep), load(partial + d) * broadcast(add)));
}

template <typename T>
void write_output(const Span<T>& span, const Workspace<T>& work) {
  const int d = span.args.head_dim;
  for (int row = 0; row < span.num_rows; ++row) {
    T* y = static_cast<T*>(span.args.y) + span.offset_of(row);
    const float* output = work.output + static_cast<ptrdiff_t>(row) * span.padded;
    const F32x16 inverse = broadcast(1.0f / work.sum[row]);
    int i = 0;
    for (; i + kLanes <= d; i += kLanes) store(y + i, load(output + i) * inverse);
    if (i < d) store_partial(y + i, load(output + i) * inverse, d - i);
  }
}

// Scores, softmax and weighted values of one chunk of keys, for all rows.
template <typename T>
void attend_to_chunk(const Span<T>& span, int begin, int num_keys, Workspace<T>& work) {
  float chunk_max[kTileQueries], chunk_sum[kTileQueries];
  const auto weigh_rows = [&]() __attribute__((always_inline)) {
    for (int row = 0; row < span.num_rows; ++row)
      weigh_row(span, row, visible_keys(span, row, begin, begin + num_keys), num_keys, chunk_max + row, chunk_sum + row,
                work);
  };
#if defined(__AMX_BF16__)
  if constexpr (sizeof(T) == 2) {
    if (span.padded % kTileDepth == 0) {
      if (span.num_rows <= kTileRows) prefetch_chunk(span, begin, num_keys);
      TileShape shape;
      score_keys_on_tiles(span, begin, begin + num_keys, shape, work);
      weigh_rows();
      sum_values_on_tiles(span, begin, num_keys, shape, work);
      for (int row = 0; row < span.num_rows; ++row) merge_row(span, row, chunk_max[row], chunk_sum[row], work);
      return;
    }
  }
#endif
  score_keys(span, begin, begin + num_keys, work);
  weigh_rows();
  sum_values(span, begin, num_keys, work);
  for (int row = 0; row < span.num_rows; ++row) merge_row(span, row, chunk_max[row], chunk_sum[row], work);
}

template <typename T>
void attend(const Span<T>& span, char* scratch) {
  Workspace<T> work(scratch, span.padded);
  gather_queries(span, work);
  const int end = span.position_of(span.num_rows - 1) + 1;
  const int first = span.args.window > 0 ? higher(span.position_of(0) + 1 - span.args.window, 0) : 0;
  for (int begin = first / kAttentionChunk * kAttentionChunk; begin < end; begin += kAttentionChunk)
    attend_to_chunk(span, begin, lower(end - begin, kAttentionChunk), work);
  write_output(span, work);
}

// Spans are dealt to the threads by their cost, so that one long sequence does not leave the others waiting.
template <typename T>
void attention_typed(const AttentionArgs& args, int num_sequences, const Worker& worker) {
  const int group = args.num_heads / args.num_kv_heads;
  const auto for_each_span = [&](auto visit) __attribute__((always_inline)) {
    for (int s = 0; s < num_sequences; ++s) {
      const int first_token = args.query_start[s];
      const int num_tokens = args.query_start[s + 1] - first_token;
      const int32_t* block_table = args.block_tables + args.sequence_rows[s] * args.block_table_stride;
      for (int row = 0; row < num_tokens * group; row += kTileQueries)
        for (int g = 0; g < args.num_kv_heads; ++g)
          visit(Span<T>{args, block_table, g, group, round_up(args.head_dim, kLanes), first_token,
                        args.context_lengths[s] - num_tokens, row, lower(kTileQueries, num_tokens * group - row)});
    }
  };
  const auto cost_of = [](const Span<T>& span) __attribute__((always_inline)) {
    return static_cast<int64_t>(span.position_of(span.num_rows - 1) + 64) * (span.num_rows + 8);
  };
  int64_t total = 0;
  for_each_span([&](const Span<T>& span) { total += cost_of(span); });
  int64_t before = 0;
  for_each_span([&](const Span<T>& span) {
    const int64_t middle = before + cost_of(span) / 2;
    before += cost_of(span);
    if (middle * worker.num_threads / total == worker.thread) attend(span, worker.scratch);
  });
}

}  // namespace

void attention(const AttentionArgs& args, int num_sequences, const Worker& worker) {
  if (args.type == DType::kF32) {
    attention_typed<float>(args, num_sequences, worker);
  } else {
    attention_typed<bf16>(args, num_sequences, worker);
  }
}

}  // namespace interleaf::INTERLEAF_LEVEL
