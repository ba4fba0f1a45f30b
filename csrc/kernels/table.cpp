#include "level.h"

namespace interleaf::INTERLEAF_LEVEL {

extern const KernelTable kTable;
const KernelTable kTable = {read_all,  linear,    quantize,
                            linear_quantized,    take_rows, rms_norm,  soft_cap,     embedding,
                            embedding_quantized, rotary_cache, attention_shared, attention,
                            sample,    logprobs};

}  // namespace interleaf::INTERLEAF_LEVEL
