"""Speculation in the scheduler: which drafts a step tries, and how many were accepted."""

from __future__ import annotations

from collections.abc import Iterable

from interleaf.core.kv_manager import KVManager
from interleaf.core.request import Request
from interleaf.core.sequences import Sequences
from interleaf.messages import SchedulerOutput, SchedulerStats

MAX_FORCED_DRAFTS = 32
"""Of a sequence in a step."""


class Drafts:
    """Guesses at the next tokens of sequences, from the last step's results or from their grammars.

    Args:
        max_num_batched_tokens: of a step.
        max_total_tokens: of a sequence's prompt and output.
        stats: where drafts are counted.
    """

    def __init__(
        self,
        sequences: Sequences,
        kv: KVManager,
        max_num_batched_tokens: int,
        max_total_tokens: int,
        stats: SchedulerStats,
    ) -> None:
        self._sequences = sequences
        self._kv = kv
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_total_tokens = max_total_tokens
        self._stats = stats
        self._guesses: dict[str, list[int]] = {}
        self._forced: set[str] = set()
        """Sequences whose drafts in this step are no guesses."""

    def guessed(self, draft_token_ids: dict[str, list[int]]) -> None:
        """Take in what a step's results brought for the next one."""
        self._guesses = draft_token_ids
        self._forced.clear()

    def schedule(self, output: SchedulerOutput) -> None:
        """Try drafts with what budget and blocks everybody else leaves; nobody is preempted for them."""
        if self._sequences.num_structured:
            self._draft_by_grammar(output.num_scheduled_tokens)
        for sequence_id, drafts in self._guesses.items():
            num_tokens = output.num_scheduled_tokens.get(sequence_id, 0)
            request = self._sequences.by_id.get(sequence_id)
            if not num_tokens or request is None or request.num_computed_tokens + num_tokens < request.num_tokens:
                continue
            budget = self._max_num_batched_tokens - output.total_num_scheduled_tokens
            num_drafts = min(len(drafts), budget, request.room_for_drafts(self._max_total_tokens))
            if num_drafts <= 0:
                continue
            num_drafts, start = self._kv.extend(request, num_tokens, num_drafts)
            if start < len(request.block_ids):
                output.block_table_updates += self._kv.table_updates(request, start)
            if num_drafts:
                output.draft_token_ids[sequence_id] = drafts[:num_drafts]
                output.total_num_scheduled_tokens += num_drafts
        self._guesses = {}

    def tried(self, request: Request, num_drafts: int, num_accepted: int) -> None:
        """A sequence's drafts were computed: give back the blocks of those rejected, and count them if they were
        guesses."""
        self._kv.trim(request)
        if request.sequence_id in self._forced:
            return
        stats = self._stats
        stats.num_drafts += 1
        stats.num_draft_tokens += num_drafts
        stats.num_accepted_tokens += num_accepted
        by_position = stats.num_accepted_tokens_per_pos
        by_position += [0] * (num_drafts - len(by_position))
        for position in range(num_accepted):
            by_position[position] += 1

    def _draft_by_grammar(self, scheduled: Iterable[str]) -> None:
        """Drafts of sequences with a grammar: the tokens that it forces, else what it lets through of the guesses."""
        for sequence_id in scheduled:
            request = self._sequences.by_id[sequence_id]
            # Behind a prompt, blocks may be shared with forks that write there too.
            if request.grammar is None or not request.output_token_ids or request.group.is_beam_search:
                continue
            forced = [] if request.group.source.params.speculative is False else request.grammar.forced()
            if forced:
                self._guesses[sequence_id] = forced[:MAX_FORCED_DRAFTS]
                self._forced.add(sequence_id)
            elif sequence_id in self._guesses:
                self._guesses[sequence_id] = request.grammar.fitting(self._guesses[sequence_id])
