// Runs of sequences whose first chunks of keys lie in the same blocks. Their queries look at these together, in a pass
// before the rest. What a row finds there is what it would find alone, and it is merged in the same order.
#pragma once

#include "attention_span.h"

namespace interleaf::INTERLEAF_LEVEL {

// The sequences [first, end), which follow one another in T; one alone if it shares nothing.
struct SharedRun {
  int first, end, num_chunks;
  int num_rows;   // tokens x heads of a group
  float* states;  // of each head's chunks that are shared

  ptrdiff_t head_size(int padded) const {
    return static_cast<ptrdiff_t>(num_chunks) * State::size(round_up(num_rows, kLanes), padded);
  }
};

template <typename Visit>
void for_each_run(const AttentionArgs& args, int num_sequences, Visit visit) {
  const int num_kv_heads = args.cache.num_kv_heads, group = args.num_heads / num_kv_heads;
  float* states = args.shared_states;
  for (int s = 0; s < num_sequences;) {
    SharedRun run = {s, s + 1, args.shared_chunks ? args.shared_chunks[s] : 0, 0, states};
    if (run.num_chunks > 0)
      while (run.end < num_sequences && args.shared_with[run.end] == s) ++run.end;
    run.num_rows = (args.query_start[run.end] - args.query_start[s]) * group;
    visit(run);
    states += num_kv_heads * run.head_size(round_up(args.head_dim, kLanes));
    s = run.end;
  }
}

// Begins the state of a span with what its rows have found in the chunks that are shared.
INTERLEAF_INLINE void begin_with_shared(const Span& span, const State& state) {
  const int padded = span.padded, rows = round_up(span.shared.num_rows, kLanes);
  for (int c = 0; c < span.shared.num_chunks; ++c) {
    const State chunk = State::at(span.shared.states + static_cast<ptrdiff_t>(c) * State::size(rows, padded), rows);
    const State found = chunk.from(span.shared.first_row + span.first_row, padded);
    if (c > 0) {
      merge(state, found, span.num_rows, padded);
      continue;
    }
    const size_t count = static_cast<size_t>(span.num_rows);
    std::memcpy(state.maximum, found.maximum, sizeof(float) * count);
    std::memcpy(state.sum, found.sum, sizeof(float) * count);
    std::memcpy(state.values, found.values, sizeof(float) * count * static_cast<size_t>(padded));
  }
}

}  // namespace interleaf::INTERLEAF_LEVEL
