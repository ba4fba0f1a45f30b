#include "step_layout.h"

#include <cstring>

namespace interleaf {

std::pair<int, int> StepLayout::write(int num_sequences) const {
  int num_tokens = 0, num_samples = 0;
  inputs_.query_start[0] = 0;
  for (int s = 0; s < num_sequences; ++s) {
    step_.starts[s] = batch_.num_computed_tokens[step_.rows[s]];
    write_tokens(s, num_tokens);
    num_tokens += step_.counts[s];
    inputs_.query_start[s + 1] = num_tokens;
    inputs_.context_lengths[s] = step_.starts[s] + step_.counts[s];
    inputs_.sequence_rows[s] = step_.rows[s];
    step_.computed[s] = step_.starts[s] + step_.counts[s] - step_.num_drafts[s];
    num_samples = write_samples(s, num_tokens, num_samples);
  }
  return {num_tokens, num_samples};
}

std::vector<int32_t> StepLayout::advance(int num_sequences, int num_samples) const {
  for (int i = 0; i < num_samples; ++i) {
    const int row = step_.sample_rows[i], position = step_.sample_positions[i];
    batch_.token_ids[batch_.token_stride * row + position] = step_.tokens[i];
    batch_.num_tokens[row] = position + 1;
  }
  for (int s = 0; s < num_sequences; ++s) batch_.num_computed_tokens[step_.rows[s]] = step_.computed[s];
  return {step_.tokens, step_.tokens + num_samples};
}

void StepLayout::write_tokens(int sequence, int first_token) const {
  const int start = step_.starts[sequence], count = step_.counts[sequence];
  const int32_t* tokens = batch_.token_ids + batch_.token_stride * step_.rows[sequence] + start;
  std::memcpy(inputs_.token_ids + first_token, tokens, sizeof(int32_t) * static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) inputs_.positions[first_token + i] = start + i;
  for (const GroupSlots& group : groups_) {
    const int32_t* table = group.block_tables + group.table_stride * step_.rows[sequence];
    for (int i = 0; i < count; ++i) {
      const int position = start + i;
      group.slots[first_token + i] = table[position / block_size_] * block_size_ + position % block_size_;
    }
  }
}

int StepLayout::write_samples(int sequence, int next_token, int num_samples) const {
  const int row = step_.rows[sequence], num_drafts = step_.num_drafts[sequence];
  const int num_known = batch_.num_tokens[row];
  if (!batch_.samples[row] || step_.computed[sequence] != num_known) return num_samples;
  const int32_t* drafts = batch_.token_ids + batch_.token_stride * row + num_known;
  for (int i = 0; i <= num_drafts; ++i, ++num_samples) {
    step_.sample_places[num_samples] = sequence;
    step_.sample_index[num_samples] = next_token - num_drafts - 1 + i;
    step_.sample_rows[num_samples] = row;
    step_.sample_positions[num_samples] = num_known + i;
    step_.sample_drafts[num_samples] = i < num_drafts ? drafts[i] : -1;
  }
  return num_samples;
}

}  // namespace interleaf
