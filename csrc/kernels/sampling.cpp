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

INTERLEAF_INLINE double sum_block(const float* weights, int count) {
  F32x16 sum = broadcast(0.0f);
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) sum = sum + load(weights + i);
  if (i < count) sum = sum + load_partial(weights + i, count - i);
  return reduce_add(sum);
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

// Weights in (0, 1] by size: 32 buckets an octave, the largest weights first.
constexpr int kBuckets = 1024;
INTERLEAF_INLINE int bucket_of(float weight) {
  uint32_t bits;
  std::memcpy(&bits, &weight, 4);
  const uint32_t distance = (0x3f800000u - bits) >> 18;
  return distance < kBuckets ? static_cast<int>(distance) : kBuckets - 1;
}


// Bounds a selection: everything in buckets before `bucket`, and the first `rest` by order within it.
struct Cut {
  int bucket;
  int rest;
};

// Where the first k candidates end.
Cut cut_by_count(const int* counts, int k) {
  int seen = 0;
  for (int b = 0; b < kBuckets; ++b) {
    if (seen + counts[b] >= k) return {b, k - seen};
    seen += counts[b];
  }
  return {kBuckets, 0};
}

// Copies the candidates of one bucket, in order of likelihood.
int sorted_bucket(const Candidate* candidates, int count, int bucket, Candidate* sorted) {
  int size = 0;
  for (int i = 0; i < count; ++i)
    if (bucket_of(candidates[i].weight) == bucket) sorted[size++] = candidates[i];
  sort_candidates(sorted, size);
  return size;
}

// Keeps the candidates of a cut. `sorted` holds the cut's bucket in order.
int keep(Candidate* candidates, int count, Cut cut, const Candidate* sorted) {
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    const int bucket = bucket_of(candidates[i].weight);
    const bool inside = bucket < cut.bucket ||
                        (bucket == cut.bucket && cut.rest > 0 && !before(sorted[cut.rest - 1], candidates[i]));
    if (inside) candidates[kept++] = candidates[i];
  }
  return kept;
}

double total_weight(const Candidate* candidates, int count) {
  double total = 0.0;
  for (int i = 0; i < count; ++i) total += static_cast<double>(candidates[i].weight);
  return total;
}

int keep_top_k(Candidate* candidates, int count, int k, Candidate* sorted) {
  if (k <= 0 || k >= count) return count;
  int counts[kBuckets] = {};
  for (int i = 0; i < count; ++i) ++counts[bucket_of(candidates[i].weight)];
  const Cut cut = cut_by_count(counts, k);
  sorted_bucket(candidates, count, cut.bucket, sorted);
  return keep(candidates, count, cut, sorted);
}

// The smallest set, likeliest first, with at least `share` of the weight (Holtzman et al. 2020).
int keep_top_p(Candidate* candidates, int count, float share, Candidate* sorted) {
  if (share >= 1.0f) return count;
  double weights[kBuckets] = {};
  for (int i = 0; i < count; ++i) weights[bucket_of(candidates[i].weight)] += static_cast<double>(candidates[i].weight);
  double total = 0.0;
  for (double weight : weights) total += weight;
  const double wanted = total * static_cast<double>(share);
  double reached = 0.0;
  int bucket = 0;
  while (bucket < kBuckets - 1 && reached + weights[bucket] < wanted) reached += weights[bucket++];
  const int size = sorted_bucket(candidates, count, bucket, sorted);
  int rest = 0;
  while (rest < size && (reached < wanted || rest == 0)) reached += static_cast<double>(sorted[rest++].weight);
  return keep(candidates, count, {bucket, rest}, sorted);
}

int draw_from_all(const float* weights, int vocab_size, double noise) {
  double total = 0.0;
  for (int begin = 0; begin < vocab_size; begin += kSumBlock)
    total += sum_block(weights + begin, lower(kSumBlock, vocab_size - begin));
  const double wanted = noise * total;
  double reached = 0.0;
  int last = 0;
  for (int begin = 0; begin < vocab_size; begin += kSumBlock) {
    const int count = lower(kSumBlock, vocab_size - begin);
    const double block = sum_block(weights + begin, count);
    if (reached + block <= wanted) {
      reached += block;
      continue;
    }
    for (int i = begin; i < begin + count; ++i) {
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

// Drops what has no weight or too little.
int keep_min_p(const float* weights, Candidate* candidates, int count, float min_p) {
  int kept = 0;
  for (int i = 0; i < count; ++i)
    if (weights[i] > 0.0f && weights[i] >= min_p) candidates[kept++] = {weights[i], candidates[i].token};
  return kept;
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
  const int k = args.top_k[row];
  const float top_p = args.top_p[row], min_p = args.min_p[row];
  int count = likely_tokens(logits, vocab_size, k, maxima, weights, candidates, sorted);
  if (count > 0) {
    exponentials(weights, count, top, scale, weights);
  } else {
    exponentials(logits, vocab_size, top, scale, weights);
    if ((k <= 0 || k >= vocab_size) && top_p >= 1.0f && min_p <= 0.0f) return draw_from_all(weights, vocab_size, noise);
    for (count = 0; count < vocab_size; ++count) candidates[count].token = count;
  }
  count = keep_min_p(weights, candidates, count, min_p);
  count = keep_top_k(candidates, count, k, sorted);
  count = keep_top_p(candidates, count, top_p, sorted);
  return draw_from(candidates, count, noise);
}

// log(sum(exp(logits))) - top, in double.
double log_of_sum(const float* logits, int vocab_size, float top, float* weights) {
  exponentials(logits, vocab_size, top, 1.0f, weights);
  double total = 0.0;
  for (int begin = 0; begin < vocab_size; begin += kSumBlock)
    total += sum_block(weights + begin, lower(kSumBlock, vocab_size - begin));
  return __builtin_log(total);
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
  for (int i = count; i < vocab_size; ++i) {
    if (!(logits[i] > heap[0].weight)) continue;
    heap[0] = {logits[i], i};
    sift_down(heap, 0, count);
  }
  sort_candidates(heap, count);
}

void logprobs_row(const LogprobsArgs& args, int item, char* scratch) {
  const float* logits = args.logits + static_cast<ptrdiff_t>(args.rows[item]) * args.vocab_size;
  float* weights = reinterpret_cast<float*>(scratch);
  const float top = highest(logits, args.vocab_size);
  const double log_sum = log_of_sum(logits, args.vocab_size, top, weights);
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(top) - log_sum);
  };
  const int chosen = args.tokens[item];
  args.chosen_logprobs[item] = logprob(logits[chosen]);
  args.chosen_ranks[item] = rank_of(logits, args.vocab_size, chosen);
  const int count = lower(args.num_top[item], args.vocab_size);
  if (count <= 0) return;
  Candidate* heap = reinterpret_cast<Candidate*>(weights + round_up(args.vocab_size, kLanes));
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
