// What attention works on: spans of queries, chunks of keys, the states that chunks are merged into.
#pragma once

#include "product.h"
#include "tiles.h"

namespace interleaf::INTERLEAF_LEVEL {

// Rows (tokens x heads of a group) of queries that are multiplied, and whose scores wait, together; and the most rows
// that share one pass over the keys.
#if defined(__AMX_BF16__)
constexpr int kStripRows = kBlockRows;
#else
constexpr int kStripRows = 48;
#endif
constexpr int kSpanStrips = 8;
constexpr int kSpanRows = kSpanStrips * kStripRows;

constexpr float kMinusInfinity = -__builtin_huge_valf();
constexpr int kChunkGroups = kAttentionChunk / kKeyGroup;

// Strides of a row's scores and weights: not powers of two, or all rows would meet in a few sets of the cache.
constexpr int kScoreStride = kAttentionChunk + 16;
constexpr int kWeightStride = kAttentionChunk + 32;

// What keys and values that are stored as C are multiplied as.
template <typename C>
struct FactorOf {
  using Type = C;
};
template <>
struct FactorOf<int8_t> {
  using Type = bf16;  // holds them exactly
};
template <typename C>
using Factor = typename FactorOf<C>::Type;

// Rows of values that lie apart: pairs of keys, but for float32.
template <typename B>
constexpr int kPairOf = sizeof(B) == 4 ? 1 : 2;

// What the rows of a span have found already: the states of its first chunks, in those of a run (attention_shared.h).
struct SharedStates {
  int num_chunks = 0;
  int num_rows = 0;   // of the run
  int first_row = 0;  // of the sequence in it
  float* states = nullptr;
};

// One key-value head of one sequence, and the rows of queries that look at it. Row i is head i % group of new token
// i / group.
struct Span {
  const AttentionArgs* args;
  const int32_t* block_table;
  int kv_head;
  int group;           // query heads a key-value head
  int padded;          // head_dim rounded up to 16
  int first_token;     // of the sequence, in T
  int first_position;  // of that token
  int first_row;
  int num_rows;
  SharedStates shared = {};

  int position_of(int row) const { return first_position + (first_row + row) / group; }
  ptrdiff_t offset_of(int row) const {
    const int index = first_row + row;
    return (static_cast<ptrdiff_t>(first_token + index / group) * args->num_heads + kv_head * group + index % group) *
           args->head_dim;
  }
  int first_key_of(int row) const { return args->window > 0 ? higher(position_of(row) + 1 - args->window, 0) : 0; }
  int end_key() const { return position_of(num_rows - 1) + 1; }
  int first_chunk() const { return higher(first_key_of(0) / kAttentionChunk, shared.num_chunks); }
  int end_chunk() const { return (end_key() + kAttentionChunk - 1) / kAttentionChunk; }
};

// Where the keys and values of one chunk lie, a group of 16 keys each; for int8 their scales as well.
template <typename C>
struct Chunk {
  int begin, num_keys, num_groups;
  const C* keys[kChunkGroups];
  const C* values[kChunkGroups];
  const float* key_scales[kChunkGroups];
  const float* value_scales[kChunkGroups];
};

template <typename C>
void find_chunk(const Span& span, int index, Chunk<C>& chunk) {
  const PagedCache& cache = span.args->cache;
  chunk.begin = index * kAttentionChunk;
  chunk.num_keys = lower(span.end_key() - chunk.begin, kAttentionChunk);
  chunk.num_groups = (chunk.num_keys + kKeyGroup - 1) / kKeyGroup;
  int block = chunk.begin / cache.block_size, offset = chunk.begin % cache.block_size;
  for (int g = 0; g < chunk.num_groups; ++g) {
    const ptrdiff_t base = span.block_table[block] * cache.block_stride;
    const ptrdiff_t slot = static_cast<ptrdiff_t>(span.kv_head) * cache.block_size + offset;
    chunk.keys[g] = reinterpret_cast<const C*>(cache.keys + base) + slot * span.padded;
    chunk.values[g] = reinterpret_cast<const C*>(cache.values + base) + slot * span.padded;
    if constexpr (sizeof(C) == 1) {
      chunk.key_scales[g] = reinterpret_cast<const float*>(cache.key_scales + base) + slot;
      chunk.value_scales[g] = reinterpret_cast<const float*>(cache.value_scales + base) + slot;
    }
    offset += kKeyGroup;
    if (offset == cache.block_size) {
      offset = 0;
      ++block;
    }
  }
}

// What a softmax over some keys has come to, for each row: relative to `maximum` (of scores in log2), the sum of the
// weights and the weighted values.
struct State {
  float* maximum;
  float* sum;
  float* values;  // [rows, padded]

  static int size(int rows, int padded) { return rows * (2 + padded); }  // in floats; rows are a multiple of 16
  static State at(float* memory, int rows) { return {memory, memory + rows, memory + 2 * rows}; }
  State from(int row, int padded) const {
    return {maximum + row, sum + row, values + static_cast<ptrdiff_t>(row) * padded};
  }
};

// Folds the later keys' state into that of the earlier ones, for `rows` rows from the first on.
INTERLEAF_INLINE void merge(const State& earlier, const State& later, int rows, int padded) {
  for (int row = 0; row < rows; row += kLanes) {
    const F32x16 before = load(earlier.maximum + row), after = load(later.maximum + row);
    const F32x16 top = maximum(before, after), finite = maximum(top, broadcast(-3e38f));
    float keep[kLanes], add[kLanes];
    store(keep, exp2_of_negative(before - finite));
    store(add, exp2_of_negative(after - finite));
    store(earlier.maximum + row, top);
    store(earlier.sum + row, fma(load(earlier.sum + row), load(keep), load(later.sum + row) * load(add)));
    for (int i = 0; i < lower(kLanes, rows - row); ++i) {
      float* to = earlier.values + static_cast<ptrdiff_t>(row + i) * padded;
      const float* from = later.values + static_cast<ptrdiff_t>(row + i) * padded;
      const F32x16 kept = broadcast(keep[i]), added = broadcast(add[i]);
      for (int d = 0; d < padded; d += kLanes) store(to + d, fma(load(to + d), kept, load(from + d) * added));
    }
  }
}

// Where one span is worked on. Scores, weights and the states of single chunks are those of two strips in turn.
template <typename T>
struct Workspace {
  using A = Operand<T>;
  A* queries;           // [kSpanRows, padded]
  float* scores[2];     // [kStripRows, kScoreStride]
  A* weights[2];        // [kStripRows, kWeightStride]
  bf16* wide_keys;      // [kAttentionChunk, padded]: keys of int8 as they are multiplied
  bf16* wide_values;    // the same of values; on tiles, values side by side
  float* key_scales;    // [kAttentionChunk]
  float* value_scales;  // [kAttentionChunk]
  State state;          // merged over the chunks so far
  State chunk[2];       // of one chunk
#if defined(__AMX_BF16__)
  TileShape shape;
#endif

  Workspace(char* memory, int padded) {
    const auto take = [&memory]<typename Value>(Value*& pointer, int count) {
      pointer = reinterpret_cast<Value*>(memory);
      memory += round_up(count * static_cast<int>(sizeof(Value)), 64);
    };
    const auto take_state = [&](State& state, int rows) {
      float* values;
      take(values, State::size(rows, padded));
      state = State::at(values, rows);
    };
    take(queries, kSpanRows * padded);
    for (int i = 0; i < 2; ++i) {
      take(scores[i], kStripRows * kScoreStride);
      take(weights[i], kStripRows * kWeightStride);
      take_state(chunk[i], kStripRows);
    }
    take(wide_keys, kAttentionChunk * padded);
    take(wide_values, kAttentionChunk * padded);
    take(key_scales, kAttentionChunk);
    take(value_scales, kAttentionChunk);
    take_state(state, kSpanRows);
  }
};

}  // namespace interleaf::INTERLEAF_LEVEL
