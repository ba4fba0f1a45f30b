"""Requests that wait for their grammar, which is compiled while the loop goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait

from interleaf.core.structured import Grammar, GrammarCompiler
from interleaf.errors import GrammarError, RequestError
from interleaf.messages import EngineRequest, Vocabulary

GATHER_SECONDS = 0.02
"""How long an idle engine waits for further grammars behind the first: a step for one prompt more takes as long."""


class GrammarQueue:
    """Front ends have checked these grammars (`interleaf.frontend.grammar_check`); here they are taken as good."""

    def __init__(self) -> None:
        self._compiler: GrammarCompiler | None = None
        self._waiting: dict[str, tuple[EngineRequest, Future[Grammar]]] = {}
        self.on_ready: Callable[[], None] = lambda: None
        """Called in another thread whenever a grammar is compiled."""

    def learn(self, vocabulary: Vocabulary) -> None:
        """Be told the model's tokens; all front ends tell the same."""
        self._compiler = self._compiler or GrammarCompiler(vocabulary)

    @property
    def knows_vocabulary(self) -> bool:
        return self._compiler is not None

    def close(self) -> None:
        if self._compiler is not None:
            self._compiler.close()

    def add(self, request: EngineRequest) -> Grammar | None:
        """The request's grammar if it is there; None if the request waits for it.

        Raises:
            RequestError: nobody has told the vocabulary, or the grammar cannot be used.
        """
        assert request.grammar is not None, "only requests with a grammar come here"
        if self._compiler is None:
            raise RequestError("A request with a grammar must come behind the vocabulary.", "grammar")
        compiled = self._compiler.submit(request.grammar)
        if compiled.done():
            return compiled.result()
        self._waiting[request.request_id] = (request, compiled)
        compiled.add_done_callback(lambda _: self.on_ready())
        return None

    def take_ready(self, block: bool = False) -> list[tuple[EngineRequest, Grammar | GrammarError]]:
        """The requests whose grammar is compiled, or cannot be; with `block`, sleep until there is one."""
        if block and self._waiting:
            awaited = [compiled for _, compiled in self._waiting.values()]
            wait(awaited, return_when=FIRST_COMPLETED)
            wait(awaited, GATHER_SECONDS)
        ready = [(request, compiled) for request, compiled in self._waiting.values() if compiled.done()]
        for request, _ in ready:
            del self._waiting[request.request_id]
        return [(request, _outcome(compiled)) for request, compiled in ready]

    def abort(self, request_ids: list[str]) -> None:
        """Forget requests; unknown ids are ignored."""
        for request_id in request_ids:
            self._waiting.pop(request_id, None)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_ready(self) -> bool:
        return any(compiled.done() for _, compiled in self._waiting.values())


def _outcome(compiled: Future[Grammar]) -> Grammar | GrammarError:
    try:
        return compiled.result()
    except GrammarError as error:
        return error
