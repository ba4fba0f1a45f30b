// Sixteen integers at a time, and scales in float16.
#pragma once

#include "level.h"

namespace interleaf::INTERLEAF_LEVEL {

// Sixteen 32-bit integers.
#if defined(__AVX512F__)
struct I32x16 {
  __m512i v;
};
INTERLEAF_INLINE I32x16 broadcast_int(int32_t value) { return {_mm512_set1_epi32(value)}; }
INTERLEAF_INLINE F32x16 to_floats(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
INTERLEAF_INLINE I32x16 load_ints(const int32_t* source) { return {_mm512_loadu_si512(source)}; }
INTERLEAF_INLINE I32x16 subtract(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
INTERLEAF_INLINE F32x16 load_half(const uint16_t* source) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)))};
}
#else
struct I32x16 {
  int32_t v[16];
};
INTERLEAF_INLINE I32x16 broadcast_int(int32_t value) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = value;
  return r;
}
INTERLEAF_INLINE F32x16 to_floats(I32x16 a) {
  float values[16];
  for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(a.v[i]);
  return load(values);
}
INTERLEAF_INLINE I32x16 load_ints(const int32_t* source) {
  I32x16 r;
  std::memcpy(r.v, source, sizeof r.v);
  return r;
}
INTERLEAF_INLINE I32x16 subtract(I32x16 a, I32x16 b) {
  for (int i = 0; i < 16; ++i) a.v[i] -= b.v[i];
  return a;
}
INTERLEAF_INLINE F32x16 load_half(const uint16_t* source) {
  float values[16];
  for (int i = 0; i < 16; ++i) values[i] = half_to_float(source[i]);
  return load(values);
}
#endif

}  // namespace interleaf::INTERLEAF_LEVEL
