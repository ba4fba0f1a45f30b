// Sixteen integers at a time, and scales in float16.
#pragma once

#include "level.h"

namespace interleaf::INTERLEAF_LEVEL {

// Sixteen 32-bit integers, in one or two registers of the widest integers that the level has.
#if defined(__AVX512F__)
using IntVector = __m512i;
#define INTERLEAF_INT(name) _mm512_##name
#elif defined(__AVX2__)
using IntVector = __m256i;
#define INTERLEAF_INT(name) _mm256_##name
#endif

#if defined(__AVX2__)
constexpr int kIntVectors = 64 / sizeof(IntVector);
INTERLEAF_INLINE IntVector load_bytes(const void* source) {
  IntVector bytes;
  std::memcpy(&bytes, source, sizeof bytes);
  return bytes;
}

struct I32x16 {
  IntVector v[kIntVectors];
};
#define INTERLEAF_EACH(expression)                      \
  I32x16 r;                                             \
  for (int i = 0; i < kIntVectors; ++i) r.v[i] = (expression); \
  return r
INTERLEAF_INLINE I32x16 broadcast_int(int32_t value) { INTERLEAF_EACH(INTERLEAF_INT(set1_epi32)(value)); }
INTERLEAF_INLINE I32x16 load_ints(const int32_t* source) { INTERLEAF_EACH(load_bytes(source + i * (kLanes / kIntVectors))); }
INTERLEAF_INLINE I32x16 add(I32x16 a, I32x16 b) { INTERLEAF_EACH(INTERLEAF_INT(add_epi32)(a.v[i], b.v[i])); }
INTERLEAF_INLINE I32x16 subtract(I32x16 a, I32x16 b) { INTERLEAF_EACH(INTERLEAF_INT(sub_epi32)(a.v[i], b.v[i])); }
#undef INTERLEAF_EACH
INTERLEAF_INLINE __m128i load_halves(const uint16_t* source) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
}
#if defined(__AVX512F__)
INTERLEAF_INLINE F32x16 to_floats(I32x16 a) { return {_mm512_cvtepi32_ps(a.v[0])}; }
INTERLEAF_INLINE F32x16 load_half(const uint16_t* source) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)))};
}
#else
INTERLEAF_INLINE F32x16 to_floats(I32x16 a) { return {_mm256_cvtepi32_ps(a.v[0]), _mm256_cvtepi32_ps(a.v[1])}; }
INTERLEAF_INLINE F32x16 load_half(const uint16_t* source) {
  return {_mm256_cvtph_ps(load_halves(source)), _mm256_cvtph_ps(load_halves(source + 8))};
}
#endif
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
INTERLEAF_INLINE I32x16 add(I32x16 a, I32x16 b) {
  for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
  return a;
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
