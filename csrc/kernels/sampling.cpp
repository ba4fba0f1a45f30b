#include "level.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

constexpr float kMinusInfinity = -__builtin_huge_valf();
constexpr int kMaximaBlock = 256;
constexpr int kSumBlock = 512;  // probabilities are summed in blocks, so that a draw skips most of them

// Philox 4x32-10 (Salmon et al. 2011): a random function of (key, counter), so that noise needs no state.
INTERLEAF_INLINE uint64_t philox(uint64_t key, uint64_t counter) {
  uint32_t c[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(a)};
    std::memcpy(c, next, sizeof c);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return (uint64_t{c[1]} << 32) | c[0];
}

// In [0, 1), from 53 random bits.
INTERLEAF_INLINE double uniform(uint64_t seed, int position) {
  return static_cast<double>(philox(seed, static_cast<uint64_t>(position)) >> 11) * 0x1p-53;
}

INTERLEAF_INLINE float highest(const float* x, int count) {
  F32x16 top = broadcast(kMinusInfinity);
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) top = maximum(load(x + i), top);
  float result = reduce_max(top);
  for (; i < count; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

// The lanes where x >= bound, as bits.
INTERLEAF_INLINE uint32_t lanes_at_least(F32x16 x, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(bound), _CMP_GE_OQ);
#elif defined(__AVX2__)
  const __m256 least = _mm256_set1_ps(bound);
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(x.a, least, _CMP_GE_OQ));
  return static_cast<uint32_t>(low | _mm256_movemask_ps(_mm256_cmp_ps(x.b, least, _CMP_GE_OQ)) << 8);
#else
  uint32_t lanes = 0;
  for (int i = 0; i < kLanes; ++i) lanes |= uint32_t{x.v[i] >= bound} << i;
  return lanes;
#endif
}

// Calls visit(i) for each i from `begin` on with x[i] >= *bound, which may rise meanwhile.
template <typename Visit>
INTERLEAF_INLINE void for_each_at_least(const float* x, int begin, int count, const float* bound, Visit visit) {
  int i = begin;
  for (; i + kLanes <= count; i += kLanes)
    for (uint32_t lanes = lanes_at_least(load(x + i), *bound); lanes; lanes &= lanes - 1) visit(i + __builtin_ctz(lanes));
  for (; i < count; ++i)
    if (x[i] >= *bound) visit(i);
}

// The largest logit of each block of kMaximaBlock; returns the largest of all.
float block_maxima(const float* logits, int vocab_size, float* maxima) {
  float top = kMinusInfinity;
  for (int begin = 0, block = 0; begin < vocab_size; begin += kMaximaBlock, ++block) {
    maxima[block] = highest(logits + begin, lower(kMaximaBlock, vocab_size - begin));
    top = maxima[block] > top ? maxima[block] : top;
  }
  return top;
}

// The first token with the highest logit; 0 if every logit is NaN.
int first_highest(const float* logits, int vocab_size, float top, const float* maxima) {
  for (int begin = 0, block = 0; begin < vocab_size; begin += kMaximaBlock, ++block) {
    if (maxima[block] != top) continue;
    for (int i = begin; i < lower(begin + kMaximaBlock, vocab_size); ++i)
      if (logits[i] == top) return i;
  }
  return 0;
}

// weights[i] = exp(scale * logits[i] - scale * top), in (0, 1].
void exponentials(const float* logits, int count, float top, float scale, float* weights) {
  const F32x16 factor = broadcast(scale), shift = broadcast(top);
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store(weights + i, exp((load(logits + i) - shift) * factor));
  if (i < count) {
    const int rest = count - i;
    store_partial(weights + i, exp((load_partial(logits + i, rest) - shift) * factor), rest);
  }
}

// Sums weights in blocks; returns the sum of all.
double sum_blocks(const float* weights, int count, double* sums) {
  double total = 0.0;
  for (int begin = 0, block = 0; begin < count; begin += kSumBlock, ++block) {
    F32x16 sum = broadcast(0.0f);
    int i = begin;
    const int end = lower(begin + kSumBlock, count);
    for (; i + kLanes <= end; i += kLanes) sum = sum + load(weights + i);
    if (i < end) sum = sum + load_partial(weights + i, end - i);
    sums[block] = static_cast<double>(reduce_add(sum));
    total += sums[block];
  }
  return total;
}

// A token and its weight; ordered likeliest first, ties by lower token id.
struct Candidate {
  float weight;
  int32_t token;
};
INTERLEAF_INLINE bool before(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
}

void sift_down(Candidate* heap, int root, int count) {
  for (int child; (child = 2 * root + 1) < count; root = child) {
    if (child + 1 < count && before(heap[child], heap[child + 1])) ++child;
    if (!before(heap[root], heap[child])) return;
    const Candidate held = heap[root];
    heap[root] = heap[child];
    heap[child] = held;
  }
}

void sort_candidates(Candidate* candidates, int count) {
  for (int root = count / 2 - 1; root >= 0; --root) sift_down(candidates, root, count);
  for (int end = count - 1; end > 0; --end) {
    const Candidate last = candidates[0];
    candidates[0] = candidates[end];
    candidates[end] = last;
    sift_down(candidates, 0, end);
  }
}

// Weights in (0, 1] by size, the largest first: 32 buckets an octave, each of which is cut into as many again.
constexpr int kBuckets = 1024;
constexpr int kBucketShifts[] = {18, 8};
INTERLEAF_INLINE int bucket_of(float weight, uint32_t first, int shift) {
  uint32_t bits;
  std::memcpy(&bits, &weight, 4);
  const uint32_t distance = (0x3f800000u - bits - first) >> shift;
  return distance < kBuckets ? static_cast<int>(distance) : kBuckets - 1;
}

// What a candidate counts: 1, or its weight.
template <bool by_weight>
INTERLEAF_INLINE double amount_of(const Candidate& candidate) {
  return by_weight ? static_cast<double>(candidate.weight) : 1.0;
}

// The bucket in which the likeliest candidates reach `wanted`, the last one if they do not; `reached` grows by what lies
// before it.
template <bool by_weight>
int find_bucket(const Candidate* candidates, int count, uint32_t first, int shift, double wanted, double& reached) {
  double amounts[kBuckets] = {};
  for (int i = 0; i < count; ++i)
    amounts[bucket_of(candidates[i].weight, first, shift)] += amount_of<by_weight>(candidates[i]);
  int bucket = 0;
  double before = reached, after = reached;
  for (int b = 0; b < kBuckets && after < wanted; ++b) {
    if (amounts[b] == 0.0) continue;
    bucket = b;
    before = after;
    after += amounts[b];
  }
  reached = before;
  return bucket;
}

// The last of the likeliest candidates that reach `wanted` together.
template <bool by_weight>
Candidate last_kept(const Candidate* candidates, int count, double wanted, Candidate* work) {
  double reached = 0.0;
  uint32_t first = 0;
  for (const int shift : kBucketShifts) {
    const int bucket = find_bucket<by_weight>(candidates, count, first, shift, wanted, reached);
    int size = 0;
    for (int i = 0; i < count; ++i) {
      const Candidate candidate = candidates[i];
      work[size] = candidate;
      size += bucket_of(candidate.weight, first, shift) == bucket;
    }
    first += static_cast<uint32_t>(bucket) << shift;
    candidates = work;
    count = size;
  }
  sort_candidates(work, count);
  int last = 0;
  for (reached += amount_of<by_weight>(work[0]); last + 1 < count && reached < wanted;)
    reached += amount_of<by_weight>(work[++last]);
  return work[last];
}

// Keeps the candidates up to `last` in order of likelihood.
int keep_up_to(Candidate* candidates, int count, Candidate last) {
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    const Candidate candidate = candidates[i];
    candidates[kept] = candidate;
    kept += (candidate.weight > last.weight) | ((candidate.weight == last.weight) & (candidate.token <= last.token));
  }
  return kept;
}

double total_weight(const Candidate* candidates, int count) {
  double total = 0.0;
  for (int i = 0; i < count; ++i) total += static_cast<double>(candidates[i].weight);
  return total;
}

int keep_top_k(Candidate* candidates, int count, int k, Candidate* work) {
  if (k <= 0 || k >= count) return count;
  return keep_up_to(candidates, count, last_kept<false>(candidates, count, k, work));
}

// The smallest set, likeliest first, with at least `wanted` of the weight (Holtzman et al. 2020).
int keep_top_p(Candidate* candidates, int count, double wanted, Candidate* work) {
  return keep_up_to(candidates, count, last_kept<true>(candidates, count, wanted, work));
}

int draw_from_all(const float* weights, int vocab_size, const double* sums, double wanted) {
  double reached = 0.0;
  int last = 0;
  for (int begin = 0, block = 0; begin < vocab_size; begin += kSumBlock, ++block) {
    if (reached + sums[block] <= wanted) {
      reached += sums[block];
      continue;
    }
    for (int i = begin; i < lower(begin + kSumBlock, vocab_size); ++i) {
      if (weights[i] == 0.0f) continue;
      last = i;
      reached += static_cast<double>(weights[i]);
      if (reached > wanted) return i;
    }
  }
  return last;
}

int draw_from(const Candidate* candidates, int count, double noise) {
  const double wanted = noise * total_weight(candidates, count);
  double reached = 0.0;
  for (int i = 0; i < count; ++i) {
    reached += static_cast<double>(candidates[i].weight);
    if (reached > wanted) return candidates[i].token;
  }
  return candidates[count - 1].token;
}

// Every token that can be among the k likeliest, by token id, with its weight in `weights`: k blocks have a token with at
// least the k-th largest of the blocks' maxima, so that what is below it can be passed over. 0 if that spares nothing.
int likely_tokens(const float* logits, int vocab_size, int k, const float* maxima, float* weights, Candidate* candidates,
                  Candidate* sorted) {
  const int num_blocks = (vocab_size + kMaximaBlock - 1) / kMaximaBlock;
  if (k <= 0 || k > num_blocks / 2) return 0;
  for (int block = 0; block < num_blocks; ++block) sorted[block] = {maxima[block], block};
  sort_candidates(sorted, num_blocks);
  const float bound = sorted[k - 1].weight;
  int count = 0;
  for (int block = 0; block < num_blocks; ++block) {
    if (!(maxima[block] >= bound)) continue;
    const int begin = block * kMaximaBlock;
    for (int token = begin; token < lower(begin + kMaximaBlock, vocab_size); ++token) {
      weights[count] = logits[token];
      candidates[count].token = token;
      count += logits[token] >= bound;
    }
  }
  return count;
}

constexpr float kLeastWeight = 1.17549435e-38f;  // below are denormals, which exp() does not give

// The tokens, of those in `candidates`, that have at least min_p and some weight.
int keep_min_p(const float* weights, Candidate* candidates, int count, float min_p) {
  const float least = min_p > kLeastWeight ? min_p : kLeastWeight;
  int kept = 0;
  for_each_at_least(weights, 0, count, &least, [&](int i) __attribute__((always_inline)) {
    candidates[kept++] = {weights[i], candidates[i].token};
  });
  return kept;
}

// The tokens of at least `least`.
int find_candidates(const float* weights, int vocab_size, float least, Candidate* candidates) {
  int count = 0;
  for_each_at_least(weights, 0, vocab_size, &least, [&](int i) __attribute__((always_inline)) {
    candidates[count++] = {weights[i], i};
  });
  return count;
}

// A weight that the likeliest tokens that reach `wanted` of `total` all have. It can be so much that all tokens, had they
// no more, would not be missed; and, in steps of four, as much as leaves `wanted` to those that have it.
float least_that_counts(const float* weights, int vocab_size, double total, double wanted) {
  constexpr int kBounds = 6;
  constexpr double kMargin = 1e-3;  // far more than what sums are off by
  const float sure = static_cast<float>((total - wanted) / vocab_size * (1.0 - kMargin));
  float bounds[kBounds];
  F32x16 sums[kBounds];
  for (int b = 0; b < kBounds; ++b) {
    bounds[b] = (b > 0 ? bounds[b - 1] : sure) * 4.0f;
    sums[b] = broadcast(0.0f);
  }
  for (int i = 0; i + kLanes <= vocab_size; i += kLanes) {
    const F32x16 x = load(weights + i);
    for (int b = 0; b < kBounds; ++b) sums[b] = sums[b] + where_at_least(x, bounds[b], x);
  }
  for (int b = kBounds - 1; b >= 0; --b) {
    const double sum = static_cast<double>(reduce_add(sums[b]));
    if (sum > 0.0 && sum >= wanted * (1.0 + kMargin)) return bounds[b];
  }
  return sure;
}

int sample_row(const SampleArgs& args, int row, char* scratch) {
  const int vocab_size = args.vocab_size;
  const float* logits = args.logits + static_cast<ptrdiff_t>(row) * vocab_size;
  float* weights = reinterpret_cast<float*>(scratch);
  Candidate* candidates = reinterpret_cast<Candidate*>(weights + round_up(vocab_size, kLanes));
  Candidate* sorted = candidates + vocab_size + 1;
  float* maxima = reinterpret_cast<float*>(sorted + vocab_size);
  const float top = block_maxima(logits, vocab_size, maxima);
  if (args.temperatures[row] <= 0.0f || !(top > kMinusInfinity) || top > 3.4e38f)
    return first_highest(logits, vocab_size, top, maxima);
  const float scale = 1.0f / args.temperatures[row];
  const double noise = uniform(args.seeds[row], args.positions[row]);
  const int k = args.top_k[row] < vocab_size ? args.top_k[row] : 0;
  const float top_p = args.top_p[row], min_p = args.min_p[row];
  double total = 0.0;
  int count = likely_tokens(logits, vocab_size, k, maxima, weights, candidates, sorted);
  if (count > 0) {
    exponentials(weights, count, top, scale, weights);
    count = keep_min_p(weights, candidates, count, min_p);
  } else {
    double* sums = reinterpret_cast<double*>(sorted);
    exponentials(logits, vocab_size, top, scale, weights);
    total = sum_blocks(weights, vocab_size, sums);
    const bool whole = k <= 0 && min_p <= 0.0f;
    if (whole && top_p >= 1.0f) return draw_from_all(weights, vocab_size, sums, noise * total);
    float least = whole ? least_that_counts(weights, vocab_size, total, total * static_cast<double>(top_p)) : min_p;
    least = least > kLeastWeight ? least : kLeastWeight;
    count = find_candidates(weights, vocab_size, least, candidates);
    if (!whole) total = 0.0;
  }
  count = keep_top_k(candidates, count, k, sorted);
  if (top_p < 1.0f) {
    if (total == 0.0) total = total_weight(candidates, count);
    count = keep_top_p(candidates, count, total * static_cast<double>(top_p), sorted);
  }
  return draw_from(candidates, count, noise);
}

int rank_of(const float* logits, int vocab_size, int token) {
  const float chosen = logits[token];
  int rank = 1;
  for (int i = 0; i < vocab_size; ++i) rank += logits[i] > chosen;
  return rank;
}

// The `count` likeliest tokens in order, kept in a heap whose root is the least likely of them.
void likeliest(const float* logits, int vocab_size, int count, Candidate* heap) {
  for (int i = 0; i < count; ++i) heap[i] = {logits[i], i};
  for (int root = count / 2 - 1; root >= 0; --root) sift_down(heap, root, count);
  for_each_at_least(logits, count, vocab_size, &heap[0].weight, [&](int i) {
    if (!(logits[i] > heap[0].weight)) return;
    heap[0] = {logits[i], i};
    sift_down(heap, 0, count);
  });
  sort_candidates(heap, count);
}

void logprobs_row(const LogprobsArgs& args, int item, char* scratch) {
  const float* logits = args.logits + static_cast<ptrdiff_t>(args.rows[item]) * args.vocab_size;
  float* weights = reinterpret_cast<float*>(scratch);
  Candidate* heap = reinterpret_cast<Candidate*>(weights + round_up(args.vocab_size, kLanes));
  double* sums = reinterpret_cast<double*>(heap);
  const float top = highest(logits, args.vocab_size);
  exponentials(logits, args.vocab_size, top, 1.0f, weights);
  const double log_sum = __builtin_log(sum_blocks(weights, args.vocab_size, sums));
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(top) - log_sum);
  };
  const int chosen = args.tokens[item];
  args.chosen_logprobs[item] = logprob(logits[chosen]);
  args.chosen_ranks[item] = rank_of(logits, args.vocab_size, chosen);
  const int count = lower(args.num_top[item], args.vocab_size);
  if (count <= 0) return;
  likeliest(logits, args.vocab_size, count, heap);
  const ptrdiff_t base = static_cast<ptrdiff_t>(item) * args.top_stride;
  for (int i = 0; i < count; ++i) {
    args.top_tokens[base + i] = heap[i].token;
    args.top_logprobs[base + i] = logprob(heap[i].weight);
  }
}

}  // namespace

void sample(const SampleArgs& args, int rows, const Worker& worker) {
  const Range part = part_of(rows, worker);
  for (int row = part.begin; row < part.end; ++row) args.tokens[row] = sample_row(args, row, worker.scratch);
}

void logprobs(const LogprobsArgs& args, int items, const Worker& worker) {
  const Range part = part_of(items, worker);
  for (int item = part.begin; item < part.end; ++item) logprobs_row(args, item, worker.scratch);
}

}  // namespace interleaf::INTERLEAF_LEVEL
