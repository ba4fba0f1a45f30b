// AMX: eight registers of up to 16 rows by 64 bytes. Tiles 0-3 hold sums (two blocks of 16 rows by two of 16 columns),
// 4 and 5 rows of A, 6 and 7 columns of B (in pairs of k, 16 columns of 4 bytes a row).
#pragma once

#if defined(__AMX_BF16__)

#include "level.h"
#if defined(INTERLEAF_EMULATE_TILES)
#include "tile_emulation.h"
#endif

namespace interleaf::INTERLEAF_LEVEL {

constexpr int kTileRows = 16;
constexpr int kBlockRows = 32;  // rows of A that are multiplied together
constexpr int kTileDepth = 32;  // most values of k in one tile

// The tile shapes of the current thread; gives the registers back at the end.
class TileShape {
 public:
  // For blocks of `rows` (1 to 32) rows of A and `depth` (16 or 32) values of k a step.
  inline __attribute__((always_inline)) void set(int rows, int depth) {
    if (rows == rows_ && depth == depth_) return;
    rows_ = rows;
    depth_ = depth;
    const uint8_t top = static_cast<uint8_t>(lower(rows, kTileRows));
    const uint8_t bottom = static_cast<uint8_t>(higher(rows - kTileRows, 1));
    alignas(64) Config config = {};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) config.row_bytes[tile] = 64;
    config.row_bytes[4] = config.row_bytes[5] = static_cast<uint16_t>(depth * 2);
    config.rows[0] = config.rows[1] = config.rows[4] = top;
    config.rows[2] = config.rows[3] = config.rows[5] = bottom;
    config.rows[6] = config.rows[7] = static_cast<uint8_t>(depth / 2);
    _tile_loadconfig(&config);
  }
  ~TileShape() {
    if (rows_) _tile_release();
  }

 private:
  struct Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  int rows_ = 0, depth_ = 0;
};

// Where 16 + 16 columns of B begin for a step of k, and the bytes from one pair of k to the next.
struct TileColumns {
  const bf16* low;
  const bf16* high;
  size_t stride;
};

// Leaves a [rows, steps * depth] . b in tiles 0-3; `columns(step)` tells where b lies. The shape is set to `rows`.
// `ahead(step)` may ask for memory that will be needed soon.
template <int depth, typename ColumnsOf, typename Ahead>
INTERLEAF_INLINE void tile_product(const bf16* a, ptrdiff_t lda, int rows, int steps, ColumnsOf columns, Ahead ahead) {
  const size_t a_stride = static_cast<size_t>(lda) * 2;
  _tile_zero(0);
  _tile_zero(1);
  if (rows <= kTileRows) {
    for (int step = 0; step < steps; ++step) {
      const TileColumns b = columns(step);
      ahead(step);
      _tile_loadd(6, b.low, b.stride);
      _tile_loadd(7, b.high, b.stride);
      _tile_loadd(4, a + step * depth, a_stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    return;
  }
  _tile_zero(2);
  _tile_zero(3);
  const bf16* a2 = a + kTileRows * lda;
  for (int step = 0; step < steps; ++step) {
    const TileColumns b = columns(step);
    ahead(step);
    _tile_loadd(6, b.low, b.stride);
    _tile_loadd(7, b.high, b.stride);
    _tile_loadd(4, a + step * depth, a_stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a2 + step * depth, a_stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// Writes tiles 0-3 as `rows` rows of 32 floats (16 without `both`), `stride` floats apart.
INTERLEAF_INLINE void tile_store(float* sums, ptrdiff_t stride, int rows, bool both) {
  const size_t bytes = static_cast<size_t>(stride) * 4;
  _tile_stored(0, sums, bytes);
  if (both) _tile_stored(1, sums + kLanes, bytes);
  if (rows <= kTileRows) return;
  _tile_stored(2, sums + kTileRows * stride, bytes);
  if (both) _tile_stored(3, sums + kTileRows * stride + kLanes, bytes);
}

}  // namespace interleaf::INTERLEAF_LEVEL

#endif
