#include "attention_chunk.h"
#include "attention_shared.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

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
    span_rows_ = rows_of_a_span();
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
    const int group = args_.num_heads / args_.cache.num_kv_heads, padded = round_up(args_.head_dim, kLanes);
    for_each_run(args_, num_sequences_, [&](const SharedRun& run) {
      for (int s = run.first; s < run.end; ++s) {
        const int first_token = args_.query_start[s];
        const int num_tokens = args_.query_start[s + 1] - first_token;
        const int32_t* block_table = args_.block_tables + args_.sequence_rows[s] * args_.block_table_stride;
        SharedStates shared = {run.num_chunks, run.num_rows, (first_token - args_.query_start[run.first]) * group, nullptr};
        for (int row = 0; row < num_tokens * group; row += span_rows_)
          for (int g = 0; g < args_.cache.num_kv_heads; ++g) {
            shared.states = run.states + g * run.head_size(padded);
            visit(Span{&args_, block_table, g, group, padded, first_token, args_.context_lengths[s] - num_tokens, row,
                       lower(span_rows_, num_tokens * group - row), shared});
          }
      }
    });
  }
  // Spans are long, so that they share much, but not so long that threads would wait for the last of them.
  int rows_of_a_span() const {
    constexpr int kSpansOfAThread = 12;
    const int64_t rows = static_cast<int64_t>(args_.query_start[num_sequences_]) * args_.num_heads;
    const int64_t strips = rows / (num_threads_ * kSpansOfAThread * kStripRows);
    return kStripRows * static_cast<int>(strips < 2 ? 2 : strips > kSpanStrips ? kSpanStrips : strips);
  }
  static int64_t cost_of(const Span& span) {
    return static_cast<int64_t>(span.end_key() - span.first_chunk() * kAttentionChunk + 64) * (span.num_rows + 8);
  }

  const AttentionArgs& args_;
  int num_sequences_, num_threads_, span_rows_;
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
    merge(state, partial(thread, index), span.num_rows, span.padded);
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
  if (piece.first()) begin_with_shared(span, state);
  for (int c = piece.begin; c < piece.end; ++c) {
    Chunk<C> next = chunk;
    if (c + 1 < piece.end) {
      find_chunk(span, c + 1, next);
    } else if (following) {
      find_chunk(following->span, following->begin, next);
    }
    Task tasks[kSpanStrips];
    const int num_tasks =
        find_tasks(span, c, piece.first() ? state : partial(c - piece.begin), piece.first(), work, tasks);
    attend_to_chunk(span, chunk, next, tasks, num_tasks, work);
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

// The states of the chunks [begin, end) of a run, for rows that fill a span.
template <typename T, typename C>
void attend_to_shared(const Span& span, const SharedRun& run, int begin, int end, const Worker& worker) {
  Workspace<T> work(worker.scratch, span.padded);
  const int rows = round_up(run.num_rows, kLanes);
  gather_queries(span, work);
  Chunk<C> chunk;
  find_chunk(span, begin, chunk);
  for (int c = begin; c < end; ++c) {
    Chunk<C> next = chunk;
    if (c + 1 < end) find_chunk(span, c + 1, next);
    float* states = run.states + span.kv_head * run.head_size(span.padded);
    const State state = State::at(states + static_cast<ptrdiff_t>(c) * State::size(rows, span.padded), rows);
    Task tasks[kSpanStrips];
    const int num_tasks = find_tasks(span, c, state.from(span.first_row, span.padded), false, work, tasks);
    attend_to_chunk(span, chunk, next, tasks, num_tasks, work);
    chunk = next;
  }
}

template <typename T, typename C>
void attention_shared_typed(const AttentionArgs& args, int num_sequences, const Worker& worker) {
  const int num_kv_heads = args.cache.num_kv_heads, group = args.num_heads / num_kv_heads;
  // The chunks of all runs, as often as a run has heads and spans, are dealt evenly.
  const auto for_each_span = [&](auto visit) {
    for_each_run(args, num_sequences, [&](const SharedRun& run) {
      if (!run.num_chunks) return;
      const int32_t* block_table = args.block_tables + args.sequence_rows[run.first] * args.block_table_stride;
      for (int row = 0; row < run.num_rows; row += kSpanRows)
        for (int g = 0; g < num_kv_heads; ++g)
          // All its rows are behind the shared chunks, as if they were of one sequence.
          visit(Span{&args, block_table, g, group, round_up(args.head_dim, kLanes), args.query_start[run.first],
                     run.num_chunks * kAttentionChunk, row, lower(kSpanRows, run.num_rows - row)},
                run);
    });
  };
  int total = 0, before = 0;
  for_each_span([&](const Span&, const SharedRun& run) { total += run.num_chunks; });
  const Range part = part_of(total, worker);
  for_each_span([&](const Span& span, const SharedRun& run) {
    const int begin = higher(part.begin - before, 0), end = lower(part.end - before, run.num_chunks);
    if (begin < end) attend_to_shared<T, C>(span, run, begin, end, worker);
    before += run.num_chunks;
  });
}

}  // namespace

// While it lives, this thread's results that would be denormal are zero.
class DenormalsFlushed {
#if defined(__AVX512F__)
 public:
  DenormalsFlushed() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
  ~DenormalsFlushed() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// The kernel for the types of queries and of the cache.
template <typename Call>
void with_types(const AttentionArgs& args, Call call) {
  [[maybe_unused]] const DenormalsFlushed flushed;
  const bool wide = args.type == DType::kF32, small = args.cache.type == DType::kInt8;
  if (wide && small) return call.template operator()<float, int8_t>();
  if (wide) return call.template operator()<float, float>();
  if (small) return call.template operator()<bf16, int8_t>();
  call.template operator()<bf16, bf16>();
}

void attention(const AttentionArgs& args, int num_sequences, const Worker& worker) {
  with_types(args, [&]<typename T, typename C>() { attention_typed<T, C>(args, num_sequences, worker); });
}

void attention_shared(const AttentionArgs& args, int num_sequences, const Worker& worker) {
  with_types(args, [&]<typename T, typename C>() { attention_shared_typed<T, C>(args, num_sequences, worker); });
}

}  // namespace interleaf::INTERLEAF_LEVEL
