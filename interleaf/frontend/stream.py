"""One request between its caller and the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from interleaf.engine.remote import Connection
from interleaf.errors import InterleafError
from interleaf.frontend.output import RequestState, sequence_id
from interleaf.frontend.processor import ProcessedRequest
from interleaf.messages import AbortSequences, EngineRequest
from interleaf.outputs import RequestOutput


class Stream:
    """One request on its way: what it was, what it has brought, and who waits for it.

    News are not queued: they are noted, and told when the caller comes for them, all that there are
    by then in one output. So a slow caller costs no memory.
    """

    def __init__(
        self, processed: ProcessedRequest, state: RequestState, trace_headers: Mapping[str, str] | None
    ) -> None:
        self.request: EngineRequest = processed.engine_request
        self.trace_headers = trace_headers
        self.external_id = processed.external_id
        self.state = state
        self.started = False
        self.timer: asyncio.TimerHandle | None = None
        """Ends the request at its deadline."""
        self.error: InterleafError | None = None
        self._changed: set[int] = set()
        self._reader: asyncio.Future[None] | None = None
        """The caller's wait for news; an `asyncio.Event` costs twice as much, for each token."""

    def notify(self, indices: list[int]) -> None:
        """The sequences `indices` have something to tell."""
        self._changed.update(indices)
        self._wake()

    def fail(self, error: InterleafError) -> None:
        """Let the caller have this error."""
        self.error = error
        self._wake()

    async def next_output(self) -> RequestOutput:
        """Wait for something to tell.

        Raises:
            InterleafError: what `fail` was given.
        """
        while True:
            if not self._changed and self.error is None:
                self._reader = asyncio.get_running_loop().create_future()
                await self._reader
            if self.error is not None:
                raise self.error
            changed, self._changed = self._changed, set()
            output = self.state.output(changed)
            if output is not None:
                return output

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    def send(self, connection: Connection) -> None:
        """Give the request to the engine, behind the tokens that it has brought already."""
        request, sequences = self.request, self.state.sequences
        if any(sequence.token_ids for sequence in sequences):
            resumed = [list(sequence.token_ids) for sequence in sequences]
            request = msgspec.structs.replace(request, resumed_token_ids=resumed)
        connection.send(request)
        # The engine cannot tell that these have ended: a stop string ended them.
        ended = [sequence_id(request.request_id, sequence.index) for sequence in sequences if sequence.finished]
        if ended:
            connection.send(AbortSequences(ended))
