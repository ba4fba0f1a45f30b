"""Many requests from a file: for `interleaf run-batch`, and for `/v1/batches`.

Results are appended to files line by line. What a file says is done is not done again, so that a
run that was killed is taken up where it was.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from interleaf.errors import EngineRestartingError, OverloadedError
from interleaf.server import chat, completions, responses
from interleaf.server.embeddings import embeddings
from interleaf.server.errors import ApiError, api_error, bad_request, validated
from interleaf.server.generation import Context, new_context
from interleaf.server.protocol.chat import ChatCompletionRequest
from interleaf.server.protocol.completions import CompletionRequest
from interleaf.server.protocol.embeddings import EmbeddingRequest
from interleaf.server.protocol.responses import (
    InputTokensDetails,
    OutputTokensDetails,
    ResponseRequest,
    ResponseUsage,
)
from interleaf.server.protocol.scoring import RerankRequest, ScoreRequest
from interleaf.server.scoring import ranks, scores
from interleaf.server.state import ServerState

SPARE_WORKERS = 16
"""Requests in flight beyond those that the engine computes at once."""
RESTART_SECONDS = 1.0

Respond = Callable[[Any, Context], Awaitable[msgspec.Struct]]


async def _chat(body: ChatCompletionRequest, context: Context) -> msgspec.Struct:
    return await chat.Job.of(body, context).response()


async def _completion(body: CompletionRequest, context: Context) -> msgspec.Struct:
    return await completions.Job.of(body, context).response()


async def _response(body: ResponseRequest, context: Context) -> msgspec.Struct:
    if body.background:
        raise bad_request("background is of no use in a batch: leave it out.", "background")
    return await (await responses.Job.of(body, context)).response()


ENDPOINTS: dict[str, tuple[type[Any], Respond]] = {
    "/v1/chat/completions": (ChatCompletionRequest, _chat),
    "/v1/completions": (CompletionRequest, _completion),
    "/v1/embeddings": (EmbeddingRequest, embeddings),
    "/v1/responses": (ResponseRequest, _response),
    "/v1/score": (ScoreRequest, scores),
    "/v1/rerank": (RerankRequest, ranks),
}
"""What a batch can ask: url -> model of the body, and what answers it."""


class Line(msgspec.Struct):
    """A line of a batch's input."""

    custom_id: str
    url: str
    body: dict[str, Any]
    method: str = "POST"


class LineResponse(msgspec.Struct):
    status_code: int
    request_id: str
    body: Any


class LineError(msgspec.Struct):
    """Why a line has no response; `line` is its number where it has no usable name."""

    code: str
    message: str
    line: int | None = None


class Result(msgspec.Struct):
    """A line of a batch's output."""

    id: str
    custom_id: str | None
    response: LineResponse | None = None
    error: LineError | None = None

    @property
    def ok(self) -> bool:
        return self.response is not None and self.response.status_code == 200

    @property
    def key(self) -> str | int | None:
        """What tells lines of one input apart: the name, or the number of a line without one."""
        return self.error.line if self.error is not None and self.error.line is not None else self.custom_id


@dataclass(frozen=True, slots=True)
class NumberedLine:
    """A line of the input, or what is wrong with it."""

    number: int
    line: Line | LineError

    @property
    def key(self) -> str | int:
        return self.line.custom_id if isinstance(self.line, Line) else self.number


class ResultFile:
    """A file of results that grows; one that is there already is gone on with.

    Fields:
        done: keys of the results in it.
        num_ok, num_failed: how many of them have a response, and how many have not.
    """

    def __init__(self, path: Path) -> None:
        self.done: set[str | int | None] = set()
        self.num_ok = self.num_failed = 0
        complete = 0
        with path.open("a+b") as file:
            file.seek(0)
            for raw in file:
                # The last line is torn if its writer was killed.
                if not raw.endswith(b"\n"):
                    break
                complete += len(raw)
                self._count(raw)
            file.truncate(complete)
        self._file = path.open("ab")

    def add(self, result: Result) -> None:
        """Write a result; it is with the system when this returns."""
        raw = msgspec.json.encode(result) + b"\n"
        self._file.write(raw)
        self._file.flush()
        self._count(raw)

    def close(self) -> None:
        self._file.close()

    def _count(self, raw: bytes) -> None:
        try:
            result = msgspec.json.decode(raw, type=Result)
        except msgspec.MsgspecError:
            return
        self.done.add(result.key)
        if result.ok:
            self.num_ok += 1
        else:
            self.num_failed += 1


def read_lines(raw_lines: Iterable[bytes], url: str | None = None) -> Iterator[NumberedLine]:
    """The requests in a file.

    Args:
        url: the only one that is allowed; None allows all.
    """
    seen: set[str] = set()
    for number, raw in enumerate(raw_lines, start=1):
        if raw.strip():
            yield NumberedLine(number, _line(raw, number, url, seen))


def _line(raw: bytes, number: int, url: str | None, seen: set[str]) -> Line | LineError:
    try:
        line = msgspec.json.decode(raw, type=Line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return LineError("invalid_json_line", f"The line is no request of a batch: {error}.", number)
    if line.custom_id in seen:
        return LineError("duplicate_custom_id", "An earlier line has the same custom_id.", number)
    seen.add(line.custom_id)
    if line.method != "POST" or line.url not in ENDPOINTS or (url is not None and line.url != url):
        allowed = [url] if url is not None else list(ENDPOINTS)
        return LineError("invalid_url", f"A line must be a POST to {' or '.join(allowed)}.", number)
    return line


async def run_batch(
    state: ServerState, lines: Iterator[NumberedLine], done: set[Any], add: Callable[[Result], None]
) -> None:
    """Answer all lines whose keys are not in `done`, several at a time.

    Raises:
        EngineDeadError: the engine is gone for good.
    """

    async def work() -> None:
        for numbered in lines:
            if numbered.key not in done:
                add(await _result(state, numbered.line))
                # Lines that are refused at once must not hold the event loop up.
                await asyncio.sleep(0)

    num_workers = state.engine.config.scheduler.max_num_seqs + SPARE_WORKERS
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(num_workers):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _result(state: ServerState, line: Line | LineError) -> Result:
    name = uuid.uuid4().hex
    result = Result(f"batch_req_{name}", None)
    if isinstance(line, LineError):
        result.error = line
        return result
    result.custom_id = line.custom_id
    status, body = await _answer(state, line, name)
    result.response = LineResponse(status, name, body)
    return result


async def _answer(state: ServerState, line: Line, name: str) -> tuple[int, Any]:
    model, respond = ENDPOINTS[line.url]
    while True:
        try:
            body = validated(model, line.body)
            if getattr(body, "stream", False):
                raise bad_request("A batch cannot be streamed: leave stream out.", "stream")
            return 200, await respond(body, new_context(state, name))
        except OverloadedError as error:
            await asyncio.sleep(error.retry_after)
        except EngineRestartingError:
            await asyncio.sleep(RESTART_SECONDS)
        except Exception as error:
            refusal: ApiError = api_error(error)
            if refusal.status_code == 503:
                raise
            return refusal.status_code, refusal.body()


class _Answered(msgspec.Struct):
    """What a batch's summary takes of an answer; chats and responses name their tokens differently."""

    model: str | None = None
    usage: dict[str, Any] = {}


class _AnsweredLine(msgspec.Struct):
    response: _LineBody | None = None


class _LineBody(msgspec.Struct):
    body: _Answered


def summary(lines: Iterable[bytes]) -> tuple[str | None, ResponseUsage]:
    """The model and the tokens of all answers in a file of results."""
    model, given, cached, written, thought = None, 0, 0, 0, 0
    decoder = msgspec.json.Decoder(_AnsweredLine)
    for raw in lines:
        try:
            line = decoder.decode(raw)
        except msgspec.MsgspecError:
            continue
        if line.response is None:
            continue
        usage, model = line.response.body.usage, line.response.body.model or model
        given += usage.get("prompt_tokens", usage.get("input_tokens", 0))
        written += usage.get("completion_tokens", usage.get("output_tokens", 0))
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        cached += details.get("cached_tokens", 0)
        details = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
        thought += details.get("reasoning_tokens", 0)
    return model, ResponseUsage(
        given, InputTokensDetails(cached), written, OutputTokensDetails(thought), given + written
    )
