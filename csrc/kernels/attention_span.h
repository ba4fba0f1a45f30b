// What attention works on: spans of queries, chunks of keys, the states that chunks are merged into.
#pragma once

#include "product.h"
#include "tiles.h"

namespace interleaf::INTERLEAF_LEVEL {

#if defined(__AMX_BF16__)
constexpr int kTileQueries = 64;  // rows (tokens x heads of a group) that share one pass over the keys
#else
constexpr int kTileQueries = 48;
#endif

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

  int position_of(int row) const { return first_position + (first_row + row) / group; }
  ptrdiff_t offset_of(int row) const {
    const int index = first_row + row;
    return (static_cast<ptrdiff_t>(first_token + index / group) * args->num_heads + kv_head * group + index % group) *
           args->head_dim;
  }
  int first_key_of(int row) const { return args->window > 0 ? higher(position_of(row) + 1 - args->window, 0) : 0; }
  int end_key() const { return position_of(num_rows - 1) + 1; }
  int first_chunk() const { return first_key_of(0) / kAttentionChunk; }
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
};

// Folds the later keys' state into that of the earlier ones.
INTERLEAF_INLINE void merge(const State& earlier, const State& later, int row, int padded) {
  if (later.maximum[row] == kMinusInfinity) return;
  float* to = earlier.values + static_cast<ptrdiff_t>(row) * padded;
  const float* from = later.values + static_cast<ptrdiff_t>(row) * padded;
  if (earlier.maximum[row] == kMinusInfinity) {
    earlier.maximum[row] = later.maximum[row];
    earlier.sum[row] = later.sum[row];
    std::memcpy(to, from, sizeof(float) * static_cast<size_t>(padded));
    return;
  }
  const float top = earlier.maximum[row] > later.maximum[row] ? earlier.maximum[row] : later.maximum[row];
  const float keep = exp2_of_negative(earlier.maximum[row] - top), add = exp2_of_negative(later.maximum[row] - top);
  earlier.maximum[row] = top;
  earlier.sum[row] = earlier.sum[row] * keep + later.sum[row] * add;
  for (int d = 0; d < padded; d += kLanes)
    store(to + d, fma(load(to + d), broadcast(keep), load(from + d) * broadcast(add)));
}

// Where one span is worked on. Everything is indexed by row.
template <typename T>
struct Workspace {
  using A = Operand<T>;
  A* queries;           // [rows, padded]
  float* scores;        // [rows, kScoreStride]
  A* weights;           // [rows, kWeightStride]
  bf16* wide;           // [kAttentionChunk, padded]: keys or values of int8 as they are multiplied
  float* key_scales;    // [kAttentionChunk]
  float* value_scales;  // [kAttentionChunk]
  State state;          // merged over the chunks so far
  State chunk;          // of one chunk
#if defined(__AMX_BF16__)
  TileShape shape;
#endif

  Workspace(char* memory, int padded) {
    const auto take = [&memory]<typename Value>(Value*& pointer, int count) {
      pointer = reinterpret_cast<Value*>(memory);
      memory += round_up(count * static_cast<int>(sizeof(Value)), 64);
    };
    take(queries, kTileQueries * padded);
    take(scores, kTileQueries * kScoreStride);
    take(weights, kTileQueries * kWeightStride);
    take(wide, kAttentionChunk * padded);
    take(key_scales, kAttentionChunk);
    take(value_scales, kAttentionChunk);
    float* states[2];
    for (float*& memory_of_state : states) take(memory_of_state, State::size(kTileQueries, padded));
    state = State::at(states[0], kTileQueries);
    chunk = State::at(states[1], kTileQueries);
  }
};

}  // namespace interleaf::INTERLEAF_LEVEL
