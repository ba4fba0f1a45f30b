"""Beam searches beside other requests: the seats they are promised, their rounds, and how they are preempted."""

from __future__ import annotations

from interleaf.core.beam_group import BeamGroup
from interleaf.core.kv_manager import KVManager
from interleaf.core.request import Request, RequestGroup, RequestStatus
from interleaf.core.sequences import Sequences
from interleaf.messages import BeamCandidates, EngineOutput, SchedulerOutput


class BeamSearches:
    """The searches of the unfinished requests, and what the worker has yet to be told of their last rounds."""

    def __init__(self, sequences: Sequences, kv: KVManager) -> None:
        self._sequences = sequences
        self._kv = kv
        self._beams: dict[str, BeamGroup] = {}
        """By the request's id."""
        self._running: list[RequestGroup] = []
        self._new: list[Request] = []
        self._picked: list[tuple[Request, int]] = []

    def enqueue(self, group: RequestGroup, max_total_tokens: int) -> None:
        """A new search, whose prompt waits."""
        beam = self._beams[group.source.request_id] = BeamGroup(group, max_total_tokens)
        self._sequences.enqueue(beam.beams[0])

    def started(self, group: RequestGroup) -> None:
        """The prompt of a search runs."""
        self._running.append(group)

    def num_promised_seats(self) -> int:
        """Those of beams that may yet come."""
        if not self._running:
            return 0
        self._running = [group for group in self._running if group.sequences]
        return sum(self._beam_of(group).width - len(group.sequences) for group in self._running)

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
        beam = self._beam_of(group)
        first = beam.beams[0]
        self._running.remove(group)
        self._sequences.end(group)
        request = beam.come_back()
        request.num_preemptions, request.num_cached_tokens = first.num_preemptions + 1, first.num_cached_tokens
        self._sequences.enqueue(request)

    def can_begin(self, group: RequestGroup, num_free_seats: int, num_free_blocks: int) -> bool:
        """Whether all beams of a search that waits find a seat, and those it had before their blocks, or all blocks."""
        beam = self._beam_of(group)
        needed = beam.num_blocks_to_come_back(self._kv.block_size) * self._kv.blocks_per_entry
        return beam.width <= num_free_seats and min(needed, self._kv.pool.num_blocks) <= num_free_blocks

    def beams(self, group: RequestGroup) -> list[Request]:
        """The sequences of its live beams, the best first."""
        return self._beam_of(group).beams

    def report(self, request: Request, candidates: BeamCandidates) -> list[EngineOutput]:
        """Take in the candidates of one beam; when all have reported, they go on. Returns the request's news."""
        return self._advance(request.group) if self._beam_of(request.group).report(request, candidates) else []

    def fail(self, group: RequestGroup, error: str) -> list[EngineOutput]:
        """End a search that cannot go on. Returns its news."""
        news = self._beam_of(group).errors(error)
        self.end(group)
        return news

    def end(self, group: RequestGroup) -> None:
        """Let go of a search, and of its request."""
        del self._beams[group.source.request_id]
        self._sequences.end(group)

    def check_invariants(self) -> None:
        """Assert that the searches are those of the unfinished requests."""
        groups = self._sequences.groups
        assert self._beams.keys() == {name for name, group in groups.items() if group.is_beam_search}
        assert all(set(beam.beams) == set(groups[name].sequences.values()) for name, beam in self._beams.items())

    def _advance(self, group: RequestGroup) -> list[EngineOutput]:
        """Let the beams fork and go on, or end the search. Returns its news."""
        beam = self._beam_of(group)
        played = beam.advance(self._kv)
        if played is None:
            news = beam.outputs()
            news[0].prompt_logprobs, group.prompt_logprobs = group.prompt_logprobs, None
            for output in news:
                output.num_cached_tokens = beam.beams[0].num_cached_tokens
            self.end(group)
            return news
        for request in played.forks:
            self._sequences.add_running(request)
        for request in played.dropped:
            self._sequences.retire(request)
        self._new += played.forks
        self._picked += played.picked
        # Nothing is told before the end, but that the search has begun.
        return [EngineOutput(group.source.request_id, 0, [])] if beam.length == 1 else []

    def _beam_of(self, group: RequestGroup) -> BeamGroup:
        return self._beams[group.source.request_id]
