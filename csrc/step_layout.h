// Lays out the inputs of a step: which token goes where, and which tokens are sampled. Knows arrays by row of the batch,
// and nothing of what they stand for.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace interleaf {

// Sequences of the batch, by row.
struct BatchRows {
  int32_t* token_ids;  // [rows, token_stride]
  int64_t token_stride;
  int32_t* num_tokens;           // [rows]
  int32_t* num_computed_tokens;  // [rows]
  const uint8_t* samples;        // [rows]: whether its next token is sampled once all are computed
};

// The sequences of a step, and the tokens that are sampled in it.
struct StepRows {
  // Given, [S]: row in the batch and its block tables; tokens of this step, drafts included; how many of these are drafts.
  const int32_t* rows;
  const int32_t* counts;
  const int32_t* num_drafts;
  // Found, [S]: tokens that were computed before the step, and that are after it, without drafts.
  int32_t* starts;
  int32_t* computed;
  // Found, [L]: place in S, token of T whose logits count, row in the batch, position of the sampled token in its
  // sequence, and what it was guessed to be (-1 for nothing).
  int32_t* sample_places;
  int32_t* sample_index;
  int32_t* sample_rows;
  int32_t* sample_positions;
  int32_t* sample_drafts;
  // Given to `advance`, [L]: the tokens that were sampled.
  const int32_t* tokens;
};

// Where keys and values of a group of layers go.
struct GroupSlots {
  const int32_t* block_tables;  // [rows, table_stride]
  int64_t table_stride;
  int32_t* slots;  // [T]
};

// The arrays that the forward pass reads.
struct StepInputs {
  int32_t* token_ids;        // [T]
  int32_t* positions;        // [T]
  int32_t* query_start;      // [S + 1]
  int32_t* context_lengths;  // [S]
  int32_t* sequence_rows;    // [S]
};

class StepLayout {
 public:
  StepLayout(const BatchRows& batch, const StepRows& step, const StepInputs& inputs, std::vector<GroupSlots> groups,
             int block_size)
      : batch_(batch), step_(step), inputs_(inputs), groups_(std::move(groups)), block_size_(block_size) {}

  // Returns how many tokens the step has and how many it samples.
  std::pair<int, int> write(int num_sequences) const;

  // Puts the step's results into the batch, where nothing was drafted; returns the tokens.
  std::vector<int32_t> advance(int num_sequences, int num_samples) const;

 private:
  void write_tokens(int sequence, int first_token) const;
  int write_samples(int sequence, int next_token, int num_samples) const;

  BatchRows batch_;
  StepRows step_;
  StepInputs inputs_;
  std::vector<GroupSlots> groups_;
  int block_size_;
};

}  // namespace interleaf
