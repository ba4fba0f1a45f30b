#include "decode_run.h"

#include <algorithm>

namespace interleaf {

DecodeRun run_decode_steps(Runtime& runtime, const Program& program, const StepLayout& layout, StepSize size,
                           int32_t* positions, int num_steps, const std::vector<int32_t>& ending) {
  DecodeRun done;
  const auto ends = [&](int32_t token) { return std::find(ending.begin(), ending.end(), token) != ending.end(); };
  for (;;) {
    done.nanoseconds += runtime.run(program, size);
    const std::vector<int32_t>& tokens = done.tokens.emplace_back(layout.advance(size.num_sequences, size.num_logits));
    if (static_cast<int>(done.tokens.size()) == num_steps || std::any_of(tokens.begin(), tokens.end(), ends)) return done;
    layout.write(size.num_sequences);
    for (int i = 0; i < size.num_logits; ++i) ++positions[i];
  }
}

}  // namespace interleaf
