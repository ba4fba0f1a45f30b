// The kernels of one level, declared for its table.
#pragma once

#include "../kernels.h"
#include "../simd.h"

namespace interleaf::INTERLEAF_LEVEL {

float read_all(const float* data, size_t count);
void linear(const LinearArgs&, int rows, const Worker&);
void quantize(const QuantizeArgs&, int rows, const Worker&);
void linear_quantized(const LinearQuantizedArgs&, int rows, const Worker&);
void take_rows(const TakeRowsArgs&, int rows, const Worker&);
void rms_norm(const RmsNormArgs&, int rows, const Worker&);
void soft_cap(const SoftCapArgs&, int rows, const Worker&);
void embedding(const EmbeddingArgs&, int rows, const Worker&);
void embedding_quantized(const EmbeddingQuantizedArgs&, int rows, const Worker&);
void rotary_cache(const RotaryCacheArgs&, int rows, const Worker&);
void attention(const AttentionArgs&, int num_sequences, const Worker&);
void attention_shared(const AttentionArgs&, int num_sequences, const Worker&);
void sample(const SampleArgs&, int rows, const Worker&);
void logprobs(const LogprobsArgs&, int rows, const Worker&);

// The contiguous part of `count` items that falls to a thread.
struct Range {
  int begin, end;
};
INTERLEAF_INLINE Range part_of(int count, const Worker& worker) {
  const int64_t total = count;
  return {static_cast<int>(total * worker.thread / worker.num_threads),
          static_cast<int>(total * (worker.thread + 1) / worker.num_threads)};
}

INTERLEAF_INLINE int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }
INTERLEAF_INLINE int lower(int a, int b) { return a < b ? a : b; }
INTERLEAF_INLINE int higher(int a, int b) { return a > b ? a : b; }

}  // namespace interleaf::INTERLEAF_LEVEL
