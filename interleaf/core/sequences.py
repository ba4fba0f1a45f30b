"""Every unfinished sequence: to which request it belongs, and whether it runs or waits."""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import attrgetter

from interleaf.core.kv_manager import KVManager
from interleaf.core.request import Request, RequestGroup, RequestStatus

policy_order = attrgetter("order")


class Sequences:
    """Moves sequences between the queues, and takes their blocks away when they stop running.

    Fields:
        groups: requests with unfinished sequences, by their id.
        by_id: sequences, by theirs.
        running, waiting: the same sequences, each list sorted by `Request.order`.
        num_structured: how many of them follow a grammar.
    """

    def __init__(self, kv: KVManager) -> None:
        self.groups: dict[str, RequestGroup] = {}
        self.by_id: dict[str, Request] = {}
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.num_structured = 0
        self._kv = kv
        self._removed_ids: list[str] = []

    def enqueue(self, request: Request) -> None:
        """A new sequence, which waits."""
        self._add(request)
        insort(self.waiting, request, key=policy_order)

    def add_running(self, request: Request) -> None:
        """A new sequence that runs at once: a fork."""
        self._add(request)
        request.status = RequestStatus.RUNNING
        insort(self.running, request, key=policy_order)

    def start_first(self) -> None:
        """The first of those that wait runs."""
        request = self.waiting.pop(0)
        request.status = RequestStatus.RUNNING
        insort(self.running, request, key=policy_order)

    def requeue(self, request: Request) -> None:
        """A running sequence waits again, without blocks, to be recomputed from its tokens."""
        self._stop_running(request)
        request.status = RequestStatus.WAITING
        insort(self.waiting, request, key=policy_order)

    def retire(self, request: Request) -> None:
        """Let go of a sequence that has ended, and of its request with the last one."""
        if request.status is RequestStatus.RUNNING:
            self._stop_running(request)
        else:
            del self.waiting[bisect_left(self.waiting, request.order, key=policy_order)]
        request.status = RequestStatus.FINISHED
        group = request.group
        del self.by_id[request.sequence_id]
        self.num_structured -= request.grammar is not None
        del group.sequences[request.index]
        if not group.sequences:
            del self.groups[group.source.request_id]

    def end(self, group: RequestGroup) -> None:
        """Let go of a whole request."""
        group.has_pending_forks = False
        for request in list(group.sequences.values()):
            self.retire(request)

    def take_removed_ids(self) -> list[str]:
        """Sequences that have stopped running since this was called last."""
        removed, self._removed_ids = self._removed_ids, []
        return removed

    def check_invariants(self) -> None:
        """Assert that queues, groups and blocks agree."""
        assert self.running == sorted(self.running, key=policy_order)
        assert self.waiting == sorted(self.waiting, key=policy_order)
        assert all(request.status is RequestStatus.RUNNING for request in self.running)
        assert all(request.status is RequestStatus.WAITING for request in self.waiting)
        for request in self.waiting:
            assert not (request.block_ids or request.num_computed_tokens or request.num_committed_blocks)
        alive = {request.sequence_id: request for request in self.running + self.waiting}
        assert alive == self.by_id and len(alive) == len(self.running) + len(self.waiting)
        grouped = [request for group in self.groups.values() for request in group.sequences.values()]
        assert len(grouped) == len(alive) and all(alive[request.sequence_id] is request for request in grouped)
        assert all(group.sequences for group in self.groups.values())
        self._kv.check_invariants(self.running)

    def _add(self, request: Request) -> None:
        assert request.sequence_id not in self.by_id, "sequence ids are unique"
        self.groups[request.group.source.request_id] = request.group
        self.by_id[request.sequence_id] = request
        self.num_structured += request.grammar is not None

    def _stop_running(self, request: Request) -> None:
        del self.running[bisect_left(self.running, request.order, key=policy_order)]
        self._removed_ids.append(request.sequence_id)
        self._kv.free(request)
