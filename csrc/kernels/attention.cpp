#include "attention_product.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

constexpr float kLog2E = 1.44269504088896341f;  // softmax is computed with powers of two

template <typename T>
void gather_queries(const Span& span, Workspace<T>& work) {
  using A = Operand<T>;
  const int d = span.args->head_dim;
  for (int row = 0; row < span.num_rows; ++row) {
    const T* source = static_cast<const T*>(span.args->q) + span.offset_of(row);
    A* query = work.queries + static_cast<ptrdiff_t>(row) * span.padded;
    if constexpr (sizeof(T) == sizeof(A)) {
      std::memcpy(query, source, sizeof(A) * static_cast<size_t>(d));
    } else {
      for (int i = 0; i < d; ++i) query[i] = to_float(source[i]);
    }
    for (int i = d; i < span.padded; ++i) query[i] = A{0};
  }
}

// The keys of the chunk that a row sees: [first, last), relative to the chunk.
template <typename C>
INTERLEAF_INLINE Range visible_keys(const Span& span, int row, const Chunk<C>& chunk) {
  return {higher(span.first_key_of(row) - chunk.begin, 0),
          lower(span.position_of(row) + 1 - chunk.begin, chunk.num_keys)};
}

// Bends the scores of a row into (-soft_cap, soft_cap). (Gemma 2)
INTERLEAF_INLINE void cap_row(const AttentionArgs& args, float* scores, int width) {
  const F32x16 scale = broadcast(args.scale / args.soft_cap), cap = broadcast(args.soft_cap);
  for (int i = 0; i < width; i += kLanes) store(scores + i, cap * tanh(load(scores + i) * scale));
}

// Turns a row's scores into softmax weights relative to the chunk's own maximum, zero outside of `visible`. For int8
// `scaled`: scores are of keys, and weights for values, that have yet to be multiplied by their scales.
template <bool scaled, typename T>
void weigh_row(const AttentionArgs& args, int row, Range visible, int num_keys, const State& state, Workspace<T>& work) {
  float* scores = work.scores + static_cast<ptrdiff_t>(row) * kScoreStride;
  auto* weights = work.weights + static_cast<ptrdiff_t>(row) * kWeightStride;
  const int width = round_up(num_keys, 2 * kKeyGroup);
  const bool capped = args.soft_cap > 0.0f;
  if (scaled)
    for (int i = 0; i < width; i += kLanes) store(scores + i, load(scores + i) * load(work.key_scales + i));
  if (capped) cap_row(args, scores, width);
  for (int i = 0; i < lower(visible.begin, width); ++i) scores[i] = kMinusInfinity;
  for (int i = higher(visible.end, 0); i < width; ++i) scores[i] = kMinusInfinity;
  F32x16 highest = broadcast(kMinusInfinity);
  for (int i = 0; i < width; i += kLanes) highest = maximum(load(scores + i), highest);
  const float scale = (capped ? 1.0f : args.scale) * kLog2E;
  const float top = reduce_max(highest) * scale;
  state.maximum[row] = top;
  state.sum[row] = 0.0f;
  if (top == kMinusInfinity) {
    for (int i = 0; i < width; ++i) weights[i] = 0;
    return;
  }
  F32x16 sum = broadcast(0.0f);
  for (int i = 0; i < width; i += kLanes) {
    const F32x16 weight = exp2_of_negative(fma(load(scores + i), broadcast(scale), broadcast(-top)));
    sum = sum + weight;
    store(weights + i, scaled ? weight * load(work.value_scales + i) : weight);
  }
  state.sum[row] = reduce_add(sum);
}

// One product of a chunk: its keys' or its values'.
enum class Part { kKeys, kValues };

template <Part part, typename T, typename B>
INTERLEAF_INLINE void multiply(const Span& span, const B* const* groups, const B* const* ahead, int num_keys,
                               const State& state, Workspace<T>& work) {
  const int num_groups = (num_keys + kKeyGroup - 1) / kKeyGroup;
#if defined(__AMX_BF16__)
  if constexpr (sizeof(T) == 2) {
    if (span.padded % kTileDepth == 0) {
      if constexpr (part == Part::kKeys) {
        score_keys_on_tiles(work.queries, span.num_rows, span.padded, groups, ahead, num_groups, work.shape, work.scores);
      } else {
        sum_values_on_tiles(work.weights, span.num_rows, span.padded, groups, ahead, num_groups, work.shape, state.values);
      }
      return;
    }
  }
#endif
  if constexpr (part == Part::kKeys) {
    score_keys(work.queries, span.num_rows, span.padded, groups, ahead, num_groups, work.scores);
  } else {
    sum_values(work.weights, span.num_rows, span.padded, groups, ahead, num_keys, state.values);
  }
}

// Makes int8 groups into ones that can be multiplied.
INTERLEAF_INLINE void widen(const int8_t* const* groups, const int8_t* const* ahead, int num_groups, int padded,
                            bf16* wide, const bf16** wide_groups) {
  const int count = kKeyGroup * padded;
  for (int g = 0; g < num_groups; ++g, wide += count) {
    wide_groups[g] = wide;
    for (int i = 0; i < count; i += kLanes) {
      if (i % 64 == 0) prefetch(ahead[g] + i);
      store(wide + i, load(groups[g] + i));
    }
  }
}

INTERLEAF_INLINE void gather_scales(const float* const* groups, int num_groups, float* scales) {
  for (int g = 0; g < num_groups; ++g) store(scales + g * kKeyGroup, load(groups[g]));
  if (num_groups < kChunkGroups) store(scales + num_groups * kKeyGroup, broadcast(0.0f));
}

// Scores, softmax and weighted values of one chunk of keys, for all rows. `next` is the chunk that follows.
template <typename T, typename C>
void attend_to_chunk(const Span& span, const Chunk<C>& chunk, const Chunk<C>& next, const State& state,
                     Workspace<T>& work) {
  const auto weigh_rows = [&]() __attribute__((always_inline)) {
    for (int row = 0; row < span.num_rows; ++row)
      weigh_row<sizeof(C) == 1>(*span.args, row, visible_keys(span, row, chunk), chunk.num_keys, state, work);
  };
  const C* next_keys[kChunkGroups];
  for (int g = 0; g < chunk.num_groups; ++g) next_keys[g] = next.keys[lower(g, next.num_groups - 1)];
  if constexpr (sizeof(C) == 1) {
    const bf16* groups[kChunkGroups];
    gather_scales(chunk.key_scales, chunk.num_groups, work.key_scales);
    gather_scales(chunk.value_scales, chunk.num_groups, work.value_scales);
    widen(chunk.keys, chunk.values, chunk.num_groups, span.padded, work.wide, groups);
    multiply<Part::kKeys>(span, groups, groups, chunk.num_keys, state, work);
    weigh_rows();
    widen(chunk.values, next_keys, chunk.num_groups, span.padded, work.wide, groups);
    multiply<Part::kValues>(span, groups, groups, chunk.num_keys, state, work);
  } else {
    multiply<Part::kKeys>(span, chunk.keys, chunk.values, chunk.num_keys, state, work);
    weigh_rows();
    multiply<Part::kValues>(span, chunk.values, next_keys, chunk.num_keys, state, work);
  }
  const int group_bytes = kKeyGroup * span.padded * static_cast<int>(sizeof(C));
  for (int g = chunk.num_groups; g < next.num_groups; ++g)
    for (int i = 0; i < group_bytes; i += 64) prefetch(reinterpret_cast<const char*>(next.keys[g]) + i);
}

template <typename T>
void write_output(const Span& span, const State& state) {
  const int d = span.args->head_dim;
  for (int row = 0; row < span.num_rows; ++row) {
    T* y = static_cast<T*>(span.args->y) + span.offset_of(row);
    const float* output = state.values + static_cast<ptrdiff_t>(row) * span.padded;
    const F32x16 inverse = broadcast(1.0f / state.sum[row]);
    int i = 0;
    for (; i + kLanes <= d; i += kLanes) store(y + i, load(output + i) * inverse);
    if (i < d) store_partial(y + i, load(output + i) * inverse, d - i);
  }
}

// The chunks [begin, end) of a span, which fall to one thread; `before` is the cost of all spans before.
struct Piece {
  Span span;
  int64_t before;
  int begin, end;

  bool first() const { return begin == span.first_chunk(); }
  bool whole() const { return first() && end == span.end_chunk(); }
};

// How spans are dealt to the threads: the chunks of all spans, one after the other, are cut by their cost. Spans of few
// rows are cut between chunks, others between spans.
class Deal {
 public:
  Deal(const AttentionArgs& args, int num_sequences, int num_threads)
      : args_(args), num_sequences_(num_sequences), num_threads_(num_threads) {
    for_each_span([this](const Span& span) { total_ += cost_of(span); });
  }

  // The thread that chunk `index` of a span falls to.
  int owner(const Span& span, int64_t before, int index) const {
    const int count = span.end_chunk() - span.first_chunk();
    const bool cut = span.num_rows <= kPartialRows;
    const int64_t cost = cost_of(span), twice = cut ? 2 * (index - span.first_chunk()) + 1 : count;
    return static_cast<int>((before + cost * twice / (2 * count)) * num_threads_ / total_);
  }

  template <typename Visit>
  void for_each_piece(int thread, Visit visit) const {
    int64_t before = 0;
    for_each_span([&](const Span& span) {
      const int first = span.first_chunk(), last = span.end_chunk() - 1;
      if (owner(span, before, first) <= thread && owner(span, before, last) >= thread) {
        int begin = first, end = last + 1;
        while (begin <= last && owner(span, before, begin) < thread) ++begin;
        while (end > begin && owner(span, before, end - 1) > thread) --end;
        if (begin < end) visit(Piece{span, before, begin, end});
      }
      before += cost_of(span);
    });
  }

 private:
  template <typename Visit>
  void for_each_span(Visit visit) const {
    const int group = args_.num_heads / args_.cache.num_kv_heads;
    for (int s = 0; s < num_sequences_; ++s) {
      const int first_token = args_.query_start[s];
      const int num_tokens = args_.query_start[s + 1] - first_token;
      const int32_t* block_table = args_.block_tables + args_.sequence_rows[s] * args_.block_table_stride;
      for (int row = 0; row < num_tokens * group; row += kTileQueries)
        for (int g = 0; g < args_.cache.num_kv_heads; ++g)
          visit(Span{&args_, block_table, g, group, round_up(args_.head_dim, kLanes), first_token,
                     args_.context_lengths[s] - num_tokens, row, lower(kTileQueries, num_tokens * group - row)});
    }
  }
  static int64_t cost_of(const Span& span) {
    return static_cast<int64_t>(span.end_key() - span.first_chunk() * kAttentionChunk + 64) * (span.num_rows + 8);
  }

  const AttentionArgs& args_;
  int num_sequences_, num_threads_;
  int64_t total_ = 0;
};

// States of the chunks of spans that fall to several threads. Each thread has one for every chunk, and one for those
// that it could merge because they are the span's first.
State partial_of(const AttentionArgs& args, int padded, int num_threads, int thread, int index) {
  char* states = static_cast<char*>(args.partials) + static_cast<ptrdiff_t>(num_threads) * kPartialCounterBytes;
  const ptrdiff_t slot = static_cast<ptrdiff_t>(thread) * (args.max_chunks + 1) + index;
  return State::at(reinterpret_cast<float*>(states) + slot * State::size(kPartialRows, padded), kPartialRows);
}

// Counts a thread that has done its piece of a span; whoever is last merges the chunks in ascending order.
template <typename T>
void finish_together(const Piece& piece, const Deal& deal, const Worker& worker) {
  const Span& span = piece.span;
  const int first = span.first_chunk(), end = span.end_chunk(), head = deal.owner(span, piece.before, first);
  uint32_t num_pieces = 1;
  for (int c = first + 1; c < end; ++c)
    num_pieces += deal.owner(span, piece.before, c) != deal.owner(span, piece.before, c - 1);
  auto* arrived = reinterpret_cast<uint32_t*>(static_cast<char*>(span.args->partials) + head * kPartialCounterBytes);
  if (__atomic_add_fetch(arrived, 1, __ATOMIC_ACQ_REL) < num_pieces) return;
  __atomic_store_n(arrived, 0, __ATOMIC_RELAXED);
  const auto partial = [&](int thread, int index) {
    return partial_of(*span.args, span.padded, worker.num_threads, thread, index);
  };
  const State state = partial(head, span.args->max_chunks);
  int before = head, index = 0;
  for (int c = first; c < end; ++c) {
    const int thread = deal.owner(span, piece.before, c);
    if (thread == head) continue;
    index = thread == before ? index + 1 : 0;
    before = thread;
    for (int row = 0; row < span.num_rows; ++row) merge(state, partial(thread, index), row, span.padded);
  }
  write_output<T>(span, state);
}

// Works through a piece; `chunk` is its first, and becomes the first of `following`.
template <typename T, typename C>
void attend(const Piece& piece, const Piece* following, const Deal& deal, const Worker& worker, Chunk<C>& chunk) {
  const Span& span = piece.span;
  Workspace<T> work(worker.scratch, span.padded);
  const auto partial = [&](int index) { return partial_of(*span.args, span.padded, worker.num_threads, worker.thread, index); };
  const State state = piece.whole() ? work.state : partial(piece.first() ? span.args->max_chunks : 0);
  gather_queries(span, work);
  for (int c = piece.begin; c < piece.end; ++c) {
    Chunk<C> next = chunk;
    if (c + 1 < piece.end) {
      find_chunk(span, c + 1, next);
    } else if (following) {
      find_chunk(following->span, following->begin, next);
    }
    if (c == piece.begin) {
      attend_to_chunk(span, chunk, next, state, work);
    } else if (!piece.first()) {
      attend_to_chunk(span, chunk, next, partial(c - piece.begin), work);
    } else {
      attend_to_chunk(span, chunk, next, work.chunk, work);
      for (int row = 0; row < span.num_rows; ++row) merge(state, work.chunk, row, span.padded);
    }
    chunk = next;
  }
  if (piece.whole()) {
    write_output<T>(span, state);
  } else {
    finish_together<T>(piece, deal, worker);
  }
}

template <typename T, typename C>
void attention_typed(const AttentionArgs& args, int num_sequences, const Worker& worker) {
  const Deal deal(args, num_sequences, worker.num_threads);
  Chunk<C> chunk;
  Piece waiting = {};
  deal.for_each_piece(worker.thread, [&](const Piece& piece) {
    if (waiting.end) {
      attend<T>(waiting, &piece, deal, worker, chunk);
    } else {
      find_chunk(piece.span, piece.begin, chunk);
    }
    waiting = piece;
  });
  if (waiting.end) attend<T>(waiting, nullptr, deal, worker, chunk);
}

}  // namespace

void attention(const AttentionArgs& args, int num_sequences, const Worker& worker) {
  const bool wide = args.type == DType::kF32, small = args.cache.type == DType::kInt8;
  if (wide && small) return attention_typed<float, int8_t>(args, num_sequences, worker);
  if (wide) return attention_typed<float, float>(args, num_sequences, worker);
  if (small) return attention_typed<bf16, int8_t>(args, num_sequences, worker);
  attention_typed<bf16, bf16>(args, num_sequences, worker);
}

}  // namespace interleaf::INTERLEAF_LEVEL
