// GGUF's block-quantized types as floats.
#pragma once

#include <cstddef>
#include <cstdint>

namespace interleaf {

// Decodes `num_values` values of the GGUF type `type_name` ("q4_1", ...) from `source` to float32.
// Returns false for an unknown type. `num_values` is a whole number of blocks.
bool dequantize_f32(const char* type_name, const uint8_t* source, size_t num_values, float* destination);

}  // namespace interleaf
