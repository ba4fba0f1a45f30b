"""From a checked request to the engine: prompts, ids, limits, usage. All endpoints that generate use it."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from msgspec import UNSET
from starlette.requests import Request

from interleaf.frontend.processor import PromptDict
from interleaf.frontend.tracing import TRACE_HEADERS
from interleaf.outputs import RequestOutput
from interleaf.params import RequestParams, SamplingParams
from interleaf.server.engine import Engine
from interleaf.server.errors import ApiError, bad_request
from interleaf.server.protocol.common import (
    CompletionTokensDetails,
    PromptTokensDetails,
    RequestFields,
    SamplingFields,
    Usage,
)
from interleaf.server.state import ServerState, state_of
from interleaf.server.streaming import merged

TIMEOUT_HEADER = "X-Request-Timeout"
"""Seconds that the client gives its request."""
RESTART_PATIENCE = 15.0
"""Seconds that a new request waits for an engine that is being restarted, before it is refused with 503."""
INLINE_CHARS = 10_000
"""Longer texts are tokenized in a thread, so that other streams go on meanwhile."""


@dataclass(frozen=True, slots=True)
class Context:
    """A request besides its body.

    Fields:
        request_id: the client's, or a made one; unique only if the client's are.
        timeout: seconds from the start of the generation; None is no limit.
        trace_headers: those that name the parent of its span.
    """

    state: ServerState
    request_id: str
    timeout: float | None = None
    trace_headers: Mapping[str, str] | None = None

    @property
    def engine(self) -> Engine:
        return self.state.engine


def context_of(request: Request) -> Context:
    """The context of an HTTP request."""
    trace_headers = {name: request.headers[name] for name in TRACE_HEADERS if name in request.headers}
    context = replace(new_context(state_of(request), request.state.request_id), trace_headers=trace_headers)
    asked = request.headers.get(TIMEOUT_HEADER)
    if asked is None:
        return context
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise bad_request(f"The header {TIMEOUT_HEADER} must be a number of seconds.", TIMEOUT_HEADER)
    return replace(context, timeout=min(seconds, context.timeout or math.inf))


def new_context(state: ServerState, request_id: str | None = None) -> Context:
    """A context for work that begins now."""
    return Context(state, request_id or uuid.uuid4().hex, state.options.request_timeout)


@dataclass(slots=True)
class UsageCounter:
    """Adds up the tokens of a request's prompts.

    Fields:
        reasoning_tokens: None for a model that does not reason.
    """

    num_prompts: int
    completion_tokens: int = 0
    reasoning_tokens: int | None = None
    _prompt_tokens: dict[int, int] = field(default_factory=dict)
    _cached_tokens: dict[int, int] = field(default_factory=dict)

    def add(self, prompt_index: int, output: RequestOutput) -> None:
        """Count what an output says of its prompt, and the tokens in it."""
        self._prompt_tokens[prompt_index] = len(output.prompt_token_ids)
        self._cached_tokens[prompt_index] = output.num_cached_tokens
        self.completion_tokens += sum(len(one.token_ids) for one in output.outputs)

    @property
    def prompt_tokens(self) -> int:
        return sum(self._prompt_tokens.values())

    @property
    def cached_tokens(self) -> int:
        return sum(self._cached_tokens.values())

    def usage(self) -> Usage:
        prompt = self.prompt_tokens
        reasoning = self.reasoning_tokens
        return Usage(
            prompt,
            self.completion_tokens,
            prompt + self.completion_tokens,
            PromptTokensDetails(self.cached_tokens),
            UNSET if reasoning is None else CompletionTokensDetails(reasoning),
        )


async def tokenized(engine: Engine, prompt: str | Sequence[int], add_special_tokens: bool) -> PromptDict:
    """A prompt with its token ids."""
    if not isinstance(prompt, str):
        return {"prompt_token_ids": list(prompt)}
    if len(prompt) <= INLINE_CHARS:
        token_ids = engine.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
    else:
        token_ids = await asyncio.to_thread(engine.tokenizer.encode, prompt, add_special_tokens)
    return {"prompt": prompt, "prompt_token_ids": token_ids}


def check_room(
    context: Context, prompts: Sequence[PromptDict], params: SamplingParams, asked: int | None, field: str
) -> None:
    """See whether the tokens that a client asks for fit behind its prompts.

    `LLM` takes a `max_tokens` that is too large for "up to the end of the context", as in Python it often is a
    constant; clients of the API would rather be told, as OpenAI and vLLM do.

    Args:
        asked: what the client says; None if it leaves it to us.
        field: where it says so.

    Raises:
        ApiError: they don't.
    """
    if asked is None:
        return
    most = context.engine.config.scheduler.max_model_len
    cut = params.truncate_prompt_tokens
    for prompt in prompts:
        length = len(prompt["prompt_token_ids"])
        if cut is not None:
            length = min(length, most - asked if cut == -1 else cut)
        # A prompt that leaves no room at all is refused for what it is.
        if length < most and not asked <= most - max(length, 1):
            raise bad_request(
                f"{field} is too large: {asked}. This model's maximum context length is {most} tokens, and your "
                f"request has {length} input tokens ({asked} > {most} - {length}).",
                field,
                "invalid_value",
            )


async def generated(
    context: Context, body: RequestFields, prompts: Sequence[PromptDict], params: RequestParams, request_id: str
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """Outputs of all prompts as they come, each with its prompt's number."""
    priority = body.priority or 0
    if priority and context.engine.config.scheduler.policy != "priority":
        raise bad_request("priority needs a server that was started with --scheduling-policy priority.", "priority")
    streams = [
        context.engine.generate(
            prompt,
            params,
            request_id if len(prompts) == 1 else f"{request_id}-{number}",
            priority=priority,
            cache_salt=body.cache_salt,
            deadline=context.timeout,
            wait_for_restart=RESTART_PATIENCE,
            trace_headers=context.trace_headers,
        )
        for number, prompt in enumerate(prompts)
    ]
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for output in only:
                check_finish(output)
                yield 0, output
        return
    async with aclosing(merged(streams)) as outputs:
        async for number, output in outputs:
            check_finish(output)
            yield number, output


def check_finish(output: RequestOutput) -> None:
    """Raise for a sequence that did not end by itself.

    Raises:
        ApiError: it was broken off, by the engine or by its time limit.
    """
    for one in output.outputs:
        if one.finish_reason == "error":
            raise ApiError(500, "The engine failed on this request.", code="internal_error")
        if one.finish_reason == "abort":
            raise ApiError(503, "The request was ended before its answer was complete.", code="aborted")


def tokens_as_ids(context: Context, body: SamplingFields) -> bool:
    """Whether logprobs tell tokens by their ids."""
    asked = body.return_tokens_as_token_ids
    return context.state.options.return_tokens_as_token_ids if asked is None else asked


def default_max_tokens(defaults: SamplingParams) -> int | None:
    """The limit that the checkpoint sets for answers, if it sets one."""
    return None if defaults.max_tokens == SamplingParams().max_tokens else defaults.max_tokens


def identifier(prefix: str, context: Context, body: RequestFields) -> str:
    """The id of a response: made of the id that the request brings."""
    return f"{prefix}-{body.request_id or context.request_id}"
