// One chunk of keys: scores, softmax and weighted values of the strips of a span that see it.
#pragma once

#include "attention_product.h"

namespace interleaf::INTERLEAF_LEVEL {

// A strip in a chunk. Its state there is merged into `total`, or is the total itself.
struct Task {
  Strip strip;
  State state;
  State total;
  bool merged;

  void finish(int padded) const {
    if (merged) merge(total, state, strip.num_rows, padded);
  }
};

// The strips of a span that see keys of a chunk. `merging`: the chunk is not a total of its own.
template <typename T>
int find_tasks(const Span& span, int chunk, const State& total, bool merging, const Workspace<T>& work, Task* tasks) {
  int count = 0;
  for (int row = 0; row < span.num_rows; row += kStripRows) {
    const int rows = lower(kStripRows, span.num_rows - row), begin = chunk * kAttentionChunk;
    const int num_keys = lower(span.position_of(row + rows - 1) + 1 - begin, kAttentionChunk);
    const int first = span.first_key_of(row) / kAttentionChunk;
    if (num_keys <= 0 || chunk < first) continue;
    const bool merged = merging && chunk > first;
    const State whole = total.from(row, span.padded);
    tasks[count] = {{row, rows, num_keys}, merged ? work.chunk[count % 2] : whole, whole, merged};
    ++count;
  }
  return count;
}

// A chunk's keys and values as they are multiplied, and the keys that will be needed after them.
template <typename C>
struct Factors {
  const Factor<C>* keys[kChunkGroups];
  const Factor<C>* values[kChunkGroups];
  const C* next[kChunkGroups];
  ChunkScales scales;
};

// Makes int8 groups into ones that can be multiplied; there is a group of zeros behind an odd last one.
INTERLEAF_INLINE void widen(const int8_t* const* groups, const int8_t* const* ahead, int num_groups, int padded,
                            bf16* wide, const bf16** wide_groups) {
  const int count = kKeyGroup * padded;
  for (int g = 0; g < num_groups; ++g, wide += count) {
    wide_groups[g] = wide;
    for (int i = 0; i < count; i += 2 * kLanes) {
      prefetch(ahead[g] + i);
      store_pair(wide + i, load(groups[g] + i), load(groups[g] + i + kLanes));
    }
  }
  if (num_groups % 2) std::memset(wide, 0, sizeof(bf16) * static_cast<size_t>(count));
}

INTERLEAF_INLINE void gather_scales(const float* const* groups, int num_groups, float* scales) {
  for (int g = 0; g < num_groups; ++g) store(scales + g * kKeyGroup, load(groups[g]));
  if (num_groups < kChunkGroups) store(scales + num_groups * kKeyGroup, broadcast(0.0f));
}

template <typename T, typename C>
INTERLEAF_INLINE void attend_in_registers(const Span& span, const Chunk<C>& chunk, Factors<C>& factors, const Task* tasks,
                                          int num_tasks, Workspace<T>& work) {
  for (int i = 0; i < num_tasks; ++i) {
    const Strip& strip = tasks[i].strip;
    const Factor<C>* const* after_keys = factors.keys;
    const Factor<C>* const* after_values = factors.values;
    if constexpr (sizeof(C) > 1) {
      if (i == 0) {
        after_keys = factors.values;
        after_values = factors.next;
      }
    }
    score_keys(work.queries + static_cast<ptrdiff_t>(strip.row) * span.padded, strip.num_rows, span.padded, factors.keys,
               after_keys, strip.num_groups(), work.scores[0]);
    StripSoftmax<T, C>(span, strip, chunk.begin, factors.scales, tasks[i].state, work.scores[0], work.weights[0]).finish();
    if constexpr (sizeof(C) == 1) {
      if (i == 0) widen(chunk.values, factors.next, chunk.num_groups, span.padded, work.wide_values, factors.values);
    }
    sum_values(work.weights[0], strip.num_rows, span.padded, factors.values, after_values, strip.num_keys,
               tasks[i].state.values);
    tasks[i].finish(span.padded);
  }
}

#if defined(__AMX_BF16__)
// Lays values side by side, as whole tiles need them; with zeros for an odd group. Asks for the first half of what is
// ahead.
INTERLEAF_INLINE void pack_values(const bf16* const* values, const bf16* const* ahead, int num_groups, int padded,
                                  bf16* packed) {
  const int count = kKeyGroup * padded;
  for (int g = 0; g < num_groups; ++g, packed += count)
    for (int i = 0; i < count; i += 4 * kLanes) {
      prefetch(ahead[g] + i / 2);
      _mm512_store_si512(packed + i, _mm512_loadu_si512(values[g] + i));
      _mm512_store_si512(packed + i + 2 * kLanes, _mm512_loadu_si512(values[g] + i + 2 * kLanes));
    }
  if (num_groups % 2) std::memset(packed, 0, sizeof(bf16) * static_cast<size_t>(count));
}

// Its share of the second half, for a step of sum_values_on_tiles().
template <typename C>
INTERLEAF_INLINE void ask_for_second_half(const C* const* ahead, int num_groups, int padded, int d, int step) {
  constexpr int kLine = 64 / sizeof(C), kShare = kKeyGroup * kLanes;
  for (int g = 2 * step; g < lower(2 * step + 2, num_groups); ++g)
    for (int i = 0; i < kShare; i += kLine) prefetch(ahead[g] + kKeyGroup / 2 * padded + d / (2 * kLanes) * kShare + i);
}

// While tiles multiply the keys of one strip and the values of another, the vector units do the softmax of the strip
// between the two.
template <typename T, typename C>
INTERLEAF_INLINE void attend_on_tiles(const Span& span, const Chunk<C>& chunk, Factors<C>& factors,
                                      const Task* tasks, int num_tasks, Workspace<T>& work) {
  const int padded = span.padded, depth_steps = padded / kTileDepth, column_steps = padded / (2 * kLanes);
  for (int stage = 0; stage < num_tasks + 2; ++stage) {
    const Task* scored = stage < num_tasks ? tasks + stage : nullptr;
    const Task* summed = stage >= 2 ? tasks + stage - 2 : nullptr;
    const int middle = lower(stage > 0 ? stage - 1 : 0, num_tasks - 1);
    StripSoftmax<T, C> softmax(span, tasks[middle].strip, chunk.begin, factors.scales, tasks[middle].state,
                               work.scores[middle % 2], work.weights[middle % 2]);
    const bool between = stage > 0 && stage <= num_tasks;
    int steps_left = 0;
    if (scored) steps_left += (scored->strip.num_groups() + 1) / 2 * depth_steps;
    if (summed) steps_left += (summed->strip.num_keys + kTileDepth - 1) / kTileDepth * column_steps;
    const auto mix = [&](int, int) __attribute__((always_inline)) {
      if (between) softmax.advance(steps_left--);
    };
    if (scored) {
      const Strip& strip = scored->strip;
      const bf16* queries = work.queries + static_cast<ptrdiff_t>(strip.row) * padded;
      work.shape.set(strip.num_rows, kTileDepth);
      if (stage == 0 && sizeof(C) > 1) {
        score_keys_on_tiles(queries, strip.num_rows, padded, factors.keys, strip.num_groups(), work.scores[0],
                            [&](int g, int step) __attribute__((always_inline)) {
                              const int last = lower(g + 1, chunk.num_groups - 1), begin = step * kTileDepth * kKeyGroup;
                              for (int i = begin; i < begin + kTileDepth * kKeyGroup; i += 32) {
                                prefetch(factors.values[g] + i);
                                prefetch(factors.values[last] + i);
                              }
                            });
      } else {
        score_keys_on_tiles(queries, strip.num_rows, padded, factors.keys, strip.num_groups(), work.scores[stage % 2], mix);
      }
    }
    if (summed) {
      const Strip& strip = summed->strip;
      work.shape.set(strip.num_rows, kTileDepth);
      const bool first = stage == 2 && sizeof(C) > 1;
      sum_values_on_tiles(work.weights[stage % 2], strip.num_rows, padded, work.wide_values, strip.num_keys,
                          summed->state.values, [&](int d, int step) __attribute__((always_inline)) {
                            if (first) ask_for_second_half(factors.next, chunk.num_groups, padded, d, step);
                            mix(d, step);
                          });
      summed->finish(padded);
    }
    if (between) softmax.finish();
    if (stage != 1) continue;
    if constexpr (sizeof(C) == 1) {
      widen(chunk.values, factors.next, chunk.num_groups, padded, work.wide_values, factors.values);
    } else {
      pack_values(factors.values, factors.next, chunk.num_groups, padded, work.wide_values);
    }
  }
}
#endif

// `next` is the chunk that follows.
template <typename T, typename C>
void attend_to_chunk(const Span& span, const Chunk<C>& chunk, const Chunk<C>& next, const Task* tasks, int num_tasks,
                     Workspace<T>& work) {
  Factors<C> factors;
  for (int g = 0; g < chunk.num_groups; ++g) factors.next[g] = next.keys[lower(g, next.num_groups - 1)];
  if constexpr (sizeof(C) == 1) {
    gather_scales(chunk.key_scales, chunk.num_groups, work.key_scales);
    gather_scales(chunk.value_scales, chunk.num_groups, work.value_scales);
    factors.scales = {work.key_scales, work.value_scales};
    widen(chunk.keys, chunk.values, chunk.num_groups, span.padded, work.wide_keys, factors.keys);
  } else {
    std::memcpy(factors.keys, chunk.keys, sizeof chunk.keys);
    std::memcpy(factors.values, chunk.values, sizeof chunk.values);
  }
  const int group_bytes = kKeyGroup * span.padded * static_cast<int>(sizeof(C));
  for (int g = chunk.num_groups; g < next.num_groups; ++g)
    for (int i = 0; i < group_bytes; i += 64) prefetch(reinterpret_cast<const char*>(next.keys[g]) + i);
#if defined(__AMX_BF16__)
  if constexpr (sizeof(T) == 2) {
    if (span.padded % kTileDepth == 0) return attend_on_tiles(span, chunk, factors, tasks, num_tasks, work);
  }
#endif
  attend_in_registers(span, chunk, factors, tasks, num_tasks, work);
}

}  // namespace interleaf::INTERLEAF_LEVEL
