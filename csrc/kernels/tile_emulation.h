// The tile instructions in plain C++, to test the kernels of `amx` where no CPU has them (INTERLEAF_EMULATE_TILES). Slow, and
// strict: shapes that do not fit one another end the process.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace interleaf::INTERLEAF_LEVEL::tile_emulation {

struct Tile {
  uint8_t data[16][64];
  uint16_t row_bytes;
  uint8_t rows;

  template <typename Value>
  Value at(int row, int byte) const {
    Value value;
    std::memcpy(&value, data[row] + byte, sizeof value);
    return value;
  }
};
inline thread_local Tile tiles[8];

// As `ldtilecfg` lays it out: bytes a row from byte 16 on, rows from byte 48 on.
inline void configure(const void* config) {
  for (int i = 0; i < 8; ++i) {
    tiles[i] = {};
    std::memcpy(&tiles[i].row_bytes, static_cast<const uint8_t*>(config) + 16 + 2 * i, 2);
    tiles[i].rows = static_cast<const uint8_t*>(config)[48 + i];
  }
}
inline void release() {
  for (Tile& tile : tiles) tile = {};
}
inline void zero(int tile) { std::memset(tiles[tile].data, 0, sizeof tiles[tile].data); }
inline void load(int tile, const void* from, size_t stride) {
  zero(tile);
  for (int row = 0; row < tiles[tile].rows; ++row)
    std::memcpy(tiles[tile].data[row], static_cast<const char*>(from) + static_cast<size_t>(row) * stride,
                tiles[tile].row_bytes);
}
inline void store(int tile, void* to, size_t stride) {
  for (int row = 0; row < tiles[tile].rows; ++row)
    std::memcpy(static_cast<char*>(to) + static_cast<size_t>(row) * stride, tiles[tile].data[row], tiles[tile].row_bytes);
}

// sum[m, n] = add(sum[m, n], four bytes of a row of `a`, four bytes of a row of `b`) for all k in ascending order.
template <typename Sum, typename Add>
void multiply(int sum, int a, int b, Add add) {
  Tile &y = tiles[sum], &left = tiles[a], &right = tiles[b];
  if (y.rows != left.rows || y.row_bytes != right.row_bytes || left.row_bytes != 4 * right.rows) std::abort();
  for (int m = 0; m < y.rows; ++m)
    for (int n = 0; n < y.row_bytes; n += 4) {
      Sum total = y.at<Sum>(m, n);
      for (int k = 0; k < right.rows; ++k) total = add(total, left.at<uint32_t>(m, 4 * k), right.at<uint32_t>(k, n));
      std::memcpy(y.data[m] + n, &total, sizeof total);
    }
}

inline void multiply_bf16(int sum, int a, int b) {
  const auto high_half = [](uint32_t bits) {
    bits &= 0xffff0000u;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  };
  multiply<float>(sum, a, b, [&](float total, uint32_t x, uint32_t w) {
    return std::fma(high_half(x), high_half(w), std::fma(high_half(x << 16), high_half(w << 16), total));
  });
}

template <typename A, typename B>
void multiply_bytes(int sum, int a, int b) {
  multiply<int32_t>(sum, a, b, [](int32_t total, uint32_t x, uint32_t w) {
    for (int shift = 0; shift < 32; shift += 8)
      total += int32_t{static_cast<A>(x >> shift)} * int32_t{static_cast<B>(w >> shift)};
    return total;
  });
}

}  // namespace interleaf::INTERLEAF_LEVEL::tile_emulation

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#define _tile_loadconfig(config) tile_emulation::configure(config)
#define _tile_release() tile_emulation::release()
#define _tile_loadd(tile, from, stride) tile_emulation::load(tile, from, stride)
#define _tile_stream_loadd(tile, from, stride) tile_emulation::load(tile, from, stride)
#define _tile_stored(tile, to, stride) tile_emulation::store(tile, to, stride)
#define _tile_zero(tile) tile_emulation::zero(tile)
#define _tile_dpbf16ps(sum, a, b) tile_emulation::multiply_bf16(sum, a, b)
#define _tile_dpbssd(sum, a, b) tile_emulation::multiply_bytes<int8_t, int8_t>(sum, a, b)
#define _tile_dpbsud(sum, a, b) tile_emulation::multiply_bytes<int8_t, uint8_t>(sum, a, b)
#define _tile_dpbusd(sum, a, b) tile_emulation::multiply_bytes<uint8_t, int8_t>(sum, a, b)
