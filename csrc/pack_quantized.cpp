#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "pack.h"

namespace interleaf {

namespace {

// 32 values of one column as they are stored: unsigned values with a float16 scale and minimum.
struct Group {
  uint8_t values[kGroupSize];
  uint16_t scale;
  uint16_t minimum;
};

uint16_t read_u16(const uint8_t* data) { return static_cast<uint16_t>(data[0] | data[1] << 8); }

float half_to_float(uint16_t half) {
  float value;
  uint8_t bytes[2] = {static_cast<uint8_t>(half), static_cast<uint8_t>(half >> 8)};
  decode("float16", bytes, 1, &value);
  return value;
}

// Nearest float16, ties to even; what is too large becomes the largest.
uint16_t float_to_half(float value) {
  const float magnitude = std::min(std::fabs(value), 65504.0f);
  int exponent;
  std::frexp(magnitude, &exponent);
  // A half has 11 significant bits, and none below 2^-24.
  const float unit = std::ldexp(1.0f, std::max(exponent - 11, -24));
  const float rounded = std::nearbyint(magnitude / unit) * unit;
  uint32_t bits;
  std::memcpy(&bits, &rounded, 4);
  const uint32_t half = rounded < 0x1p-14f ? static_cast<uint32_t>(rounded * 0x1p24f) : (bits - 0x38000000u) >> 13;
  return static_cast<uint16_t>(half | (value < 0.0f ? 0x8000u : 0u));
}

// GGUF's 32-value blocks: the low nibbles hold the first 16 values, the high ones the others.
void take_nibbles(const uint8_t* packed, const uint8_t* fifth_bits, Group& group) {
  uint32_t fifth = 0;
  if (fifth_bits) std::memcpy(&fifth, fifth_bits, 4);
  for (int i = 0; i < 16; ++i) {
    group.values[i] = static_cast<uint8_t>((packed[i] & 15) | (fifth >> i & 1) << 4);
    group.values[16 + i] = static_cast<uint8_t>((packed[i] >> 4) | (fifth >> (16 + i) & 1) << 4);
  }
}

// Sub-block `part` (0 to 7) of a Q4_K or Q5_K block of 256 values; scales and minima have six bits.
void take_k_block(const uint8_t* block, int part, bool five_bits, Group& group) {
  const uint8_t* packed_scales = block + 4;
  int scale, minimum;
  if (part < 4) {
    scale = packed_scales[part] & 63;
    minimum = packed_scales[part + 4] & 63;
  } else {
    scale = (packed_scales[part + 4] & 15) | (packed_scales[part - 4] >> 6) << 4;
    minimum = (packed_scales[part + 4] >> 4) | (packed_scales[part] >> 6) << 4;
  }
  const uint8_t* high = block + 16;
  const uint8_t* low = block + (five_bits ? 48 : 16) + part / 2 * 32;
  for (int i = 0; i < kGroupSize; ++i) {
    const int nibble = part % 2 ? low[i] >> 4 : low[i] & 15;
    const int fifth = five_bits ? (high[i] >> part & 1) << 4 : 0;
    group.values[i] = static_cast<uint8_t>(nibble | fifth);
  }
  group.scale = float_to_half(half_to_float(read_u16(block)) * static_cast<float>(scale));
  group.minimum = float_to_half(-half_to_float(read_u16(block + 2)) * static_cast<float>(minimum));
}

// Takes group `index` of a GGUF row as it is. False if the format does not hold the type.
bool take_group(const std::string& dtype, const uint8_t* row, int index, Format format, Group& group) {
  group.minimum = 0;
  if (dtype == "q4_0" && format == Format::kGroup4) {
    const uint8_t* block = row + index * 18;
    group.scale = read_u16(block);
    take_nibbles(block + 2, nullptr, group);
  } else if (dtype == "q4_1" && format == Format::kGroup4Min) {
    const uint8_t* block = row + index * 20;
    group.scale = read_u16(block);
    group.minimum = read_u16(block + 2);
    take_nibbles(block + 4, nullptr, group);
  } else if (dtype == "q5_0" && format == Format::kGroup8) {
    const uint8_t* block = row + index * 22;
    group.scale = read_u16(block);
    take_nibbles(block + 6, block + 2, group);
    for (uint8_t& value : group.values) value = static_cast<uint8_t>(value + 128 - 16);
  } else if (dtype == "q5_1" && format == Format::kGroup8Min) {
    const uint8_t* block = row + index * 24;
    group.scale = read_u16(block);
    group.minimum = read_u16(block + 2);
    take_nibbles(block + 8, block + 4, group);
  } else if (dtype == "q8_0" && format == Format::kGroup8) {
    const uint8_t* block = row + index * 34;
    group.scale = read_u16(block);
    for (int i = 0; i < kGroupSize; ++i) group.values[i] = static_cast<uint8_t>(block[2 + i] + 128);
  } else if (dtype == "q4_k" && format == Format::kGroup4Min) {
    take_k_block(row + index / 8 * 144, index % 8, false, group);
  } else if (dtype == "q5_k" && format == Format::kGroup8Min) {
    take_k_block(row + index / 8 * 176, index % 8, true, group);
  } else {
    return false;
  }
  return true;
}

// Rounds 32 floats to the format.
void round_group(const float* values, Format format, Group& group) {
  const float low = *std::min_element(values, values + kGroupSize);
  const float high = *std::max_element(values, values + kGroupSize);
  const int largest = has_nibbles(format) ? 15 : 255;
  float offset;
  if (has_minimum(format)) {
    group.minimum = float_to_half(std::min(low, 0.0f));
    offset = half_to_float(group.minimum);
    group.scale = float_to_half((high - offset) / static_cast<float>(largest));
  } else {
    // Symmetric, with the larger end on the end of the range that reaches further.
    const float end = -low > high ? low : high;
    group.minimum = 0;
    group.scale = float_to_half(-end / static_cast<float>(zero_of(format)));
    offset = -half_to_float(group.scale) * static_cast<float>(zero_of(format));
  }
  const float scale = half_to_float(group.scale);
  for (int i = 0; i < kGroupSize; ++i) {
    const float steps = scale != 0.0f ? (values[i] - offset) / scale : static_cast<float>(zero_of(format));
    group.values[i] = static_cast<uint8_t>(std::clamp(std::nearbyint(steps), 0.0f, static_cast<float>(largest)));
  }
}

void write_group(const Group& group, Format format, int column, uint8_t* panel_group) {
  for (int k = 0; k < kGroupSize; ++k) {
    if (!has_nibbles(format)) {
      panel_group[k / 4 * 128 + column * 4 + k % 4] = group.values[k];
      continue;
    }
    uint8_t& byte = panel_group[k / 8 * 128 + column / 16 * 64 + column % 16 * 4 + k % 4];
    byte = k % 8 < 4 ? static_cast<uint8_t>((byte & 0xf0) | group.values[k]) : static_cast<uint8_t>((byte & 15) | group.values[k] << 4);
  }
}

// One column in a format with groups.
void pack_group_column(const SourceRow& row, int k, Format format, int panel, int column, const float* values,
                       const QuantizedWeight& to) {
  const int groups = quantized_depth(k, format) / kGroupSize;
  const size_t group_bytes = size_t{kGroupSize} * kPanelColumns / (has_nibbles(format) ? 2 : 1);
  for (int index = 0; index < groups; ++index) {
    Group group;
    if (!row.data || !take_group(row.tensor->dtype, row.data, index, format, group))
      round_group(values + static_cast<size_t>(index) * kGroupSize, format, group);
    const size_t place = static_cast<size_t>(panel) * static_cast<size_t>(groups) + static_cast<size_t>(index);
    write_group(group, format, column, to.values + place * group_bytes);
    to.group_scales[place * kPanelColumns + static_cast<size_t>(column)] = group.scale;
    if (has_minimum(format)) to.group_minima[place * kPanelColumns + static_cast<size_t>(column)] = group.minimum;
  }
}

// Pairs values `distance` apart in runs of twice that.
void pair(float* x, int k, int distance) {
  for (int run = 0; run < k; run += 2 * distance)
    for (int i = run; i < run + distance; ++i) {
      const float a = 0.5f * x[i], b = 0.5f * x[i + distance];
      x[i] = a + b;
      x[i + distance] = a - b;
    }
}

// See kRotationRun; scaled so that products with rotated rows are those with the rows.
void rotate(float* x, int k) {
  if (!rotates(k)) return;
  for (int halving = 1; halving <= rotation_halvings(k); ++halving) pair(x, k, k >> halving);
  for (int distance = kRotationRun / 2; distance > 0; distance /= 2) pair(x, k, distance);
}

// One column of signed bytes with one scale. `values` is rotated.
void pack_int8_column(int k, int panel, int column, float* values, const QuantizedWeight& to) {
  rotate(values, k);
  float top = 0.0f;
  for (int i = 0; i < k; ++i) top = std::max(top, std::fabs(values[i]));
  const float scale = top > 0.0f ? top / 127.0f : 1.0f;
  uint8_t* base = to.values + static_cast<size_t>(panel) * kPanelColumns * quantized_depth(k, Format::kInt8);
  int32_t sum = 0;
  for (int i = 0; i < k; ++i) {
    const int value = static_cast<int>(std::nearbyint(values[i] / scale));
    base[static_cast<size_t>(i) / 4 * 128 + static_cast<size_t>(column) * 4 + static_cast<size_t>(i) % 4] = static_cast<uint8_t>(value);
    sum += value;
  }
  to.scales[panel * kPanelColumns + column] = scale;
  to.compensation[panel * kPanelColumns + column] = 128 * sum;
}

}  // namespace

int quantized_depth(int k, Format format) {
  const int multiple = format == Format::kInt8 ? kInt8Depth : kGroupSize;
  return (k + multiple - 1) / multiple * multiple;
}

size_t quantized_bytes(int n, int k, Format format, bool interleaved) {
  const size_t values = static_cast<size_t>(padded_columns(n, interleaved)) * static_cast<size_t>(quantized_depth(k, format));
  return has_nibbles(format) ? values / 2 : values;
}

Format format_of(const std::string& dtype) {
  if (dtype == "q4_0") return Format::kGroup4;
  if (dtype == "q4_1" || dtype == "q4_k") return Format::kGroup4Min;
  if (dtype == "q5_1" || dtype == "q5_k") return Format::kGroup8Min;
  if (dtype == "q5_0" || dtype == "q6_k" || dtype == "q8_0") return Format::kGroup8;
  throw std::invalid_argument("'" + dtype + "' is not a quantized type");
}

void pack_quantized(const std::vector<SourceTensor>& sources, int k, Format format, bool interleaved,
                    const QuantizedWeight& destination, ThreadTeam& team) {
  int n = 0;
  for (const SourceTensor& source : sources) n += source.rows;
  const int panels = padded_columns(n, interleaved) / kPanelColumns;
  std::atomic<int> next{0};
  std::atomic<bool> unknown{false};
  team.run([&](int) {
    std::vector<float> values(static_cast<size_t>(quantized_depth(k, format)));
    for (int panel; (panel = next++) < panels && !unknown;)
      for (int column = 0; column < kPanelColumns; ++column) {
        const SourceRow row = source_row(sources, panel, column, n, interleaved);
        std::fill(values.begin(), values.end(), 0.0f);
        if (row.data && !decode(row.tensor->dtype, row.data, static_cast<size_t>(k), values.data())) unknown = true;
        if (format == Format::kInt8) {
          pack_int8_column(k, panel, column, values.data(), destination);
        } else {
          pack_group_column(row, k, format, panel, column, values.data(), destination);
        }
      }
  });
  if (unknown) throw std::invalid_argument("unknown tensor type");
}

}  // namespace interleaf
