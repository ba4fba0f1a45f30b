// The softmax between attention's two products, row by row.
#pragma once

#include "attention_span.h"

namespace interleaf::INTERLEAF_LEVEL {

constexpr float kLog2E = 1.44269504088896341f;  // softmax is computed with powers of two

// Some rows of a span that are worked on together, and the chunk's keys that the last of them sees.
struct Strip {
  int row, num_rows, num_keys;

  int num_groups() const { return (num_keys + kKeyGroup - 1) / kKeyGroup; }
};

// Bends scores into (-soft_cap, soft_cap). (Gemma 2)
INTERLEAF_INLINE void cap_scores(const AttentionArgs& args, float* scores, Range part) {
  const F32x16 scale = broadcast(args.scale / args.soft_cap), cap = broadcast(args.soft_cap);
  for (int i = part.begin; i < part.end; i += kLanes) store(scores + i, cap * tanh(load(scores + i) * scale));
}

// The scales of a chunk's keys and values in int8.
struct ChunkScales {
  const float* keys;
  const float* values;
};

// 2^x for x <= 0, of weights that are multiplied as A.
INTERLEAF_INLINE F32x16 weight_of(F32x16 x, const float*) { return exp2_of_negative(x); }
#if defined(__AVX512BF16__)
// Within 3e-6, a thousandth of what is lost when it is rounded: minimax polynomial of degree 4 on [0, 1).
INTERLEAF_INLINE F32x16 weight_of(F32x16 x, const bf16*) {
  const F32x16 r = fraction(x), square = r * r;
  const F32x16 low = fma(broadcast(6.930448433e-1f), r, broadcast(1.0f));
  const F32x16 high = fma(broadcast(5.224244694e-2f), r, broadcast(2.412802175e-1f));
  return scale_by_floor(fma(fma(broadcast(1.342670127e-2f), square, high), square, low), x);
}
#endif

template <typename A>
INTERLEAF_INLINE void store_pair(A* to, F32x16 low, F32x16 high) {
  store(to, low);
  store(to + kLanes, high);
}
#if defined(__AVX512BF16__)
INTERLEAF_INLINE void store_pair(bf16* to, F32x16 low, F32x16 high) {
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v));
}
#endif

// The softmax of a strip in a chunk, a row at a time, so that it can be mixed into products that leave the vector units
// idle. Weights are relative to the row's maximum in the chunk, and zero for keys that it does not see. For int8, scores
// are of keys, and weights for values, that have yet to be multiplied by their scales.
template <typename T, typename C>
class StripSoftmax {
 public:
  StripSoftmax(const Span& span, const Strip& strip, int first_key, ChunkScales scales, const State& state, float* scores,
               Operand<T>* weights)
      : args_(*span.args), span_(span), strip_(strip), first_key_(first_key), scales_(scales), state_(state),
        scores_(scores), weights_(weights), factor_((capped() ? 1.0f : args_.scale) * kLog2E) {}

  // Does its share of the rows, where `steps_left` steps of a product are left.
  void advance(int steps_left) {
    for (int share = (strip_.num_rows - done_) / steps_left; share > 0; --share) weigh_next();
  }
  void finish() {
    while (done_ < strip_.num_rows) weigh_next();
  }

 private:
  static constexpr bool kScaled = sizeof(C) == 1;

  bool capped() const { return args_.soft_cap > 0.0f; }
  float* scores_of(int row) const { return scores_ + static_cast<ptrdiff_t>(row) * kScoreStride; }
  Operand<T>* weights_of(int row) const { return weights_ + static_cast<ptrdiff_t>(row) * kWeightStride; }

  // The maximum of the next row is sought while this one's weights are computed: it takes long, and little of the machine.
  __attribute__((noinline)) void weigh_next() {
    if (done_ == 0) find_maximum(0);
    const Range part = part_;
    const float top = top_;
    if (done_ + 1 < strip_.num_rows) find_maximum(done_ + 1);
    weigh(done_, part, top);
    ++done_;
  }

  // Finishes a row's scores, in the part of it that holds visible keys.
  inline __attribute__((always_inline)) void find_maximum(int row) {
    const int begin = higher(span_.first_key_of(strip_.row + row) - first_key_, 0);
    const int end = lower(span_.position_of(strip_.row + row) + 1 - first_key_, strip_.num_keys);
    part_ = begin < end ? Range{begin / kStep * kStep, round_up(end, kStep)} : Range{0, 0};
    float* scores = scores_of(row);
    if (kScaled)
      for (int i = part_.begin; i < part_.end; i += kLanes) store(scores + i, load(scores + i) * load(scales_.keys + i));
    if (capped()) cap_scores(args_, scores, part_);
    for (int i = part_.begin; i < lower(begin, part_.end); ++i) scores[i] = kMinusInfinity;
    for (int i = end; i < part_.end; ++i) scores[i] = kMinusInfinity;
    F32x16 low = broadcast(kMinusInfinity), high = low;
    for (int i = part_.begin; i < part_.end; i += kStep) {
      low = maximum(load(scores + i), low);
      high = maximum(load(scores + i + kLanes), high);
    }
    top_ = reduce_max(maximum(low, high)) * factor_;
  }

  inline __attribute__((always_inline)) void weigh(int row, Range part, float top) {
    const float* scores = scores_of(row);
    Operand<T>* weights = weights_of(row);
    const F32x16 factor = broadcast(factor_), shift = broadcast(-top), zero = broadcast(0.0f);
    F32x16 sum = zero;
    for (int i = 0; i < part.begin; i += kStep) store_pair(weights + i, zero, zero);
    for (int i = part.begin; i < part.end; i += kStep) {
      F32x16 low = weight_of(fma(load(scores + i), factor, shift), weights);
      F32x16 high = weight_of(fma(load(scores + i + kLanes), factor, shift), weights);
      sum = sum + low;
      sum = sum + high;
      if (kScaled) {
        low = low * load(scales_.values + i);
        high = high * load(scales_.values + i + kLanes);
      }
      store_pair(weights + i, low, high);
    }
    for (int i = part.end; i < round_up(strip_.num_keys, kStep); i += kStep) store_pair(weights + i, zero, zero);
    state_.maximum[row] = top;
    state_.sum[row] = reduce_add(sum);
  }

  static constexpr int kStep = 2 * kLanes;
  const AttentionArgs& args_;
  const Span& span_;
  Strip strip_;
  int first_key_;
  ChunkScales scales_;
  State state_;
  float* scores_;
  Operand<T>* weights_;
  float factor_;
  int done_ = 0;
  Range part_ = {0, 0};  // of the next row
  float top_ = 0.0f;
};

}  // namespace interleaf::INTERLEAF_LEVEL
