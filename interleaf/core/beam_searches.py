"""Beam searches beside other requests: the seats they are promised, their rounds, and how they are preempted."""

from __future__ import annotations

from interleaf.core.beam_group import BeamGroup
from interleaf.core.kv_manager import KVManager
from interleaf.core.request import Request, RequestGroup, RequestStatus
from interleaf.core.sequences import Sequences
from interleaf.messages import EngineOutput, SchedulerOutput


class BeamSearches:
    """The searches that run, and what the worker has yet to be told of their last rounds."""

    def __init__(self, sequences: Sequences, kv: KVManager) -> None:
        self._sequences = sequences
        self._kv = kv
        self._running: list[RequestGroup] = []
        self._new: list[Request] = []
        self._picked: list[tuple[Request, int]] = []

    def started(self, group: RequestGroup) -> None:
        """The prompt of a search runs."""
        self._running.append(group)

    def num_promised_seats(self) -> int:
        """Those of beams that may yet come."""
        if not self._running:
            return 0
        self._running = [group for group in self._running if group.sequences]
        return sum(beam_of(group).width - len(group.sequences) for group in self._running)

    def tell(self, output: SchedulerOutput) -> None:
        """Let the worker know what the last round did to beams that still run."""
        if not (self._new or self._picked):
            return
        untold = {one.sequence_id for one in self._new if one.status is not RequestStatus.RUNNING}
        output.removed_sequence_ids = [name for name in output.removed_sequence_ids if name not in untold]
        output.new_requests += [one.as_new_request() for one in self._new if one.status is RequestStatus.RUNNING]
        output.picked_token_ids = {
            one.sequence_id: token for one, token in self._picked if one.status is RequestStatus.RUNNING
        }
        self._new, self._picked = [], []

    def preempt(self, group: RequestGroup) -> None:
        """All beams of a request lose their blocks, and what they have in common waits to be recomputed."""
        beam = beam_of(group)
        first = beam.beams[0]
        self._running.remove(group)
        self._sequences.end(group)
        request = beam.come_back()
        request.num_preemptions, request.num_cached_tokens = first.num_preemptions + 1, first.num_cached_tokens
        self._sequences.enqueue(request)

    def has_room(self, group: RequestGroup, num_free_blocks: int) -> bool:
        """Whether a search that waits finds blocks for all beams that it had, or all there are."""
        needed = beam_of(group).num_blocks_to_come_back(self._kv.block_size) * self._kv.blocks_per_entry
        return min(needed, self._kv.pool.num_blocks) <= num_free_blocks

    def advance(self, group: RequestGroup) -> list[EngineOutput]:
        """All beams of a request have reported: let them fork and go, or end it. Returns its news."""
        beam = beam_of(group)
        played = beam.advance(self._kv)
        if played is None:
            news = beam.outputs()
            news[0].prompt_logprobs, group.prompt_logprobs = group.prompt_logprobs, None
            for output in news:
                output.num_cached_tokens = beam.beams[0].num_cached_tokens
            self._sequences.end(group)
            return news
        for request in played.forks:
            self._sequences.add_running(request)
        for request in played.dropped:
            self._sequences.retire(request)
        self._new += played.forks
        self._picked += played.picked
        # Nothing is told before the end, but that the search has begun.
        return [EngineOutput(group.source.request_id, 0, [])] if beam.length == 1 else []


def beam_of(group: RequestGroup) -> BeamGroup:
    """The search of a request that has one."""
    assert group.beam is not None
    return group.beam
