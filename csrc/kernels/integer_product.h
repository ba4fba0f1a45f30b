// Sixteen columns of a quantized weight against four or eight values of a row, in exact integers.
//
// With VNNI an instruction adds four products of unsigned and signed bytes. Without it, there is one that adds two of
// them in 16 bits, where a group of nibbles fits (16 products of at most 15 * 127 a lane). Bytes would not, so they are
// widened to words, as are the row's values beforehand (see widen_rows).
#pragma once

#include "integers.h"

namespace interleaf::INTERLEAF_LEVEL {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define INTERLEAF_VNNI
constexpr bool kHasByteProduct = true, kHasWordProduct = false;
#elif defined(__AVX2__)
constexpr bool kHasByteProduct = false, kHasWordProduct = true;
#else
constexpr bool kHasByteProduct = false, kHasWordProduct = false;
#endif

// Bytes that a value of a row takes when it meets 8-bit weights.
constexpr int kRowValueBytes = kHasWordProduct ? 2 : 1;

INTERLEAF_INLINE int32_t four_bytes(const uint8_t* source) {
  int32_t bits;
  std::memcpy(&bits, source, 4);
  return bits;
}

#if defined(__AVX512F__)
INTERLEAF_INLINE IntVector both(IntVector a, IntVector b) { return _mm512_and_si512(a, b); }
#elif defined(__AVX2__)
INTERLEAF_INLINE IntVector both(IntVector a, IntVector b) { return _mm256_and_si256(a, b); }
#endif

#if defined(INTERLEAF_VNNI)

// The intrinsic makes gcc 12 copy accumulators around.
INTERLEAF_INLINE void add_products(IntVector& sum, IntVector unsigned_bytes, IntVector signed_bytes) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
#else
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(unsigned_bytes), "x"(signed_bytes));
#endif
}
// The same with four signed bytes for all lanes, from memory.
INTERLEAF_INLINE void add_products(IntVector& sum, IntVector unsigned_bytes, const uint8_t* four) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sum)
      : "v"(unsigned_bytes), "m"(*reinterpret_cast<const uint8_t(*)[4]>(four)));
#else
  add_products(sum, unsigned_bytes, INTERLEAF_INT(set1_epi32)(four_bytes(four)));
#endif
}
INTERLEAF_INLINE IntVector part_of_columns(const uint8_t* weight, int part) {
  return load_bytes(weight + part * static_cast<int>(sizeof(IntVector)));
}

// Weights signed, activations unsigned: 16 columns by four values of k against one row's four.
INTERLEAF_INLINE void add_signed(I32x16& sum, const uint8_t* weight, const uint8_t* x) {
#pragma GCC unroll 2
  for (int i = 0; i < kIntVectors; ++i)
    add_products(sum.v[i], INTERLEAF_INT(set1_epi32)(four_bytes(x)), part_of_columns(weight, i));
}

// Weights unsigned, activations signed.
INTERLEAF_INLINE void add_unsigned(I32x16& sum, const uint8_t* weight, const uint8_t* x) {
#pragma GCC unroll 2
  for (int i = 0; i < kIntVectors; ++i)
    add_products(sum.v[i], part_of_columns(weight, i), x);
}

// 64 bytes of nibbles against eight values of k: the low ones belong to the first four.
using NibbleSum = I32x16;
INTERLEAF_INLINE void add_nibbles(NibbleSum& sum, const uint8_t* weight, const uint8_t* x) {
  const IntVector mask = INTERLEAF_INT(set1_epi8)(0x0f);
#pragma GCC unroll 2
  for (int i = 0; i < kIntVectors; ++i) {
    const IntVector packed = part_of_columns(weight, i);
    add_products(sum.v[i], both(packed, mask), x);
    add_products(sum.v[i], both(INTERLEAF_INT(srli_epi16)(packed, 4), mask), x + 4);
  }
}

#elif defined(__AVX2__)

// Values 0 and 2 of four, then 1 and 3, as words: x as widen_rows() leaves it.
INTERLEAF_INLINE void add_words(IntVector& sum, IntVector even, IntVector odd, const uint8_t* x) {
  const IntVector low = INTERLEAF_INT(madd_epi16)(even, INTERLEAF_INT(set1_epi32)(four_bytes(x)));
  const IntVector high = INTERLEAF_INT(madd_epi16)(odd, INTERLEAF_INT(set1_epi32)(four_bytes(x + 4)));
  sum = INTERLEAF_INT(add_epi32)(sum, INTERLEAF_INT(add_epi32)(low, high));
}

INTERLEAF_INLINE void add_signed(I32x16& sum, const uint8_t* weight, const uint8_t* x) {
#pragma GCC unroll 2
  for (int i = 0; i < kIntVectors; ++i) {
    const IntVector bytes = load_bytes(weight + i * static_cast<int>(sizeof(IntVector)));
    const IntVector even = INTERLEAF_INT(srai_epi16)(INTERLEAF_INT(slli_epi16)(bytes, 8), 8);
    add_words(sum.v[i], even, INTERLEAF_INT(srai_epi16)(bytes, 8), x);
  }
}

INTERLEAF_INLINE void add_unsigned(I32x16& sum, const uint8_t* weight, const uint8_t* x) {
#pragma GCC unroll 2
  for (int i = 0; i < kIntVectors; ++i) {
    const IntVector bytes = load_bytes(weight + i * static_cast<int>(sizeof(IntVector)));
    add_words(sum.v[i], both(bytes, INTERLEAF_INT(set1_epi16)(0xff)), INTERLEAF_INT(srli_epi16)(bytes, 8), x);
  }
}

struct NibbleSum {
  IntVector v[kIntVectors];  // 16 columns by two words
};
INTERLEAF_INLINE void add_nibbles(NibbleSum& sum, const uint8_t* weight, const uint8_t* x) {
  const IntVector mask = INTERLEAF_INT(set1_epi8)(0x0f);
#pragma GCC unroll 2
  for (int i = 0; i < kIntVectors; ++i) {
    const IntVector packed = load_bytes(weight + i * static_cast<int>(sizeof(IntVector)));
    const IntVector low = INTERLEAF_INT(maddubs_epi16)(both(packed, mask), INTERLEAF_INT(set1_epi32)(four_bytes(x)));
    const IntVector above = both(INTERLEAF_INT(srli_epi16)(packed, 4), mask);
    const IntVector high = INTERLEAF_INT(maddubs_epi16)(above, INTERLEAF_INT(set1_epi32)(four_bytes(x + 4)));
    sum.v[i] = INTERLEAF_INT(add_epi16)(sum.v[i], INTERLEAF_INT(add_epi16)(low, high));
  }
}
INTERLEAF_INLINE void clear_sum(NibbleSum& sum, int32_t) {
  for (IntVector& v : sum.v) v = INTERLEAF_INT(set1_epi32)(0);
}
INTERLEAF_INLINE I32x16 total_of(const NibbleSum& sum, int32_t start) {
  I32x16 total;
  for (int i = 0; i < kIntVectors; ++i) total.v[i] = INTERLEAF_INT(madd_epi16)(sum.v[i], INTERLEAF_INT(set1_epi16)(1));
  return start ? add(total, broadcast_int(start)) : total;
}

#else

INTERLEAF_INLINE void add_signed(I32x16& sum, const uint8_t* weight, const uint8_t* x) {
  for (int c = 0; c < 16; ++c)
    for (int i = 0; i < 4; ++i) sum.v[c] += int32_t{static_cast<int8_t>(weight[4 * c + i])} * int32_t{x[i]};
}

INTERLEAF_INLINE void add_unsigned(I32x16& sum, const uint8_t* weight, const uint8_t* x) {
  for (int c = 0; c < 16; ++c)
    for (int i = 0; i < 4; ++i) sum.v[c] += int32_t{weight[4 * c + i]} * int32_t{static_cast<int8_t>(x[i])};
}

using NibbleSum = I32x16;
INTERLEAF_INLINE void add_nibbles(NibbleSum& sum, const uint8_t* weight, const uint8_t* x) {
  for (int c = 0; c < 16; ++c)
    for (int i = 0; i < 4; ++i) {
      const uint8_t both = weight[4 * c + i];
      sum.v[c] += int32_t{both & 15} * int32_t{static_cast<int8_t>(x[i])} +
                  int32_t{both >> 4} * int32_t{static_cast<int8_t>(x[4 + i])};
    }
}

#endif

// A sum that begins with `start`, where it can hold that; total_of() adds it where not.
INTERLEAF_INLINE void clear_sum(I32x16& sum, int32_t start) { sum = broadcast_int(start); }
INTERLEAF_INLINE I32x16 total_of(const I32x16& sum, int32_t) { return sum; }

// Rows' bytes as words, in the order 0, 2, 1, 3 of each four.
template <typename Byte>
INTERLEAF_INLINE void widen_rows(const Byte* x, size_t count, int16_t* words) {
  for (size_t i = 0; i < count; i += 4) {
    words[i] = x[i];
    words[i + 1] = x[i + 2];
    words[i + 2] = x[i + 1];
    words[i + 3] = x[i + 3];
  }
}

}  // namespace interleaf::INTERLEAF_LEVEL
