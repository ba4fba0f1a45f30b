// AMX: eight registers of 16 rows by 64 bytes. Tiles 0-3 hold sums (two blocks of 16 rows by two of 16 columns),
// 4 and 5 rows of A, 6 and 7 columns of B.
#pragma once

#if defined(__AMX_BF16__)

#include "level.h"

namespace interleaf::INTERLEAF_LEVEL {

constexpr int kTileRows = 16;
constexpr int kTileRows2 = 32;
constexpr int kTileDepth = 32;  // values of k in one tile

// Sets the tile shapes of the current thread, and gives the registers back at the end.
class TileShape {
 public:
  // For blocks of `rows` (1 to 32) rows of A.
  inline __attribute__((always_inline)) void set_rows(int rows) {
    if (rows == rows_) return;
    rows_ = rows;
    const uint8_t top = static_cast<uint8_t>(lower(rows, kTileRows));
    const uint8_t bottom = static_cast<uint8_t>(higher(rows - kTileRows, 1));
    alignas(64) Config config = {};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) config.row_bytes[tile] = 64;
    config.rows[0] = config.rows[1] = config.rows[4] = top;
    config.rows[2] = config.rows[3] = config.rows[5] = bottom;
    config.rows[6] = config.rows[7] = kTileRows;
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
  int rows_ = 0;
};

// sums [rows, 32] = a [rows, k] . b, b being one panel of a packed weight; k is a multiple of 32.
INTERLEAF_INLINE void tile_product(const bf16* a, ptrdiff_t lda, const bf16* b, int k, int rows, float* sums) {
  const size_t a_stride = static_cast<size_t>(lda) * 2, b_stride = 128;
  _tile_zero(0);
  _tile_zero(1);
  if (rows <= kTileRows) {
    for (int j = 0; j < k; j += kTileDepth) {
      const bf16* panel = b + static_cast<ptrdiff_t>(j) * kPanelColumns;
      _tile_loadd(6, panel, b_stride);
      _tile_loadd(7, panel + 32, b_stride);
      _tile_loadd(4, a + j, a_stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
  } else {
    _tile_zero(2);
    _tile_zero(3);
    const bf16* a2 = a + kTileRows * lda;
    for (int j = 0; j < k; j += kTileDepth) {
      const bf16* panel = b + static_cast<ptrdiff_t>(j) * kPanelColumns;
      _tile_loadd(6, panel, b_stride);
      _tile_loadd(7, panel + 32, b_stride);
      _tile_loadd(4, a + j, a_stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a2 + j, a_stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(2, sums + kTileRows * kPanelColumns, 128);
    _tile_stored(3, sums + kTileRows * kPanelColumns + kLanes, 128);
  }
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + kLanes, 128);
}

}  // namespace interleaf::INTERLEAF_LEVEL

#endif
