// Sixteen floats at a time on every instruction level, so that kernels are written once.
//
// A kernel file is compiled with INTERLEAF_LEVEL naming its namespace. All code here lies in that
// namespace: the linker must never take one level's copy of an inline function for another's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef INTERLEAF_LEVEL
#error "kernel files are compiled with INTERLEAF_LEVEL set"
#endif

#define INTERLEAF_INLINE static inline __attribute__((always_inline))

namespace interleaf::INTERLEAF_LEVEL {

using bf16 = uint16_t;

constexpr int kLanes = 16;

INTERLEAF_INLINE float to_float(bf16 value) {
  const uint32_t bits = uint32_t{value} << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
INTERLEAF_INLINE float to_float(float value) { return value; }

// Asks for a line of memory that will be needed soon.
INTERLEAF_INLINE void prefetch(const void* line) { __builtin_prefetch(line, 0, 2); }

INTERLEAF_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16, magnitude = half & 0x7fffu;
  uint32_t bits = magnitude >= 0x7c00 ? 0x7f800000u | ((magnitude & 0x3ffu) << 13) : (magnitude << 13) + 0x38000000u;
  if (magnitude < 0x400) {
    const float tiny = static_cast<float>(magnitude) * 0x1p-24f;
    std::memcpy(&bits, &tiny, 4);
  }
  bits |= sign;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

// Round to nearest, ties to even; NaN stays NaN.
INTERLEAF_INLINE bf16 to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16>((bits >> 16) | 0x40);
  return static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

#if defined(__AVX512F__)

struct F32x16 {
  __m512 v;
};
INTERLEAF_INLINE F32x16 broadcast(float value) { return {_mm512_set1_ps(value)}; }
INTERLEAF_INLINE F32x16 load(const float* source) { return {_mm512_loadu_ps(source)}; }
INTERLEAF_INLINE F32x16 load(const bf16* source) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
INTERLEAF_INLINE F32x16 load(const int8_t* source) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source))))};
}
// The low or high halves of 16 pairs of bf16.
INTERLEAF_INLINE F32x16 load_even(const bf16* source) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(source), 16))};
}
INTERLEAF_INLINE F32x16 load_odd(const bf16* source) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(source), _mm512_set1_epi32(0xffff0000)))};
}
INTERLEAF_INLINE void store(float* destination, F32x16 a) { _mm512_storeu_ps(destination, a.v); }
INTERLEAF_INLINE __m256i round_to_bf16(F32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i lowest = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), lowest);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}
INTERLEAF_INLINE void store(bf16* destination, F32x16 a) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(destination), (__m256i)_mm512_cvtneps_pbh(a.v));
#else
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(destination), round_to_bf16(a));
#endif
}
INTERLEAF_INLINE F32x16 load_partial(const float* source, int count) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), source)};
}
INTERLEAF_INLINE void store_partial(float* destination, F32x16 a, int count) {
  _mm512_mask_storeu_ps(destination, static_cast<__mmask16>((1u << count) - 1), a.v);
}
INTERLEAF_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
INTERLEAF_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
INTERLEAF_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
INTERLEAF_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
// Sums and differences of lanes `distance` apart: in place of the lower lane the sum, of the upper one lower - upper.
template <int distance>
INTERLEAF_INLINE F32x16 butterfly(F32x16 x) {
  __m512 other;
  if constexpr (distance == 8) other = _mm512_shuffle_f32x4(x.v, x.v, 0x4e);
  if constexpr (distance == 4) other = _mm512_shuffle_f32x4(x.v, x.v, 0xb1);
  if constexpr (distance == 2) other = _mm512_permute_ps(x.v, 0x4e);
  if constexpr (distance == 1) other = _mm512_permute_ps(x.v, 0xb1);
  constexpr __mmask16 kUpper = distance == 8 ? 0xff00 : distance == 4 ? 0xf0f0 : distance == 2 ? 0xcccc : 0xaaaa;
  const __m512 sign = _mm512_mask_blend_ps(kUpper, _mm512_set1_ps(1.0f), _mm512_set1_ps(-1.0f));
  return {_mm512_fmadd_ps(x.v, sign, other)};
}
INTERLEAF_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// 1 / a for a >= 1 within an ulp or so: an estimate and a Newton step, where a division would hold up the unit.
INTERLEAF_INLINE F32x16 reciprocal(F32x16 a) {
  const __m512 estimate = _mm512_rcp14_ps(a.v);
  const __m512 error = _mm512_fnmadd_ps(a.v, estimate, _mm512_set1_ps(1.0f));
  return {_mm512_fmadd_ps(estimate, error, estimate)};
}
INTERLEAF_INLINE F32x16 maximum(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
INTERLEAF_INLINE F32x16 largest_magnitude(F32x16 top, F32x16 x) { return {_mm512_range_ps(top.v, x.v, 0b1011)}; }
INTERLEAF_INLINE F32x16 minimum(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
INTERLEAF_INLINE F32x16 round_nearest(F32x16 a) { return {_mm512_roundscale_ps(a.v, 0)}; }
// a * 2^n for whole n in [-126, 127].
INTERLEAF_INLINE F32x16 scale_by_power(F32x16 a, F32x16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// a where x >= bound, else 0.
INTERLEAF_INLINE F32x16 where_at_least(F32x16 x, float bound, F32x16 a) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(bound), _CMP_GE_OQ), a.v)};
}

#elif defined(__AVX2__)

struct F32x16 {
  __m256 a, b;
};
INTERLEAF_INLINE F32x16 broadcast(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
INTERLEAF_INLINE F32x16 load(const float* source) { return {_mm256_loadu_ps(source), _mm256_loadu_ps(source + 8)}; }
INTERLEAF_INLINE __m256 widen8(const bf16* source) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INTERLEAF_INLINE F32x16 load(const bf16* source) { return {widen8(source), widen8(source + 8)}; }
INTERLEAF_INLINE __m256 widen8(const int8_t* source) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source))));
}
INTERLEAF_INLINE F32x16 load(const int8_t* source) { return {widen8(source), widen8(source + 8)}; }
INTERLEAF_INLINE __m256i load_pairs(const bf16* source) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
}
INTERLEAF_INLINE F32x16 load_even(const bf16* source) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(load_pairs(source), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(load_pairs(source + 16), 16))};
}
INTERLEAF_INLINE F32x16 load_odd(const bf16* source) {
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(load_pairs(source), mask)),
          _mm256_castsi256_ps(_mm256_and_si256(load_pairs(source + 16), mask))};
}
INTERLEAF_INLINE void store(float* destination, F32x16 x) {
  _mm256_storeu_ps(destination, x.a);
  _mm256_storeu_ps(destination + 8, x.b);
}
INTERLEAF_INLINE __m256i round_to_bf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i lowest = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), lowest);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
INTERLEAF_INLINE void store(bf16* destination, F32x16 x) {
  const __m256i packed = _mm256_packus_epi32(round_to_bf16(x.a), round_to_bf16(x.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(destination), _mm256_permute4x64_epi64(packed, 0xd8));
}
INTERLEAF_INLINE F32x16 operator+(F32x16 x, F32x16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
INTERLEAF_INLINE F32x16 operator-(F32x16 x, F32x16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
INTERLEAF_INLINE F32x16 operator*(F32x16 x, F32x16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
INTERLEAF_INLINE F32x16 operator/(F32x16 x, F32x16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
template <int distance>
INTERLEAF_INLINE __m256 butterfly8(__m256 x) {
  __m256 other;
  if constexpr (distance == 4) other = _mm256_permute2f128_ps(x, x, 1);
  if constexpr (distance == 2) other = _mm256_permute_ps(x, 0x4e);
  if constexpr (distance == 1) other = _mm256_permute_ps(x, 0xb1);
  constexpr int kUpper = distance == 4 ? 0xf0 : distance == 2 ? 0xcc : 0xaa;
  return _mm256_blend_ps(_mm256_add_ps(x, other), _mm256_sub_ps(other, x), kUpper);
}
template <int distance>
INTERLEAF_INLINE F32x16 butterfly(F32x16 x) {
  if constexpr (distance == 8) return {_mm256_add_ps(x.a, x.b), _mm256_sub_ps(x.a, x.b)};
  else return {butterfly8<distance>(x.a), butterfly8<distance>(x.b)};
}
INTERLEAF_INLINE F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
INTERLEAF_INLINE F32x16 maximum(F32x16 x, F32x16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
INTERLEAF_INLINE F32x16 largest_magnitude(F32x16 top, F32x16 x) {
  return maximum(maximum(x, broadcast(0.0f) - x), top);
}
INTERLEAF_INLINE F32x16 minimum(F32x16 x, F32x16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
INTERLEAF_INLINE F32x16 round_nearest(F32x16 x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
INTERLEAF_INLINE __m256 scale8(__m256 x, __m256 n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
INTERLEAF_INLINE __m256 where_at_least8(__m256 x, float bound, __m256 a) {
  return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(bound), _CMP_GE_OQ), a);
}
INTERLEAF_INLINE F32x16 where_at_least(F32x16 x, float bound, F32x16 y) {
  return {where_at_least8(x.a, bound, y.a), where_at_least8(x.b, bound, y.b)};
}
INTERLEAF_INLINE F32x16 scale_by_power(F32x16 x, F32x16 n) { return {scale8(x.a, n.a), scale8(x.b, n.b)}; }

#else

struct F32x16 {
  float v[16];
};
#define INTERLEAF_EACH(expression)           \
  F32x16 r;                                  \
  for (int i = 0; i < 16; ++i) r.v[i] = (expression); \
  return r
INTERLEAF_INLINE F32x16 broadcast(float value) { INTERLEAF_EACH(value); }
INTERLEAF_INLINE F32x16 load(const float* source) { INTERLEAF_EACH(source[i]); }
INTERLEAF_INLINE F32x16 load(const bf16* source) { INTERLEAF_EACH(to_float(source[i])); }
INTERLEAF_INLINE F32x16 load(const int8_t* source) { INTERLEAF_EACH(static_cast<float>(source[i])); }
INTERLEAF_INLINE F32x16 load_even(const bf16* source) { INTERLEAF_EACH(to_float(source[2 * i])); }
INTERLEAF_INLINE F32x16 load_odd(const bf16* source) { INTERLEAF_EACH(to_float(source[2 * i + 1])); }
INTERLEAF_INLINE void store(float* destination, F32x16 x) {
  for (int i = 0; i < 16; ++i) destination[i] = x.v[i];
}
INTERLEAF_INLINE void store(bf16* destination, F32x16 x) {
  for (int i = 0; i < 16; ++i) destination[i] = to_bf16(x.v[i]);
}
INTERLEAF_INLINE F32x16 operator+(F32x16 x, F32x16 y) { INTERLEAF_EACH(x.v[i] + y.v[i]); }
INTERLEAF_INLINE F32x16 operator-(F32x16 x, F32x16 y) { INTERLEAF_EACH(x.v[i] - y.v[i]); }
INTERLEAF_INLINE F32x16 operator*(F32x16 x, F32x16 y) { INTERLEAF_EACH(x.v[i] * y.v[i]); }
INTERLEAF_INLINE F32x16 operator/(F32x16 x, F32x16 y) { INTERLEAF_EACH(x.v[i] / y.v[i]); }
template <int distance>
INTERLEAF_INLINE F32x16 butterfly(F32x16 x) {
  INTERLEAF_EACH((i & distance) == 0 ? x.v[i] + x.v[i + distance] : x.v[i - distance] - x.v[i]);
}
INTERLEAF_INLINE F32x16 fma(F32x16 x, F32x16 y, F32x16 z) { INTERLEAF_EACH(x.v[i] * y.v[i] + z.v[i]); }
INTERLEAF_INLINE F32x16 maximum(F32x16 x, F32x16 y) { INTERLEAF_EACH(x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
INTERLEAF_INLINE F32x16 largest_magnitude(F32x16 top, F32x16 x) {
  return maximum(maximum(x, broadcast(0.0f) - x), top);
}
INTERLEAF_INLINE F32x16 minimum(F32x16 x, F32x16 y) { INTERLEAF_EACH(x.v[i] < y.v[i] ? x.v[i] : y.v[i]); }
INTERLEAF_INLINE F32x16 round_nearest(F32x16 x) { INTERLEAF_EACH(__builtin_nearbyintf(x.v[i])); }
INTERLEAF_INLINE float power_of_two(int n) {
  const uint32_t bits = static_cast<uint32_t>(n + 127) << 23;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
INTERLEAF_INLINE F32x16 scale_by_power(F32x16 x, F32x16 n) {
  INTERLEAF_EACH(x.v[i] * power_of_two(static_cast<int>(n.v[i])));
}
INTERLEAF_INLINE F32x16 where_at_least(F32x16 x, float bound, F32x16 y) { INTERLEAF_EACH(x.v[i] >= bound ? y.v[i] : 0.0f); }
#undef INTERLEAF_EACH

#endif

#if !defined(__AVX512F__)
INTERLEAF_INLINE F32x16 reciprocal(F32x16 a) { return broadcast(1.0f) / a; }
INTERLEAF_INLINE F32x16 load_partial(const float* source, int count) {
  float values[16] = {};
  std::memcpy(values, source, sizeof(float) * static_cast<size_t>(count));
  return load(values);
}
INTERLEAF_INLINE void store_partial(float* destination, F32x16 a, int count) {
  float values[16];
  store(values, a);
  std::memcpy(destination, values, sizeof(float) * static_cast<size_t>(count));
}
#endif

INTERLEAF_INLINE F32x16 load_partial(const bf16* source, int count) {
  bf16 values[16] = {};
  std::memcpy(values, source, sizeof(bf16) * static_cast<size_t>(count));
  return load(values);
}
INTERLEAF_INLINE void store_partial(bf16* destination, F32x16 a, int count) {
  bf16 values[16];
  store(values, a);
  std::memcpy(destination, values, sizeof(bf16) * static_cast<size_t>(count));
}

// Lane sums and maxima in one fixed tree.
#if defined(__AVX512F__)
INTERLEAF_INLINE float reduce_add(F32x16 x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INTERLEAF_INLINE float reduce_max(F32x16 x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
INTERLEAF_INLINE float reduce_add(F32x16 x) {
  float v[16];
  store(v, x);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  return v[0];
}
INTERLEAF_INLINE float reduce_max(F32x16 x) {
  float v[16];
  store(v, x);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
  return v[0];
}
#endif

// e^x within 2 units in the last place; 0 below -87.3 (where results would be denormal, and slow), and for -inf. Range
// reduction by ln 2 in two parts, then the Taylor polynomial of degree 7 on [-ln2/2, ln2/2].
INTERLEAF_INLINE F32x16 exp(F32x16 unbounded) {
  const F32x16 x = minimum(maximum(unbounded, broadcast(-87.3f)), broadcast(88.3f));
  const F32x16 n = round_nearest(x * broadcast(1.44269504088896341f));
  F32x16 r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  F32x16 p = broadcast(1.0f / 5040.0f);
  p = fma(p, r, broadcast(1.0f / 720.0f));
  p = fma(p, r, broadcast(1.0f / 120.0f));
  p = fma(p, r, broadcast(1.0f / 24.0f));
  p = fma(p, r, broadcast(1.0f / 6.0f));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return where_at_least(unbounded, -87.3f, scale_by_power(p, n));
}
INTERLEAF_INLINE float exp(float x) {
  float v[16];
  store(v, exp(broadcast(x)));
  return v[0];
}

// 2^x for x <= 0; 0 for -inf.
#if defined(__AVX512F__)
// x - floor(x), and 0 for -inf; a * 2^floor(x).
INTERLEAF_INLINE F32x16 fraction(F32x16 x) { return {_mm512_reduce_ps(x.v, 9)}; }
INTERLEAF_INLINE F32x16 scale_by_floor(F32x16 a, F32x16 x) { return {_mm512_scalef_ps(a.v, x.v)}; }
// Within 2e-7: minimax polynomial of degree 5 on [0, 1). Below -126 results are denormal, and slow, unless these are
// flushed.
INTERLEAF_INLINE F32x16 exp2_of_negative(F32x16 x) {
  const F32x16 r = fraction(x);
  F32x16 p = broadcast(1.867131688e-3f);
  p = fma(p, r, broadcast(9.017026898e-3f));
  p = fma(p, r, broadcast(5.579991555e-2f));
  p = fma(p, r, broadcast(2.401644495e-1f));
  p = fma(p, r, broadcast(6.931513119e-1f));
  p = fma(p, r, broadcast(1.0f));
  return scale_by_floor(p, x);
}
#else
// Within 4e-7: minimax polynomial of degree 5 on [-1/2, 1/2]. 0 below -125.
INTERLEAF_INLINE F32x16 exp2_of_negative(F32x16 unbounded) {
  const F32x16 x = maximum(unbounded, broadcast(-125.0f));
  const F32x16 n = round_nearest(x);
  const F32x16 r = x - n;
  F32x16 p = broadcast(1.327647129e-3f);
  p = fma(p, r, broadcast(9.675540961e-3f));
  p = fma(p, r, broadcast(5.550713092e-2f));
  p = fma(p, r, broadcast(2.402212024e-1f));
  p = fma(p, r, broadcast(6.931469440e-1f));
  p = fma(p, r, broadcast(1.0f));
  return where_at_least(unbounded, -125.0f, scale_by_power(p, n));
}
#endif
INTERLEAF_INLINE float exp2_of_negative(float x) {
  float v[16];
  store(v, exp2_of_negative(broadcast(x)));
  return v[0];
}

// Within 2e-7.
INTERLEAF_INLINE F32x16 tanh(F32x16 x) {
  return fma(broadcast(-2.0f), reciprocal(exp(x + x) + broadcast(1.0f)), broadcast(1.0f));
}

INTERLEAF_INLINE F32x16 silu(F32x16 x) {
  return x * reciprocal(broadcast(1.0f) + exp(broadcast(0.0f) - x));
}

// x / 2 * (1 + tanh(u)) with u = sqrt(2 / pi) * (x + 0.044715 x^3), which is x / (1 + e^(-2u)). (Hendrycks 2016)
INTERLEAF_INLINE F32x16 gelu_tanh(F32x16 x) {
  const F32x16 slope = fma(x * x, broadcast(-2.0f * 0.7978845608f * 0.044715f), broadcast(-2.0f * 0.7978845608f));
  return x * reciprocal(broadcast(1.0f) + exp(x * slope));
}

}  // namespace interleaf::INTERLEAF_LEVEL
