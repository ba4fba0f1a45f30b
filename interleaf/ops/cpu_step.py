"""What native calls before and after the forward pass need of arrays: their addresses, found once."""

from __future__ import annotations

import numpy as np

import interleaf._native as _native
from interleaf.ops import BatchRows, ModelInput, SamplingInput, StepRows
from interleaf.ops.cpu_memory import address_of


class CpuStepLayout:
    """A layout that keeps the arrays whose addresses the native one holds."""

    def __init__(self, batch: BatchRows, step: StepRows, inputs: ModelInput, block_size: int) -> None:
        self._kept = (batch, step, inputs)
        given = (step.rows, step.counts, step.num_drafts)
        samples = (step.sample_places, step.sample_index, step.sample_rows, step.sample_positions, step.sample_drafts)
        passed = (inputs.token_ids, inputs.positions, inputs.query_start, inputs.context_lengths, inputs.sequence_rows)
        self.native = _native.StepLayout(
            token_ids=address_of(batch.token_ids),
            token_stride=batch.token_ids.shape[1],
            num_tokens=address_of(batch.num_tokens),
            num_computed_tokens=address_of(batch.num_computed_tokens),
            samples=address_of(batch.samples),
            given=[address_of(array) for array in given],
            found=[address_of(array) for array in (step.starts, step.computed, *samples)],
            tokens=address_of(step.tokens),
            inputs=[address_of(array) for array in passed],
            groups=[
                (address_of(group.block_tables), group.block_tables.shape[1], address_of(group.slots))
                for group in (inputs, *inputs.more_groups)
            ],
            block_size=block_size,
        )
        # The bound methods: one call less in each step.
        self.write = self.native.write
        self.advance = self.native.advance


class Sampled:
    """The addresses of a `SamplingInput`, which is kept with them, and of the tokens."""

    def __init__(self, sampling: SamplingInput, tokens: np.ndarray) -> None:
        self.sampling = sampling
        self.tokens = tokens
        names = ("temperatures", "top_k", "top_p", "min_p", "seeds", "positions")
        addresses = {name: address_of(getattr(sampling, name)) for name in names}
        self.arrays = _native.SamplingArrays(**addresses, tokens=address_of(self.tokens))
