"""Decode steps that the worker does one after the other, where nobody waits for what comes between them.

What a step costs beside its kernels (scheduling, telling the news) is then paid once for all of them.
"""

from __future__ import annotations

from interleaf.core.kv_manager import KVManager
from interleaf.core.request import NEWS_INTERVAL, Request
from interleaf.core.sequences import Sequences
from interleaf.messages import SchedulerOutput


class DecodeRuns:
    """Turns a step of single tokens into a run of such steps, which gives the same tokens.

    Args:
        max_total_tokens: of a sequence's prompt and output.
    """

    def __init__(self, sequences: Sequences, kv: KVManager, max_total_tokens: int) -> None:
        self._sequences = sequences
        self._kv = kv
        self._max_total_tokens = max_total_tokens

    def schedule(self, output: SchedulerOutput, longest: int) -> None:
        """Have the step repeated, up to `longest` steps in all; nobody is preempted for that."""
        count = len(output.num_scheduled_tokens)
        single = 0 < output.total_num_scheduled_tokens == count and not output.new_requests
        if longest == 1 or not single or self._sequences.waiting:
            return
        requests = [self._sequences.by_id[sequence_id] for sequence_id in output.num_scheduled_tokens]
        if not all(map(_is_patient, requests)):
            return
        room = min(request.room_for_drafts(self._max_total_tokens) + 1 for request in requests)
        length = min(longest, NEWS_INTERVAL, room)
        needed = sum(self._kv.num_blocks_needed(request, length) for request in requests)
        if length == 1 or needed > self._kv.pool.num_free:
            return
        for request in requests:
            _, start = self._kv.extend(request, 1, length - 1)
            if start < len(request.block_ids):
                output.block_table_updates += self._kv.table_updates(request, start)
        output.num_decode_steps = length


def _is_patient(request: Request) -> bool:
    """Whether a sequence lacks its last token alone, and its tokens are told together anyhow."""
    group = request.group
    decodes = bool(request.output_token_ids) and request.num_computed_tokens + 1 == request.num_tokens
    return decodes and group.is_told_late and request.grammar is None and not group.is_beam_search
