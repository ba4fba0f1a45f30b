// The inner product at the heart of the linear and attention kernels: M rows of A by 32 columns of B, kept in
// registers, one sum over k in ascending order for each of the results.
#pragma once

#include "level.h"

namespace interleaf::INTERLEAF_LEVEL {

#if defined(__AVX512BF16__)
constexpr bool kHasBf16Product = true;
#else
constexpr bool kHasBf16Product = false;
#endif

// Whether blocks of M rows ask for weights. With several rows, products that wait for their operands keep later loads from
// starting. One row waits for nothing but memory: CPUs that have the product of bf16 run ahead of it by themselves.
template <int M>
constexpr bool kAsksAhead = M > 1 || !kHasBf16Product;

// Asks memory for weights before a product comes to them, once for each 64 bytes that it reads. When there are several
// passes over a panel they ask for the next one, evenly: memory is slower than one pass, and faster than two. A single
// pass asks for what lies a little ahead of it.
class WeightsAhead {
 public:
  // Of the block that begins at `row`, one of `blocks` that `rows` are multiplied in; the panel has `bytes`. Blocks that
  // multiply its halves one after the other pass twice.
  WeightsAhead(const void* panel, size_t bytes, int row, int rows, int blocks, bool in_halves)
      : line_(static_cast<const char*>(panel)), step_((64 + blocks - 1) / blocks) {
    const size_t share = bytes * static_cast<size_t>(row) / static_cast<size_t>(rows);
    line_ += blocks == 1 && !in_halves ? kDistance : bytes + share;
  }

  __attribute__((always_inline)) void ask() {
    prefetch(line_);
    line_ += step_;
  }

 private:
  static constexpr size_t kDistance = 8192;
  const char* line_;
  ptrdiff_t step_;
};

#if defined(__AVX512F__)
constexpr int kMaxRows = 12;
#elif defined(__AVX2__)
constexpr int kMaxRows = 2;
#else
constexpr int kMaxRows = 1;
#endif

// What bf16 activations are multiplied as: bf16 where there is an instruction for it, else widened floats.
template <typename T>
struct OperandOf {
  using Type = float;
};
#if defined(__AVX512BF16__)
template <>
struct OperandOf<bf16> {
  using Type = bf16;
};
#endif
template <typename T>
using Operand = typename OperandOf<T>::Type;

// Two vectors of 16 columns, which need not lie side by side.
template <typename T>
struct Columns {
  const T* low;
  const T* high;
};

// sum += x * b. Told as an instruction where there is one: gcc 12 copies accumulators around, or keeps them in memory.
INTERLEAF_INLINE void accumulate(F32x16& sum, F32x16 x, F32x16 b) {
#if defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum.v) : "v"(x.v), "v"(b.v));
#else
  sum = fma(x, b, sum);
#endif
}

// A float32, B float32: `columns(k)` gives row k of B. Here and below, Stride is a ptrdiff_t or a constant of that type, for
// which rows need no addresses of their own.
template <int M, typename Stride, typename ColumnsOf>
INTERLEAF_INLINE void product(const float* a, Stride lda, int k_size, ColumnsOf columns, const float*,
                              F32x16 (&sum)[M][2]) {
  for (int k = 0; k < k_size; ++k) {
    const Columns<float> b = columns(k);
    const F32x16 low = load(b.low), high = load(b.high);
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r) {
      const F32x16 x = broadcast(a[r * lda + k]);
      accumulate(sum[r][0], x, low);
      accumulate(sum[r][1], x, high);
    }
  }
}

// A float32, B bf16 in pairs of k: `columns(j)` gives rows 2j and 2j + 1 of B. An odd last k has a partner of zeros
// in B and none in A.
template <int M, typename Stride, typename ColumnsOf>
INTERLEAF_INLINE void product(const float* a, Stride lda, int k_size, ColumnsOf columns, const bf16*,
                              F32x16 (&sum)[M][2]) {
  for (int j = 0; j < (k_size + 1) / 2; ++j) {
    const Columns<bf16> b = columns(j);
    const F32x16 even_low = load_even(b.low), even_high = load_even(b.high);
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r) {
      const F32x16 x = broadcast(a[r * lda + 2 * j]);
      accumulate(sum[r][0], x, even_low);
      accumulate(sum[r][1], x, even_high);
    }
    if (2 * j + 1 == k_size) break;
    const F32x16 odd_low = load_odd(b.low), odd_high = load_odd(b.high);
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r) {
      const F32x16 x = broadcast(a[r * lda + 2 * j + 1]);
      accumulate(sum[r][0], x, odd_low);
      accumulate(sum[r][1], x, odd_high);
    }
  }
}

#if defined(__AVX512BF16__)
// A bf16, B bf16 in pairs of k, two products a lane and instruction.
template <int M, typename Stride, typename ColumnsOf>
INTERLEAF_INLINE void product(const bf16* a, Stride lda, int k_size, ColumnsOf columns, const bf16*,
                              F32x16 (&sum)[M][2]) {
  const auto step = [&](int j, auto pair_at) __attribute__((always_inline)) {
    const Columns<bf16> b = columns(j);
    const __m512bh low = (__m512bh)_mm512_loadu_si512(b.low);
    const __m512bh high = (__m512bh)_mm512_loadu_si512(b.high);
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair_at(a + r * lda + 2 * j));
      sum[r][0].v = _mm512_dpbf16_ps(sum[r][0].v, x, low);
      sum[r][1].v = _mm512_dpbf16_ps(sum[r][1].v, x, high);
    }
  };
  for (int j = 0; j < k_size / 2; ++j)
    step(j, [](const bf16* pair) __attribute__((always_inline)) {
      int bits;
      std::memcpy(&bits, pair, 4);
      return bits;
    });
  if (k_size % 2) step(k_size / 2, [](const bf16* last) __attribute__((always_inline)) { return int{*last}; });
}
#endif

template <int M>
INTERLEAF_INLINE void clear(F32x16 (&sum)[M][2]) {
#pragma GCC unroll 12
  for (int r = 0; r < M; ++r) sum[r][0] = sum[r][1] = broadcast(0.0f);
}

constexpr int num_row_blocks(int rows, int most) { return (rows + most - 1) / most; }

// Calls `body.template operator()<M>(first_row)` for blocks of M <= most (12 at most) rows of nearly equal size.
template <int most = kMaxRows, typename Body>
INTERLEAF_INLINE void for_row_blocks(int rows, Body body) {
  const int num_blocks = num_row_blocks(rows, most);
  for (int block = 0; block < num_blocks; ++block) {
    const int begin = rows * block / num_blocks, end = rows * (block + 1) / num_blocks;
    const auto call = [&]<int M>() __attribute__((always_inline)) {
      if constexpr (M <= most) body.template operator()<M>(begin);
    };
    switch (end - begin) {
      case 1: call.template operator()<1>(); break;
      case 2: call.template operator()<2>(); break;
      case 3: call.template operator()<3>(); break;
      case 4: call.template operator()<4>(); break;
      case 5: call.template operator()<5>(); break;
      case 6: call.template operator()<6>(); break;
      case 7: call.template operator()<7>(); break;
      case 8: call.template operator()<8>(); break;
      case 9: call.template operator()<9>(); break;
      case 10: call.template operator()<10>(); break;
      case 11: call.template operator()<11>(); break;
      case 12: call.template operator()<12>(); break;
    }
  }
}

}  // namespace interleaf::INTERLEAF_LEVEL
