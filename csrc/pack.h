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

// Bytes of `n` x `k` packed (kSiluMul weights: `n` counts gate and up rows, `interleaved`).
size_t packed_bytes(int n, int k, DType type, bool interleaved);

// Packs the sources' rows, one after the other, as a weight of [sum of rows, k]. With `interleaved`, the first source
// is the gate and the second the up projection, and each panel holds 16 columns of either. Columns beyond the last
// are zero. Throws std::invalid_argument for an unknown dtype.
void pack_linear(const std::vector<SourceTensor>& sources, int k, DType type, bool interleaved, void* destination,
                 ThreadTeam& team);

// `count` values of `dtype` as floats. Returns false for an unknown dtype.
bool decode(const std::string& dtype, const uint8_t* data, size_t count, float* destination);

}  // namespace interleaf
