#include "rotation.h"

namespace interleaf::INTERLEAF_LEVEL {

namespace {

template <typename X>
INTERLEAF_INLINE float largest_of(const X* x, int count) {
  F32x16 top = broadcast(0.0f);
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) top = largest_magnitude(top, load(x + i));
  float result = reduce_max(top);
  for (; i < count; ++i) {
    const float v = to_float(x[i]);
    result = v > result ? v : -v > result ? -v : result;
  }
  return result;
}

// Rounds to nearest; what is not a number becomes the middle.
INTERLEAF_INLINE int quantized(float value) {
  return value >= -127.0f && value <= 127.0f ? static_cast<int>(__builtin_nearbyintf(value)) : value > 0.0f ? 127 : value < 0.0f ? -127 : 0;
}

INTERLEAF_INLINE void store_quantized(F32x16 scaled, int zero, uint8_t* y) {
#if defined(__AVX512F__)
  const __m512i bounded = _mm512_cvtps_epi32(
      _mm512_max_ps(_mm512_min_ps(scaled.v, _mm512_set1_ps(127.0f)), _mm512_set1_ps(-127.0f)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm512_cvtepi32_epi8(_mm512_add_epi32(bounded, _mm512_set1_epi32(zero))));
#elif defined(__AVX2__)
  const auto bounded = [zero](__m256 eight) __attribute__((always_inline)) {
    const __m256 within = _mm256_max_ps(_mm256_min_ps(eight, _mm256_set1_ps(127.0f)), _mm256_set1_ps(-127.0f));
    return _mm256_add_epi32(_mm256_cvtps_epi32(within), _mm256_set1_epi32(zero));
  };
  const __m256i low_bytes = _mm256_set1_epi32(0xff);
  const __m256i words = _mm256_packus_epi32(_mm256_and_si256(bounded(scaled.a), low_bytes),
                                            _mm256_and_si256(bounded(scaled.b), low_bytes));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, words), order);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm256_castsi256_si128(bytes));
#else
  float values[16];
  store(values, scaled);
  for (int i = 0; i < 16; ++i) y[i] = static_cast<uint8_t>(quantized(values[i]) + zero);
#endif
}

// `count` values of which the largest has magnitude `top` by one scale; returns the scale.
template <typename X>
INTERLEAF_INLINE float quantize_up_to(float top, const X* x, int count, int zero, uint8_t* y) {
  const float scale = top > 0.0f && top < 3.4e38f ? top / 127.0f : 1.0f;
  const float inverse = 1.0f / scale;
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store_quantized(load(x + i) * broadcast(inverse), zero, y + i);
  for (; i < count; ++i) y[i] = static_cast<uint8_t>(quantized(to_float(x[i]) * inverse) + zero);
  return scale;
}

template <typename X>
INTERLEAF_INLINE float quantize_span(const X* x, int count, int zero, uint8_t* y) {
  return quantize_up_to(largest_of(x, count), x, count, zero, y);
}

template <typename X>
void quantize_rows(const QuantizeArgs& args, Range rows, char* scratch) {
  for (int row = rows.begin; row < rows.end; ++row) {
    const X* x = static_cast<const X*>(args.x) + static_cast<ptrdiff_t>(row) * args.k;
    uint8_t* y = args.y + static_cast<ptrdiff_t>(row) * args.k_padded;
    std::memset(y + args.k, 0, static_cast<size_t>(args.k_padded - args.k));
    if (args.format == Format::kInt8) {
      float* rotated = reinterpret_cast<float*>(scratch);
      args.scales[row] = rotates(args.k) ? quantize_up_to(rotate(x, args.k, rotated), rotated, args.k, 128, y)
                                         : quantize_span(x, args.k, 128, y);
      continue;
    }
    for (int group = 0; group < args.groups; ++group) {
      const int begin = group * kGroupSize;
      const ptrdiff_t place = static_cast<ptrdiff_t>(row) * args.groups + group;
      args.scales[place] = quantize_span(x + begin, lower(kGroupSize, args.k - begin), 0, y + begin);
      int32_t sum = 0;
      for (int i = 0; i < kGroupSize; ++i) sum += static_cast<int8_t>(y[begin + i]);
      args.sums[place] = sum;
    }
  }
}

}  // namespace

void quantize(const QuantizeArgs& args, int rows, const Worker& worker) {
  const Range part = part_of(rows, worker);
  if (args.x_type == DType::kF32) {
    quantize_rows<float>(args, part, worker.scratch);
  } else {
    quantize_rows<bf16>(args, part, worker.scratch);
  }
}

}  // namespace interleaf::INTERLEAF_LEVEL
