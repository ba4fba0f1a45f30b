// Formulas: one float32 multiplication per value, and one addition or subtraction where the type has
// minima, in the order written here. interleaf/ops/dequantize_reference.py has the same in numpy.
//
// Blocks lie in a file without padding and without alignment: everything is read byte by byte or
// with memcpy. All multi-byte fields are little endian, as are the machines this is built for.
#include "dequantize.h"

#include <cstring>

namespace interleaf {
namespace {

// IEEE half to float, exactly. Subnormals go through an integer, so that a thread which flushes
// subnormal floats to zero gets the same value.
inline float half_at(const uint8_t* source) {
  uint16_t half;
  std::memcpy(&half, source, sizeof half);
  const uint32_t exponent = half >> 10 & 31, mantissa = half & 1023;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Q8_0: half d, int8 q[32].  value = q * d
struct Q8_0 {
  static constexpr size_t values = 32, bytes = 34;
  static void decode(const uint8_t* block, float* out) {
    const float d = half_at(block);
    const uint8_t* q = block + 2;
    for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(q[i])) * d;
  }
};

// Q4_0: half d, nibbles q[16]; low nibbles are values 0-15, high ones 16-31.  value = d * (q - 8)
struct Q4_0 {
  static constexpr size_t values = 32, bytes = 18;
  static void decode(const uint8_t* block, float* out) {
    const float d = half_at(block);
    const uint8_t* q = block + 2;
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>((q[i] & 15) - 8);
      out[i + 16] = d * static_cast<float>((q[i] >> 4) - 8);
    }
  }
};

// Q4_1: half d, half m, nibbles as in Q4_0.  value = d * q + m
struct Q4_1 {
  static constexpr size_t values = 32, bytes = 20;
  static void decode(const uint8_t* block, float* out) {
    const float d = half_at(block), m = half_at(block + 2);
    const uint8_t* q = block + 4;
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>(q[i] & 15) + m;
      out[i + 16] = d * static_cast<float>(q[i] >> 4) + m;
    }
  }
};

// The fifth bits of 32 values lie in a 32-bit word; value i has bit i.
inline uint32_t high_bits(const uint8_t* source) {
  uint32_t word;
  std::memcpy(&word, source, sizeof word);
  return word;
}

inline int five_bits(int low, uint32_t high, int index) { return low | static_cast<int>(high >> index & 1) << 4; }

// Q5_0: half d, high bits, nibbles as in Q4_0.  value = d * (q - 16)
struct Q5_0 {
  static constexpr size_t values = 32, bytes = 22;
  static void decode(const uint8_t* block, float* out) {
    const float d = half_at(block);
    const uint32_t high = high_bits(block + 2);
    const uint8_t* q = block + 6;
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>(five_bits(q[i] & 15, high, i) - 16);
      out[i + 16] = d * static_cast<float>(five_bits(q[i] >> 4, high, i + 16) - 16);
    }
  }
};

// Q5_1: half d, half m, high bits, nibbles as in Q4_0.  value = d * q + m
struct Q5_1 {
  static constexpr size_t values = 32, bytes = 24;
  static void decode(const uint8_t* block, float* out) {
    const float d = half_at(block), m = half_at(block + 2);
    const uint32_t high = high_bits(block + 4);
    const uint8_t* q = block + 8;
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>(five_bits(q[i] & 15, high, i)) + m;
      out[i + 16] = d * static_cast<float>(five_bits(q[i] >> 4, high, i + 16)) + m;
    }
  }
};

// The K types cut 256 values into groups that share a scale. Q4_K and Q5_K have eight groups of 32;
// 12 bytes hold eight 6-bit scales and eight 6-bit minima: groups 0-3 in the low six bits of bytes
// 0-3 and 4-7, groups 4-7 in the nibbles of bytes 8-11 with their top two bits in bytes 0-7.
inline void scale_and_min(const uint8_t* packed, int group, int& scale, int& minimum) {
  if (group < 4) {
    scale = packed[group] & 63;
    minimum = packed[group + 4] & 63;
  } else {
    scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
    minimum = (packed[group + 4] >> 4) | (packed[group] >> 6) << 4;
  }
}

// Q4_K: half d, half dmin, 12 bytes of scales, nibbles q[128]; 32 bytes hold a group in their low
// nibbles and the next group in their high ones.  value = (d * scale) * q - (dmin * min)
struct Q4_K {
  static constexpr size_t values = 256, bytes = 144;
  static void decode(const uint8_t* block, float* out) {
    const float d = half_at(block), dmin = half_at(block + 2);
    for (int group = 0; group < 8; ++group) {
      int scale, minimum;
      scale_and_min(block + 4, group, scale, minimum);
      const float s = d * static_cast<float>(scale), m = dmin * static_cast<float>(minimum);
      const uint8_t* q = block + 16 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int i = 0; i < 32; ++i) out[group * 32 + i] = s * static_cast<float>(q[i] >> shift & 15) - m;
    }
  }
};

// Q5_K: as Q4_K, with 32 bytes of fifth bits before the nibbles; group g has bit g of each.
struct Q5_K {
  static constexpr size_t values = 256, bytes = 176;
  static void decode(const uint8_t* block, float* out) {
    const float d = half_at(block), dmin = half_at(block + 2);
    const uint8_t* high = block + 16;
    for (int group = 0; group < 8; ++group) {
      int scale, minimum;
      scale_and_min(block + 4, group, scale, minimum);
      const float s = d * static_cast<float>(scale), m = dmin * static_cast<float>(minimum);
      const uint8_t* q = block + 48 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int i = 0; i < 32; ++i) {
        const int value = (q[i] >> shift & 15) | (high[i] >> group & 1) << 4;
        out[group * 32 + i] = s * static_cast<float>(value) - m;
      }
    }
  }
};

// Q6_K: nibbles ql[128], bit pairs qh[64], int8 scales[16] for groups of 16, half d. Each half of
// the block takes 64 bytes of ql and 32 of qh, and holds four runs of 32 values: run r has its low
// bits in bytes 32 * (r % 2) of ql, nibble r / 2, and its high bits in pair r of qh.
// value = (d * scale) * (q - 32)
struct Q6_K {
  static constexpr size_t values = 256, bytes = 210;
  static void decode(const uint8_t* block, float* out) {
    const int8_t* scales = reinterpret_cast<const int8_t*>(block + 192);
    const float d = half_at(block + 208);
    for (int run = 0; run < 8; ++run) {
      const int half = run / 4, r = run % 4;
      const uint8_t* ql = block + half * 64 + r % 2 * 32;
      const uint8_t* qh = block + 128 + half * 32;
      for (int group = 0; group < 2; ++group) {
        const float s = d * static_cast<float>(scales[run * 2 + group]);
        for (int i = group * 16; i < group * 16 + 16; ++i) {
          const int value = (ql[i] >> (r / 2 * 4) & 15) | (qh[i] >> (r * 2) & 3) << 4;
          out[run * 32 + i] = s * static_cast<float>(value - 32);
        }
      }
    }
  }
};

template <typename Type>
void decode_all(const uint8_t* source, size_t num_values, float* destination) {
  for (size_t block = 0; block < num_values / Type::values; ++block) {
    Type::decode(source + block * Type::bytes, destination + block * Type::values);
  }
}

struct Decoder {
  const char* name;
  void (*decode)(const uint8_t*, size_t, float*);
};

constexpr Decoder decoders[] = {
    {"q8_0", decode_all<Q8_0>}, {"q4_0", decode_all<Q4_0>}, {"q4_1", decode_all<Q4_1>}, {"q5_0", decode_all<Q5_0>},
    {"q5_1", decode_all<Q5_1>}, {"q4_k", decode_all<Q4_K>}, {"q5_k", decode_all<Q5_K>}, {"q6_k", decode_all<Q6_K>},
};

}  // namespace

bool dequantize_f32(const char* type_name, const uint8_t* source, size_t num_values, float* destination) {
  for (const Decoder& decoder : decoders) {
    if (std::strcmp(decoder.name, type_name) == 0) {
      decoder.decode(source, num_values, destination);
      return true;
    }
  }
  return false;
}

}  // namespace interleaf
