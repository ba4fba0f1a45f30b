// Weights as they lie in a checkpoint, brought into the panels that the linear kernels read.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"
#include "thread_team.h"

namespace interleaf {

// Rows of one checkpoint tensor: "bfloat16", "float16", "float32" or a GGUF block type.
struct SourceTensor {
  const uint8_t* data;
  std::string dtype;
  int rows;
  size_t row_bytes;
};

// The source of a panel's column; {null, null} for padding.
struct SourceRow {
  const SourceTensor* tensor;
  const uint8_t* data;
};
SourceRow source_row(const std::vector<SourceTensor>& sources, int panel, int column, int n, bool interleaved);

// Bytes of `n` x `k` packed (gated weights: `n` counts gate and up rows, `interleaved`).
size_t packed_bytes(int n, int k, DType type, bool interleaved);

// Packs the sources' rows, one after the other, as a weight of [sum of rows, k]. With `interleaved`, the first source
// is the gate and the second the up projection, and each panel holds 16 columns of either. Columns beyond the last
// are zero. Throws std::invalid_argument for an unknown dtype.
void pack_linear(const std::vector<SourceTensor>& sources, int k, DType type, bool interleaved, void* destination,
                 ThreadTeam& team);

// A quantized weight in panels; see LinearQuantizedArgs. Scales and compensation of kInt8 are padded to whole panels.
struct QuantizedWeight {
  uint8_t* values;
  float* scales;
  int32_t* compensation;
  uint16_t* group_scales;
  uint16_t* group_minima;
};

// k of a quantized weight, padded to whole groups or tiles.
int quantized_depth(int k, Format format);
size_t quantized_bytes(int n, int k, Format format, bool interleaved);
// Columns of the panels, padding included.
int padded_columns(int n, bool interleaved);

// Quantizes sources' rows like pack_linear packs them. A GGUF type that the format can hold exactly is repacked; all else
// is rounded from its float values.
void pack_quantized(const std::vector<SourceTensor>& sources, int k, Format format, bool interleaved,
                    const QuantizedWeight& destination, ThreadTeam& team);

// The format that holds a GGUF type in its own precision. Throws std::invalid_argument for a type that is not quantized.
Format format_of(const std::string& dtype);

// `count` values of `dtype` as floats. Returns false for an unknown dtype.
bool decode(const std::string& dtype, const uint8_t* data, size_t count, float* destination);

}  // namespace interleaf
