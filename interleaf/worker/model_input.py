"""The arrays that a recorded pass reads, for the model and for a draft model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from interleaf.ops import ModelInput

LOGITS_ROWS = 64
"""Logits are made for this many tokens at a time, which bounds their memory whatever the vocabulary."""


def new_inputs(max_tokens: int, max_sequences: int, *block_tables: np.ndarray) -> ModelInput:
    """Inputs of that size; `block_tables`, one for each group of layers, are read where they lie."""
    first = ModelInput(
        token_ids=np.zeros(max_tokens, np.int32),
        positions=np.zeros(max_tokens, np.int32),
        slots=np.zeros(max_tokens, np.int32),
        query_start=np.zeros(max_sequences + 1, np.int32),
        context_lengths=np.zeros(max_sequences, np.int32),
        sequence_rows=np.zeros(max_sequences, np.int32),
        block_tables=block_tables[0],
        logits_index=np.zeros(LOGITS_ROWS, np.int32),
        shared_chunks=np.zeros(max_sequences, np.int32),
        shared_with=np.arange(max_sequences, dtype=np.int32),
    )
    others = [replace(first, slots=np.zeros(max_tokens, np.int32), block_tables=table) for table in block_tables[1:]]
    return replace(first, more_groups=tuple(others))


def lay_out(
    inputs: ModelInput, block_size: int, rows: np.ndarray, starts: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Write all but the token ids of a pass over `counts` tokens of each sequence, from position `starts` on.

    Args:
        rows: int64 [S]: of each sequence's block table.
        starts, counts: int32 [S].

    Returns:
        `rows` for each token, and its position: int64 and int32 [T].
    """
    num_sequences, num_tokens = len(rows), int(counts.sum())
    inputs.query_start[1 : num_sequences + 1] = np.cumsum(counts)
    inputs.context_lengths[:num_sequences] = starts + counts
    inputs.sequence_rows[:num_sequences] = rows
    token_rows = np.repeat(rows, counts)
    first_tokens = inputs.query_start[:num_sequences]
    positions = np.arange(num_tokens, dtype=np.int32) + np.repeat(starts - first_tokens, counts)
    inputs.positions[:num_tokens] = positions
    blocks, offsets = np.divmod(positions, block_size)
    for group in (inputs, *inputs.more_groups):
        group.slots[:num_tokens] = group.block_tables[token_rows, blocks] * block_size + offsets
    return token_rows, positions
