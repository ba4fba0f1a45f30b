"""The requests of a front end that have not ended: what the engine is given, and who gets its news."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping

from interleaf.config import EngineConfig
from interleaf.engine.remote import Connection
from interleaf.errors import (
    DeadlineExceededError,
    EngineDeadError,
    EngineRestartingError,
    InterleafError,
    RequestFailedError,
)
from interleaf.frontend.admission import Admission
from interleaf.frontend.board import Seat, Tally
from interleaf.frontend.metrics import EngineMetrics
from interleaf.frontend.output import OutputProcessor
from interleaf.frontend.processor import ProcessedRequest, Processor
from interleaf.frontend.recovery import Recovery
from interleaf.frontend.stream import Stream
from interleaf.frontend.supervisor import Supervisor
from interleaf.frontend.tracing import RequestTracer
from interleaf.messages import AbortRequests, AbortSequences, EngineOutputs, FinishReason, Ready, SchedulerStats
from interleaf.params import RequestOutputKind

TURN_SECONDS = 0.05
"""Until it is looked again whether another front end is through with its suspects."""


class OpenRequests:
    """Keeps each request with what it has brought, so that the next engine can go on where one died.

    It is what a `Supervisor` tells of the engine's comings and goings.

    Args:
        admission: says whom to take in.
        seat: among the front ends that share the engine.
        tracer: is told of each request that has ended.
        served_model_name: what metrics and traces call the model; None is its name in the configuration.

    Fields:
        engine_up: set while there is an engine, and for good when there will be no other.
        dead: why there will be no other.
        idle: set while no request is open.
        sleeping: whether the engine has given its memory back, as far as it has told.
        config, metrics: of the engine; None before its first start.
    """

    def __init__(
        self, admission: Admission, seat: Seat, tracer: RequestTracer | None, served_model_name: str | None
    ) -> None:
        self.engine_up = asyncio.Event()
        self.dead: EngineDeadError | None = None
        self.idle = asyncio.Event()
        self.idle.set()
        self.sleeping = False
        self.config: EngineConfig | None = None
        self.metrics: EngineMetrics | None = None
        self._admission = admission
        self._seat = seat
        self._tracer = tracer
        self._served_model_name = served_model_name
        self._name = os.urandom(6).hex()
        self._streams: dict[str, Stream] = {}
        self._recovery = Recovery()
        self._turn: asyncio.TimerHandle | None = None
        self._last_step = -1
        self._first_stats = SchedulerStats()
        self._supervisor: Supervisor | None = None
        self._processor: Processor | None = None
        self._outputs: OutputProcessor | None = None

    def open(self, supervisor: Supervisor, processor: Processor) -> None:
        """The engine has started for the first time: requests may come."""
        assert self.config is not None
        self._supervisor, self._processor = supervisor, processor
        self._outputs = OutputProcessor(processor.tokenizer, statistics=self._seat.statistics)
        self.metrics = EngineMetrics(self._seat.total_statistics, self._served_model_name or self.config.model_name)
        self.metrics.engine_started(self.config, self._first_stats)

    def __len__(self) -> int:
        return len(self._streams)

    def named(self, external_id: str) -> list[str]:
        """Ids of those that their caller gave this name."""
        return [request_id for request_id, one in self._streams.items() if one.external_id == external_id]

    def add(
        self, processed: ProcessedRequest, trace_headers: Mapping[str, str] | None, deadline: float | None
    ) -> Stream:
        """Take a request in, and send it to the engine when it may be.

        Args:
            deadline: seconds from its arrival in which it must end.

        Raises:
            OverloadedError: too many wait already.
        """
        assert self.config is not None and self.metrics is not None and self._outputs is not None
        request, outputs = processed.engine_request, self._outputs
        request.request_id = f"{self._name}-{request.request_id}"
        self._admission.check(request, self.config.scheduler.max_num_seqs, self.metrics.stats.num_waiting)
        self._admission.add(request)
        outputs.statistics.note_arrival(len(request.prompt_token_ids))
        stream = self._streams[request.request_id] = Stream(processed, outputs.add(processed), trace_headers)
        if deadline is not None:
            left = request.arrival_time + deadline - time.monotonic()
            loop = asyncio.get_running_loop()
            stream.timer = loop.call_later(max(left, 0.0), self._expire, request.request_id, deadline)
        self._recovery.add(request.request_id)
        self._set_busy()
        self._send_next()
        return stream

    def end(self, request_ids: list[str], reason: FinishReason) -> None:
        """End requests from this side; those that have ended are ignored."""
        streams = [self._streams[request_id] for request_id in request_ids if request_id in self._streams]
        if not streams:
            return
        known = [one.request.request_id for one in streams if self._recovery.was_sent(one.request.request_id)]
        if known and self.engine_up.is_set() and self.dead is None:
            self.connection().send(AbortRequests(known))
        assert self._outputs is not None
        for stream in streams:
            self._outputs.end(stream.request.request_id, reason)
            stream.notify(list(range(stream.request.params.n)))
            self._retire(stream)
        self._send_next()

    def end_all(self) -> None:
        """Abort every request; there will be no more."""
        self.end(list(self._streams), FinishReason.ABORT)
        self.dead = self.dead or EngineDeadError("The engine was shut down.")
        self.engine_up.set()

    def connection(self) -> Connection:
        """
        Raises:
            EngineRestartingError: there is no engine now.
        """
        connection = None if self._supervisor is None else self._supervisor.connection
        if connection is None:
            raise restarting()
        return connection

    def engine_started(self, ready: Ready) -> None:
        """Give the new engine everything that is unfinished."""
        self.config = self.config or ready.config
        self._first_stats = ready.stats
        self._last_step = -1
        self.sleeping = ready.stats.sleeping
        self.engine_up.set()
        if self.metrics is not None:
            self.metrics.engine_started(ready.config, ready.stats)
        self._send_next()

    def engine_died(self, computed: set[str], step: int) -> None:
        """Find out whose fault it was; the others wait for the next engine."""
        self.engine_up.clear()
        if self.metrics is not None:
            self.metrics.engine_died()
        in_company = any(not name.startswith(f"{self._name}-") for name in computed)
        guilty = self._recovery.engine_died(computed, step - self._last_step, in_company)
        self._seat.set(Tally.SUSPECTS, self._recovery.num_suspects)
        if guilty is not None:
            self._fail(guilty, RequestFailedError("The engine died of this request each time; it was given up."))

    def engine_given_up(self, error: InterleafError) -> None:
        """Tell everybody."""
        self.dead = EngineDeadError(f"The engine cannot be started again: {error}")
        self.engine_up.set()
        for request_id in list(self._streams):
            self._fail(request_id, self.dead)

    def outputs_arrived(self, news: EngineOutputs) -> None:
        """Sort a step's news to those who wait for them."""
        if news.stats is not None and self.metrics is not None:
            self.metrics.engine_told(news.stats)
            self.sleeping = news.stats.sleeping
        if not news.outputs or self._outputs is None:
            return
        self._last_step = max(self._last_step, news.step)
        held_back = self._recovery.holds_back
        followed = self._outputs.follow(news)
        if followed.abort_sequence_ids:
            self.connection().send(AbortSequences(followed.abort_sequence_ids))
        streams = self._streams
        for request_id, num_tokens in followed.num_new_tokens.items():
            self._recovery.progressed(request_id, num_tokens)
            stream = streams.get(request_id)
            # Searches bring nothing before their end, but news that they have begun.
            if stream is not None and not stream.started:
                self._note_start(stream)
        for request_id, (state, indices) in followed.updated.items():
            stream = streams[request_id]
            if request_id in followed.errors:
                stream.fail(RequestFailedError(followed.errors[request_id]))
            if state.finished:
                stream.notify(indices)
                self._retire(stream)
            elif state.kind is not RequestOutputKind.FINAL_ONLY:
                stream.notify(indices)
        if held_back:
            self._seat.set(Tally.SUSPECTS, self._recovery.num_suspects)
            self._send_next()

    def _send_next(self) -> None:
        """Send what the engine may be given now."""
        if self.engine_up.is_set() and self.dead is None and self._streams:
            if not self._seat.may_send:
                self._turn = self._turn or asyncio.get_running_loop().call_later(TURN_SECONDS, self._look_for_turn)
                return
            connection = self.connection()
            for request_id in self._recovery.next_to_send():
                stream = self._streams[request_id]
                if stream.request.grammar is not None and not connection.knows_vocabulary:
                    assert self._processor is not None
                    connection.send(self._processor.vocabulary)
                    connection.knows_vocabulary = True
                stream.send(connection)

    def _look_for_turn(self) -> None:
        self._turn = None
        self._send_next()

    def _note_start(self, stream: Stream) -> None:
        """A request that has brought something waits no longer."""
        if not stream.started:
            stream.started = True
            self._admission.start(stream.request)

    def _expire(self, request_id: str, seconds: float) -> None:
        self._fail(request_id, DeadlineExceededError(f"The request did not end within {seconds:g} seconds."))

    def _fail(self, request_id: str, error: InterleafError) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.fail(error)
            timed_out = isinstance(error, DeadlineExceededError)
            self.end([request_id], FinishReason.ABORT if timed_out else FinishReason.ERROR)

    def _retire(self, stream: Stream) -> None:
        request_id = stream.request.request_id
        if stream.timer is not None:
            stream.timer.cancel()
        if self._tracer is not None:
            assert self.config is not None
            model_name = self._served_model_name or self.config.model_name
            self._tracer.record(stream.state, stream.request.params, model_name, stream.trace_headers)
        self._note_start(stream)
        self._admission.remove(stream.request)
        del self._streams[request_id]
        self._recovery.remove(request_id)
        self._seat.set(Tally.SUSPECTS, self._recovery.num_suspects)
        self._set_busy()

    def _set_busy(self) -> None:
        assert self._supervisor is not None
        self._supervisor.set_busy(bool(self._streams))
        if self._streams:
            self.idle.clear()
        else:
            self.idle.set()


def restarting() -> EngineRestartingError:
    """For whoever does not want to wait until there is an engine again."""
    return EngineRestartingError("The engine is being started again: try again in a few seconds.")
