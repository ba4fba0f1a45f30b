#include "pack.h"

#include <atomic>
#include <cstring>
#include <stdexcept>

#include "dequantize.h"

namespace interleaf {

namespace {

uint16_t round_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16, magnitude = half & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00) {
    bits = sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  } else if (magnitude >= 0x400) {
    bits = sign | ((magnitude << 13) + 0x38000000u);
  } else {
    const float tiny = static_cast<float>(magnitude) * 0x1p-24f;
    std::memcpy(&bits, &tiny, 4);
    bits |= sign;
  }
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

size_t panel_values(int k, DType type) {
  return size_t{kPanelColumns} * static_cast<size_t>(type == DType::kBf16 ? (k + 1) / 2 * 2 : k);
}

// Writes 32 rows of k floats as one panel, side by side.
void write_panel(const float* rows, int k, float* out) {
  for (int i = 0; i < k; ++i)
    for (int column = 0; column < kPanelColumns; ++column)
      out[static_cast<size_t>(i) * kPanelColumns + column] = rows[static_cast<size_t>(column) * k + i];
}

// The same in pairs of k; an odd last one is paired with zero.
void write_panel(const float* rows, int k, uint16_t* out) {
  for (int i = 0; i < k; i += 2)
    for (int column = 0; column < kPanelColumns; ++column) {
      const float* pair = rows + static_cast<size_t>(column) * k + i;
      uint16_t* to = out + (static_cast<size_t>(i / 2) * kPanelColumns + column) * 2;
      to[0] = round_to_bf16(pair[0]);
      to[1] = i + 1 < k ? round_to_bf16(pair[1]) : uint16_t{0};
    }
}

}  // namespace

int padded_columns(int n, bool interleaved) {
  const int columns = interleaved ? (n / 2 + 15) / 16 * 32 : n;
  return (columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
}

SourceRow source_row(const std::vector<SourceTensor>& sources, int panel, int column, int n, bool interleaved) {
  int row = panel * kPanelColumns + column;
  if (interleaved) {
    const int within = panel * 16 + column % 16;
    row = within >= n / 2 ? n : column < 16 ? within : n / 2 + within;
  }
  if (row >= n) return {nullptr, nullptr};
  const SourceTensor* source = sources.data();
  for (; row >= source->rows; ++source) row -= source->rows;
  return {source, source->data + source->row_bytes * static_cast<size_t>(row)};
}

bool decode(const std::string& dtype, const uint8_t* data, size_t count, float* destination) {
  if (dtype == "float32") {
    std::memcpy(destination, data, 4 * count);
    return true;
  }
  if (dtype != "bfloat16" && dtype != "float16") return dequantize_f32(dtype.c_str(), data, count, destination);
  const bool brain = dtype == "bfloat16";
  for (size_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, data + 2 * i, 2);
    const uint32_t bits = uint32_t{half} << 16;
    if (brain) {
      std::memcpy(destination + i, &bits, 4);
    } else {
      destination[i] = half_to_float(half);
    }
  }
  return true;
}

size_t packed_bytes(int n, int k, DType type, bool interleaved) {
  return panel_values(k, type) * static_cast<size_t>(padded_columns(n, interleaved) / kPanelColumns) * (type == DType::kBf16 ? 2 : 4);
}

void pack_linear(const std::vector<SourceTensor>& sources, int k, DType type, bool interleaved, void* destination,
                 ThreadTeam& team) {
  int n = 0;
  for (const SourceTensor& source : sources) n += source.rows;
  const int panels = padded_columns(n, interleaved) / kPanelColumns;
  std::atomic<int> next{0};
  std::atomic<bool> unknown{false};
  team.run([&](int) {
    std::vector<float> rows(size_t{kPanelColumns} * static_cast<size_t>(k));
    for (int panel; (panel = next++) < panels && !unknown;) {
      for (int column = 0; column < kPanelColumns; ++column) {
        float* values = rows.data() + static_cast<size_t>(column) * k;
        const SourceRow row = source_row(sources, panel, column, n, interleaved);
        if (!row.data) {
          std::memset(values, 0, sizeof(float) * static_cast<size_t>(k));
        } else if (!decode(row.tensor->dtype, row.data, static_cast<size_t>(k), values)) {
          unknown = true;
        }
      }
      const size_t base = panel_values(k, type) * static_cast<size_t>(panel);
      if (type == DType::kF32) {
        write_panel(rows.data(), k, static_cast<float*>(destination) + base);
      } else {
        write_panel(rows.data(), k, static_cast<uint16_t*>(destination) + base);
      }
    }
  });
  if (unknown) throw std::invalid_argument("unknown tensor type");
}

}  // namespace interleaf
