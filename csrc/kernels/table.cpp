#include "level.h"

namespace interleaf::INTERLEAF_LEVEL {

extern const KernelTable kTable;
const KernelTable kTable = {linear, rms_norm, embedding, rotary_cache, attention, sample, logprobs};

}  // namespace interleaf::INTERLEAF_LEVEL
