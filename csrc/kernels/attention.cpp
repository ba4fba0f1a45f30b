#include "product.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

constexpr int kTileQueries = 48;  // rows (tokens x heads of a group) that share one pass over the keys

constexpr float kMinusInfinity = -__builtin_huge_valf();

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
  float* scores;   // [rows, kAttentionChunk]
  A* weights;      // [rows, kAttentionChunk]
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
    take(scores, kTileQueries * kAttentionChunk);
    take(weights, kTileQueries * kAttentionChunk);
    take(partial, kTileQueries * padded);
    take(output, kTileQueries * padded);
    take(maximum, kTileQueries);
    take(sum, kTileQueries);
  }
};

template <typename T>
void gather_queries(const Span<T>& span, Workspace<T>& work) {
  const int d = span.args.head_dim;
  for (int row = 0; row < span.num_rows; ++row) {
    const T* source = static_cast<const T*>(span.args.q) + span.offset_of(row);
    auto* query = work.queries + static_cast<ptrdiff_t>(row) * span.padded;
    for (int i = 0; i < span.padded; ++i) {
      if constexpr (sizeof(T) == sizeof(*query)) {
        query[i] = i < d ? source[i] : T{0};
      } else {
        query[i] = i < d ? to_float(source[i]) : 0.0f;
      }
    }
    work.maximum[row] = kMinusInfinity;
    work.sum[row] = 0.0f;
    std::memset(work.output + static_cast<ptrdiff_t>(row) * span.padded, 0, sizeof(float) * static_cast<size_t>(span.padded));
  }
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
      float* scores = work.scores + static_cast<ptrdiff_t>(row) * kAttentionChunk + (key - begin);
#pragma GCC unroll 12
      for (int r = 0; r < M; ++r) {
        store(scores + r * kAttentionChunk, dot[r][0]);
        store(scores + r * kAttentionChunk + kKeyGroup, dot[r][1]);
      }
    });
  }
}

// The keys of the chunk that a row sees: [first, last), relative to the chunk.
template <typename T>
INTERLEAF_INLINE Range visible_keys(const Span<T>& span, int row, int begin, int end) {
  const int position = span.position_of(row);
  const int first = span.args.window > 0 ? higher(position + 1 - span.args.window, 0) : 0;
  return {higher(first - begin, 0), lower(position + 1, end) - begin};
}

// Turns a row's scores into softmax weights relative to the chunk's own maximum, zero outside of `visible`.
template <typename T>
void weigh_row(const Span<T>& span, int row, Range visible, int num_keys, float* chunk_max, float* chunk_sum,
               Workspace<T>& work) {
  float* scores = work.scores + static_cast<ptrdiff_t>(row) * kAttentionChunk;
  auto* weights = work.weights + static_cast<ptrdiff_t>(row) * kAttentionChunk;
  const int width = round_up(num_keys, 2 * kKeyGroup);
  for (int i = 0; i < lower(visible.begin, width); ++i) scores[i] = kMinusInfinity;
  for (int i = higher(visible.end, 0); i < width; ++i) scores[i] = kMinusInfinity;
  F32x16 highest = broadcast(kMinusInfinity);
  for (int i = 0; i < width; i += kLanes) highest = maximum(load(scores + i), highest);
  const float top = reduce_max(highest) * span.args.scale;
  *chunk_max = top;
  *chunk_sum = 0.0f;
  if (top == kMinusInfinity) {
    for (int i = 0; i < width; ++i) weights[i] = 0;
    return;
  }
  F32x16 sum = broadcast(0.0f);
  for (int i = 0; i < width; i += kLanes) {
    const F32x16 weight = exp(fma(load(scores + i), broadcast(span.args.scale), broadcast(-top)));
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
      product<M>(work.weights + static_cast<ptrdiff_t>(row) * kAttentionChunk, kAttentionChunk, steps * kPair, columns,
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

// Folds a chunk's (maximum, sum, weighted values) into the row's.
template <typename T>
void merge_row(const Span<T>& span, int row, float chunk_max, float chunk_sum, Workspace<T>& work) {
  if (chunk_max == kMinusInfinity) return;
  const float top = work.maximum[row] > chunk_max ? work.maximum[row] : chunk_max;
  const float keep = exp(work.maximum[row] - top), add = exp(chunk_max - top);
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
    for (int i = 0; i < d; i += kLanes) store_partial(y + i, load(output + i) * inverse, lower(kLanes, d - i));
  }
}

template <typename T>
void attend(const Span<T>& span, char* scratch) {
  Workspace<T> work(scratch, span.padded);
  gather_queries(span, work);
  const int end = span.position_of(span.num_rows - 1) + 1;
  const int first = span.args.window > 0 ? higher(span.position_of(0) + 1 - span.args.window, 0) : 0;
  float chunk_max[kTileQueries], chunk_sum[kTileQueries];
  for (int begin = first / kAttentionChunk * kAttentionChunk; begin < end; begin += kAttentionChunk) {
    const int num_keys = lower(end - begin, kAttentionChunk);
    score_keys(span, begin, begin + num_keys, work);
    for (int row = 0; row < span.num_rows; ++row)
      weigh_row(span, row, visible_keys(span, row, begin, begin + num_keys), num_keys, chunk_max + row, chunk_sum + row,
                work);
    sum_values(span, begin, num_keys, work);
    for (int row = 0; row < span.num_rows; ++row) merge_row(span, row, chunk_max[row], chunk_sum[row], work);
  }
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
