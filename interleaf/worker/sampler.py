"""Logits in, next tokens and logprobs out.

Logprobs are those of the model's own distribution, before penalties, masks and temperature (as vLLM's default).
"""

from __future__ import annotations

import numpy as np

from interleaf.messages import NewRequest, TokenLogprobs
from interleaf.ops import LogprobsOutput, Ops, SamplingInput
from interleaf.worker.batch import NO_LOGPROBS, Batch
from interleaf.worker.logits import LogitsProcessor
from interleaf.worker.logits.allowed_token_ids import AllowedTokenIds
from interleaf.worker.logits.bad_words import BadWords
from interleaf.worker.logits.logit_bias import LogitBias
from interleaf.worker.logits.min_tokens import MinTokens
from interleaf.worker.logits.penalties import Penalties


class Sampler:
    def __init__(self, ops: Ops, batch: Batch) -> None:
        self._ops = ops
        self._batch = batch
        self._processors: list[LogitsProcessor] = [
            AllowedTokenIds(),
            BadWords(),
            MinTokens(),
            LogitBias(),
            Penalties(),
        ]

    def add(self, row: int, request: NewRequest) -> None:
        for processor in self._processors:
            processor.add(row, request)

    def remove(self, row: int) -> None:
        for processor in self._processors:
            processor.remove(row)

    def sample(self, logits: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, list[TokenLogprobs | None]]:
        """The next token of each row, and its logprobs where they are wanted.

        Args:
            logits: float32 [L, V], which may be changed.
            rows: int [L]: the batch row of each.

        Returns:
            int32 [L]; and a list of L entries, or an empty one if no row wants logprobs.
        """
        batch = self._batch
        wanting = np.flatnonzero(batch.num_logprobs[rows] != NO_LOGPROBS)
        active = [processor for processor in self._processors if processor.holds_rows]
        raw = logits
        if active:
            # Logprobs are of the raw logits: keep the rows that want them.
            raw, raw_rows = logits[wanting], np.arange(len(wanting))
            row_list = rows.tolist()
            for processor in active:
                processor.apply(logits, row_list)
        else:
            raw_rows = wanting
        tokens = self._ops.sample(
            logits,
            SamplingInput(
                temperatures=batch.temperatures[rows],
                top_k=batch.top_k[rows],
                top_p=batch.top_p[rows],
                min_p=batch.min_p[rows],
                seeds=batch.seeds[rows],
                positions=batch.num_tokens[rows],
            ),
        )
        for processor in active:
            for row, token in zip(row_list, tokens.tolist(), strict=True):
                processor.append(row, token)
        if not len(wanting):
            return tokens, []
        entries: list[TokenLogprobs | None] = [None] * len(rows)
        found = self.logprobs(raw, raw_rows, tokens[wanting], batch.num_logprobs[rows[wanting]])
        for place, entry in zip(wanting.tolist(), found, strict=True):
            entries[place] = entry
        return tokens, entries

    def logprobs(
        self, logits: np.ndarray, logits_rows: np.ndarray, tokens: np.ndarray, counts: np.ndarray
    ) -> list[TokenLogprobs]:
        """Logprobs of `tokens[i]` and the `counts[i]` likeliest tokens (-1: all) in `logits[logits_rows[i]]`."""
        num_top = np.where(counts < 0, logits.shape[1], counts).astype(np.int32)
        return _entries(tokens, num_top, self._ops.logprobs(logits, logits_rows, tokens, num_top))


def _entries(tokens: np.ndarray, num_top: np.ndarray, output: LogprobsOutput) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(
            [token, *output.top_tokens[i, :count].tolist()],
            [chosen, *output.top_logprobs[i, :count].tolist()],
            rank,
        )
        for i, (token, count, chosen, rank) in enumerate(
            zip(tokens.tolist(), num_top.tolist(), output.chosen.tolist(), output.ranks.tolist(), strict=True)
        )
    ]
