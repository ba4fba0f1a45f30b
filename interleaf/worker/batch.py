"""The persistent batch: what the worker knows of each running sequence, as arrays with one row a sequence.

A sequence keeps its row from admission to removal; rows are never moved and nothing is rebuilt from step to step.
Only the differences that the scheduler sends are applied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interleaf.messages import BlockTableUpdate, NewRequest
from interleaf.ops import SamplingInput
from interleaf.worker.model_input import LOGITS_ROWS

NO_LOGPROBS = -2
"""In `num_logprobs`: none are wanted. -1 is the whole vocabulary."""


class Batch:
    """Arrays by row.

    Fields:
        token_ids: int32 [rows, max_model_len + 1]: prompt and output; during a step its drafts behind them. The last
            column is for the token that a full context ends with.
        num_tokens, num_prompt_tokens, num_computed_tokens: int32 [rows].
        tables: int32 [groups of layers, rows, blocks a sequence].
        block_tables: int32 [rows, blocks a sequence]: the first group's.
        temperatures, top_k, top_p, min_p, seeds: sampling, [rows]; temperature 0 is greedy.
        num_logprobs, num_prompt_logprobs: int32 [rows]; see `NO_LOGPROBS`.
        num_prompt_logprobs_done: int32 [rows]: prompt positions whose logprobs the core already has.
        samples: bool [rows]: False for sequences whose hidden states are pooled, and for beams.
        num_blocks_seen: blocks below this number have been in use.
        num_candidates: int32 [rows]: next tokens that are wanted of a beam; 0 for what is none.
        wanting_logprobs, wanting_prompt_logprobs, beams: the rows of which there is something to do.
        ending_token_ids: by row: tokens that may end its sequence.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, num_groups: int = 1) -> None:
        self.token_ids = np.zeros((max_num_seqs, max_model_len + 1), np.int32)
        self.tables = np.zeros((num_groups, max_num_seqs, -(-max_model_len // block_size)), np.int32)
        self.block_tables = self.tables[0]
        self.num_tokens = np.zeros(max_num_seqs, np.int32)
        self.num_prompt_tokens = np.zeros(max_num_seqs, np.int32)
        self.num_computed_tokens = np.zeros(max_num_seqs, np.int32)
        self.temperatures = np.zeros(max_num_seqs, np.float32)
        self.top_k = np.zeros(max_num_seqs, np.int32)
        self.top_p = np.ones(max_num_seqs, np.float32)
        self.min_p = np.zeros(max_num_seqs, np.float32)
        self.seeds = np.zeros(max_num_seqs, np.uint64)
        self.num_logprobs = np.full(max_num_seqs, NO_LOGPROBS, np.int32)
        self.num_prompt_logprobs = np.full(max_num_seqs, NO_LOGPROBS, np.int32)
        self.num_prompt_logprobs_done = np.zeros(max_num_seqs, np.int32)
        self.samples = np.ones(max_num_seqs, np.bool_)
        self.num_candidates = np.zeros(max_num_seqs, np.int32)
        self.wanting_logprobs: set[int] = set()
        self.wanting_prompt_logprobs: set[int] = set()
        self.beams: set[int] = set()
        self.ending_token_ids: list[frozenset[int]] = [frozenset()] * max_num_seqs
        self.num_blocks_seen = 0
        self.row_of: dict[str, int] = {}
        self.sampling_input = SamplingInput(
            temperatures=np.zeros(LOGITS_ROWS, np.float32),
            top_k=np.zeros(LOGITS_ROWS, np.int32),
            top_p=np.ones(LOGITS_ROWS, np.float32),
            min_p=np.zeros(LOGITS_ROWS, np.float32),
            seeds=np.zeros(LOGITS_ROWS, np.uint64),
            positions=np.zeros(LOGITS_ROWS, np.int32),
        )
        self._sampled_rows = b""
        """Whose parameters are in `sampling_input`."""
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))

    def add(self, request: NewRequest) -> int:
        """Give a sequence a row; returns it."""
        row = self._free_rows.pop()
        self.row_of[request.sequence_id] = row
        params = request.params
        count = len(request.token_ids)
        self.token_ids[row, :count] = request.token_ids
        self.num_tokens[row] = count
        self.num_prompt_tokens[row] = request.num_prompt_tokens
        self.num_computed_tokens[row] = request.num_computed_tokens
        for table, block_ids in zip(self.tables, [request.block_ids, *request.more_block_ids], strict=True):
            table[row, : len(block_ids)] = block_ids
            self._see(block_ids)
        self.temperatures[row] = 0.0 if params.greedy else params.temperature
        self.top_k[row] = params.top_k
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.seeds[row] = request.seed & 0xFFFFFFFFFFFFFFFF
        self.num_logprobs[row] = NO_LOGPROBS if params.logprobs is None else params.logprobs
        wanted = params.prompt_logprobs if request.fork_of is None else None
        self.num_prompt_logprobs[row] = NO_LOGPROBS if wanted is None else wanted
        self.num_prompt_logprobs_done[row] = request.num_prompt_logprobs_done
        self.samples[row] = request.pooling is None and not request.num_candidates
        self.num_candidates[row] = request.num_candidates
        if params.logprobs is not None:
            self.wanting_logprobs.add(row)
        if wanted is not None:
            self.wanting_prompt_logprobs.add(row)
        if request.num_candidates:
            self.beams.add(row)
        ending = () if params.ignore_eos else request.eos_token_ids
        self.ending_token_ids[row] = frozenset(ending).union(params.stop_token_ids or ())
        self._sampled_rows = b""
        return row

    def remove(self, sequence_id: str) -> int | None:
        """Free a sequence's row; returns it, or None if there is no such sequence."""
        row = self.row_of.pop(sequence_id, None)
        if row is not None:
            self._free_rows.append(row)
            for special in (self.wanting_logprobs, self.wanting_prompt_logprobs, self.beams):
                special.discard(row)
        return row

    def ending(self, rows: np.ndarray) -> frozenset[int]:
        """Tokens that may end a sequence, whichever of `rows` it is."""
        return frozenset().union(*(self.ending_token_ids[row] for row in rows.tolist()))

    def update_block_table(self, update: BlockTableUpdate) -> None:
        row = self.row_of[update.sequence_id]
        self.tables[update.group, row, update.start : update.start + len(update.block_ids)] = update.block_ids
        self._see(update.block_ids)

    def _see(self, block_ids: Sequence[int]) -> None:
        self.num_blocks_seen = max(self.num_blocks_seen, 1 + max(block_ids, default=-1))

    def sampling(self, rows: np.ndarray, positions: np.ndarray) -> SamplingInput:
        """How to pick the tokens at `positions` (int32 [L], at most `LOGITS_ROWS`) of `rows`.

        It is always in the same arrays.
        """
        how, count = self.sampling_input, len(rows)
        how.positions[:count] = positions
        if (key := rows.tobytes()) != self._sampled_rows:
            self._sampled_rows = key
            np.take(self.temperatures, rows, out=how.temperatures[:count], mode="clip")
            np.take(self.top_k, rows, out=how.top_k[:count], mode="clip")
            np.take(self.top_p, rows, out=how.top_p[:count], mode="clip")
            np.take(self.min_p, rows, out=how.min_p[:count], mode="clip")
            np.take(self.seeds, rows, out=how.seeds[:count], mode="clip")
        return how

    def put(self, rows: np.ndarray, positions: np.ndarray, tokens: np.ndarray) -> None:
        """Set sampled tokens, which end their sequences.

        A row may come several times, with ascending positions: int [L] each.
        """
        self.token_ids[rows, positions] = tokens
        self.num_tokens[rows] = positions + 1
