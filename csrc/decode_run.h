// Decode steps, one after the other, of which nobody sees anything before all are done.
#pragma once

#include <cstdint>
#include <vector>

#include "program.h"
#include "step_layout.h"

namespace interleaf {

struct DecodeRun {
  std::vector<std::vector<int32_t>> tokens;  // of each step, in the order of its samples
  int64_t nanoseconds = 0;                   // in the program
};

// Runs `program`, which samples, on the step that is laid out and takes in its tokens; then up to `num_steps` in all, in
// which each sequence computes the token that it has sampled. The run ends behind a step with one of the tokens `ending`.
// `positions` are those of the sampled tokens, as the program reads them.
DecodeRun run_decode_steps(Runtime& runtime, const Program& program, const StepLayout& layout, StepSize size,
                           int32_t* positions, int num_steps, const std::vector<int32_t>& ending);

}  // namespace interleaf
