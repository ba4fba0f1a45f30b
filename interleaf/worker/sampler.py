"""Logits in, next tokens and logprobs out.

Logprobs are those of the model's own distribution, before penalties, masks and temperature (as vLLM's default).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from interleaf.config import EngineConfig
from interleaf.logits_processor import LogitsProcessor
from interleaf.messages import BeamCandidates, NewRequest, TokenLogprobs
from interleaf.ops import LogprobsOutput, Ops, SamplingInput
from interleaf.worker.batch import NO_LOGPROBS, Batch
from interleaf.worker.held_rows import HeldRow, HeldRows, only_temperature
from interleaf.worker.logits.chain import LogitsChain
from interleaf.worker.spec_decode.rejection import DraftDistributions

NONE = np.zeros(0, np.int64)


class Sampler:
    """
    Args:
        custom: logits processors beside the built-in ones.
        drafts: what drafts were sampled from, where rejection sampling is to judge them.
    """

    def __init__(
        self,
        config: EngineConfig,
        ops: Ops,
        batch: Batch,
        custom: Sequence[type[LogitsProcessor[Any]]] = (),
        drafts: DraftDistributions | None = None,
    ) -> None:
        self._ops = ops
        self._batch = batch
        self._chain = LogitsChain(config, custom)
        self._drafts = drafts
        self.held: HeldRows | None = None
        """Of the present step, if any of its sequences is held to a grammar."""

    def add(self, row: int, request: NewRequest) -> None:
        self._chain.add(row, request)

    def remove(self, row: int) -> None:
        self._chain.remove(row)

    @property
    def failures(self) -> dict[int, str]:
        """By batch row: why its sequence cannot go on; a token that was sampled for it means nothing."""
        return self._chain.failures

    @property
    def samples_as_is(self) -> bool:
        """Whether no sequence of the batch wants anything of its logits but a token."""
        return (
            self.held is None and self._drafts is None and not self._batch.wanting_logprobs and not self._chain.active
        )

    @property
    def followed_rows(self) -> set[int]:
        """Batch rows whose logits may be changed by what was sampled for them before."""
        return self._chain.rows

    def sample(
        self, logits: np.ndarray, rows: np.ndarray, positions: np.ndarray, again: Callable[[], np.ndarray]
    ) -> tuple[np.ndarray, list[TokenLogprobs | None]]:
        """The next token of each row, and its logprobs where they are wanted.

        Args:
            logits: float32 [L, V], which may be changed.
            rows: int [L]: the batch row of each; none of `followed_rows` comes twice.
            positions: int32 [L]: of the tokens that are sampled.
            again: computes the same logits once more.

        Returns:
            int32 [L]; and a list of L entries, or an empty one if no row wants logprobs.
        """
        batch, chain = self._batch, self._chain
        wanting = np.flatnonzero(batch.num_logprobs[rows] != NO_LOGPROBS) if batch.wanting_logprobs else NONE
        active = chain.active
        sampling = batch.sampling(rows, positions)
        masked, checked = self._held_rows(rows, positions, sampling)
        raw, raw_rows = logits, wanting
        if active or masked:
            # Logprobs are of the raw logits: keep the rows that want them.
            raw, raw_rows = logits[wanting], np.arange(len(wanting))
        unchanged: dict[int, np.ndarray] = {}
        if active:
            changed = chain.rows
            unchanged = {one.row: logits[one.row].copy() for one in masked + checked if int(rows[one.row]) in changed}
            chain.apply(logits, rows.tolist(), again)
        if self.held is not None and masked:
            self.held.mask(logits, unchanged, masked)
        tokens = self._ops.sample(logits, sampling)
        if self.held is not None and checked:
            self.held.correct(logits, unchanged, sampling, tokens, checked, self._ops.sample)
        if self._drafts is not None:
            self._drafts.accept(logits, rows, sampling, tokens)
        if active:
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                chain.advance(row, token)
        if not len(wanting):
            return tokens, []
        entries: list[TokenLogprobs | None] = [None] * len(rows)
        found = self.logprobs(raw, raw_rows, tokens[wanting], batch.num_logprobs[rows[wanting]])
        for place, entry in zip(wanting.tolist(), found, strict=True):
            entries[place] = entry
        return tokens, entries

    def _held_rows(
        self, rows: np.ndarray, positions: np.ndarray, sampling: SamplingInput
    ) -> tuple[list[HeldRow], list[HeldRow]]:
        """The rows that are held to a grammar: those to mask before they are sampled, and those to check afterwards."""
        held = [] if self.held is None else self.held.among(rows, positions)
        if not held or self._drafts is not None:
            return held, []
        free = only_temperature(sampling)
        return [one for one in held if not free[one.row]], [one for one in held if free[one.row]]

    def advance(self, row: int, token: int) -> None:
        """A row has got a token that was not sampled here."""
        self._chain.advance(row, token)

    def candidates(self, logits: np.ndarray, rows: np.ndarray, again: Callable[[], np.ndarray]) -> list[BeamCandidates]:
        """The likeliest next tokens of each row, at least `Batch.num_candidates` of them.

        What changes logits works on logprobs here, and those that come back are not normalized again (as in
        Transformers' beam search). Arguments are those of `sample`.
        """
        batch, chain = self._batch, self._chain
        row_list = rows.tolist()
        self._temper(logits, rows)
        told = np.where(batch.num_logprobs[rows] == -1, logits.shape[1], batch.num_logprobs[rows])
        counts = np.minimum(np.maximum(batch.num_candidates[rows], told), logits.shape[1])
        wanted = np.full(len(rows), counts.max(), np.int32)
        masked = [] if self.held is None else self.held.among(rows, batch.num_tokens[rows])
        followed = chain.rows
        held = sorted({i for i, row in enumerate(row_list) if row in followed} | {one.row for one in masked})
        if held:
            self._normalize(logits, held)
            unchanged = {one.row: logits[one.row].copy() for one in masked} if followed else {}
            chain.apply(logits, row_list, lambda: self._normalized_again(again, rows, held))
            if self.held is not None:
                self.held.mask(logits, unchanged, masked)
        index = np.arange(len(rows))
        found = self._ops.logprobs(logits, index, np.zeros(len(rows), np.int32), wanted)
        if held:
            # A row that was changed is no distribution any more: its own values are the scores.
            found.top_logprobs[held] = np.take_along_axis(logits[held], found.top_tokens[held], axis=1)
        return [
            BeamCandidates(found.top_tokens[i, :count].tolist(), found.top_logprobs[i, :count].tolist())
            for i, count in enumerate(counts.tolist())
        ]

    def _temper(self, logits: np.ndarray, rows: np.ndarray) -> None:
        temperatures = self._batch.temperatures[rows]
        for i in np.flatnonzero((temperatures != 0.0) & (temperatures != 1.0)).tolist():
            logits[i] /= temperatures[i]

    def _normalize(self, logits: np.ndarray, places: list[int]) -> None:
        """Turn these rows into logprobs."""
        likeliest = logits[places].argmax(axis=1).astype(np.int32)
        none = np.zeros(len(places), np.int32)
        highest = self._ops.logprobs(logits, np.array(places), likeliest, none).chosen
        for i, token, logprob in zip(places, likeliest.tolist(), highest, strict=True):
            logits[i] -= logits[i, token] - logprob

    def _normalized_again(self, again: Callable[[], np.ndarray], rows: np.ndarray, places: list[int]) -> np.ndarray:
        logits = again()
        self._temper(logits, rows)
        self._normalize(logits, places)
        return logits

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
