"""What laying out a step means, token by token in plain Python."""

from __future__ import annotations

from dataclasses import dataclass

from interleaf.ops import BatchRows, ModelInput, StepRows


@dataclass(frozen=True, slots=True)
class ReferenceStepLayout:
    """See `interleaf.ops.StepLayout`."""

    batch: BatchRows
    step: StepRows
    inputs: ModelInput
    block_size: int

    def write(self, num_sequences: int) -> tuple[int, int]:
        step, inputs = self.step, self.inputs
        num_tokens = num_samples = 0
        inputs.query_start[0] = 0
        for place in range(num_sequences):
            row, count = int(step.rows[place]), int(step.counts[place])
            start = step.starts[place] = int(self.batch.num_computed_tokens[row])
            for position in range(start, start + count):
                inputs.token_ids[num_tokens] = self.batch.token_ids[row, position]
                inputs.positions[num_tokens] = position
                for group in (inputs, *inputs.more_groups):
                    block = group.block_tables[row, position // self.block_size]
                    group.slots[num_tokens] = block * self.block_size + position % self.block_size
                num_tokens += 1
            inputs.query_start[place + 1] = num_tokens
            inputs.context_lengths[place] = start + count
            inputs.sequence_rows[place] = row
            num_drafts = int(step.num_drafts[place])
            step.computed[place] = start + count - num_drafts
            if self.batch.samples[row] and step.computed[place] == self.batch.num_tokens[row]:
                for number in range(num_drafts + 1):
                    position = int(self.batch.num_tokens[row]) + number
                    step.sample_places[num_samples] = place
                    step.sample_index[num_samples] = num_tokens - num_drafts - 1 + number
                    step.sample_rows[num_samples] = row
                    step.sample_positions[num_samples] = position
                    drafted = number < num_drafts
                    step.sample_drafts[num_samples] = self.batch.token_ids[row, position] if drafted else -1
                    num_samples += 1
        return num_tokens, num_samples

    def advance(self, num_sequences: int, num_samples: int) -> list[int]:
        step, batch = self.step, self.batch
        tokens: list[int] = step.tokens[:num_samples].tolist()
        for i, token in enumerate(tokens):
            row, position = step.sample_rows[i], step.sample_positions[i]
            batch.token_ids[row, position] = token
            batch.num_tokens[row] = position + 1
        for place in range(num_sequences):
            batch.num_computed_tokens[step.rows[place]] = step.computed[place]
        return tokens
