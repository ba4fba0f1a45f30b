"""Laying out a step against the reference: random steps with drafts, parts of prompts, several groups of layers."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from interleaf.ops import BatchRows, ModelInput, Ops, StepRows
from interleaf.ops.reference import ReferenceOps
from interleaf.worker.model_input import new_inputs
from interleaf.worker.step import new_step_rows
from tests.ops.native import LEVELS, cpu_ops

ROWS, LENGTH, BLOCK_SIZE, TOKENS = 9, 50, 4, 200


def random_step(seed: int) -> tuple[BatchRows, StepRows, ModelInput, int]:
    rng = np.random.default_rng(seed)
    num_tokens = rng.integers(1, LENGTH - 5, ROWS).astype(np.int32)
    token_ids = rng.integers(0, 1000, (ROWS, LENGTH)).astype(np.int32)
    batch = BatchRows(token_ids, num_tokens, num_tokens.copy(), rng.random(ROWS) < 0.8)
    tables = [rng.integers(0, 99, (ROWS, -(-LENGTH // BLOCK_SIZE))).astype(np.int32) for _ in range(1 + seed % 3)]
    inputs, step = new_inputs(TOKENS, ROWS, *tables), new_step_rows(ROWS, TOKENS, TOKENS)
    count = int(rng.integers(1, ROWS + 1))
    step.rows[:count] = rng.permutation(ROWS)[:count]
    for place, row in enumerate(step.rows[:count]):
        left = int(rng.integers(1, min(int(num_tokens[row]), 15) + 1))
        complete = rng.random() < 0.6
        step.num_drafts[place] = rng.integers(0, 5) if complete and seed % 2 else 0
        batch.num_computed_tokens[row] -= left
        step.counts[place] = (left if complete else max(left - 1, 1)) + step.num_drafts[place]
    return batch, step, inputs, count


def laid_out(ops: Ops, seed: int) -> tuple[tuple[int, int], list[list[int]]]:
    """The step's size, and all arrays as they are once it is computed."""
    batch, step, inputs, count = random_step(seed)
    layout = ops.step_layout(batch, step, inputs, BLOCK_SIZE)
    size = layout.write(count)
    step.tokens[:] = np.arange(2000, 2000 + TOKENS)
    assert layout.advance(count, size[1]) == step.tokens[: size[1]].tolist()
    groups = (inputs, *inputs.more_groups)
    arrays = [getattr(owner, field.name) for owner in (batch, step, *groups) for field in fields(owner)]
    return size, [array.tolist() for array in arrays if isinstance(array, np.ndarray)]


def test_native_and_reference_lay_out_the_same() -> None:
    ops = cpu_ops(LEVELS[-1], "float32")
    for seed in range(60):
        size, arrays = laid_out(ops, seed)
        assert (size, arrays) == laid_out(ReferenceOps("float32"), seed), seed
        assert 0 < size[0] <= TOKENS and size[1] <= TOKENS
