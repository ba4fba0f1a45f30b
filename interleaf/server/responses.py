"""`/v1/responses`: answers that are kept, so that a later request can go on from them."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from msgspec import UNSET

from interleaf.outputs import CompletionOutput, RequestOutput
from interleaf.params import RequestOutputKind
from interleaf.server import generation
from interleaf.server.answers import AnswerPlan, Thinking, ToolChoice
from interleaf.server.chat_prompt import chat_prompt
from interleaf.server.clock import now
from interleaf.server.errors import ApiError, api_error, bad_request, validated
from interleaf.server.generation import Context, UsageCounter, context_of, generated
from interleaf.server.logprobs import LogprobWriter
from interleaf.server.protocol.chat import ChatMessage, TemplateFields, Tool
from interleaf.server.protocol.common import ApiModel
from interleaf.server.protocol.responses import (
    ErrorEvent,
    IncompleteDetails,
    InputItem,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseError,
    ResponseEvent,
    ResponseObject,
    ResponseRequest,
    ResponseToolChoice,
    ResponseUsage,
)
from interleaf.server.response_items import ResponseItems, assistant_message
from interleaf.server.response_replay import beginning, rest
from interleaf.server.response_store import StoredResponse
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.state import ServerState, state_of
from interleaf.server.streaming import EventStream, event, json_response, until_gone

if TYPE_CHECKING:
    from interleaf.frontend.tokenizer import Tokenizer

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

REPLAY_PAUSE = 0.1
"""Seconds until it is looked again whether a response is written."""
RESPONSE_ID = re.compile(r"resp_[0-9a-f]{32}")


@router.post("/v1/responses", responses=responses(ResponseObject, stream=True))
async def create_response(body: ResponseRequest, request: Request) -> Response:
    """Answer an input, and keep the answer unless `store` is false."""
    job = await Job.of(body, context_of(request))
    if body.background:
        told = await job.start_in_background()
        return await _replayed(request, job.response_object.id) if body.stream else told
    if body.stream:
        return await EventStream.begin(request.receive, job.events())
    return json_response(await until_gone(request.receive, job.response()))


@router.get("/v1/responses/{response_id}", responses=responses(ResponseObject))
async def retrieve_response(
    response_id: str, request: Request, stream: bool = False, starting_after: Annotated[int, Query()] = -1
) -> Response:
    """A response that was kept, or its events: those behind number `starting_after`, once it is written."""
    if stream:
        return await _replayed(request, response_id, starting_after)
    return json_response((await _stored(state_of(request), response_id)).body)


async def _replayed(request: Request, response_id: str, after: int = -1) -> Response:
    state = state_of(request)

    async def events() -> AsyncGenerator[bytes, None]:
        stored = await _stored(state, response_id)
        # A comment: a stream that has nothing to tell is one all the same.
        yield b":\n\n"
        for data in beginning(stored.body, after):
            yield data
        while _unfinished(stored):
            await asyncio.sleep(REPLAY_PAUSE)
            stored = await _stored(state, response_id)
        for data in rest(stored.body, after):
            yield data

    return await EventStream.begin(request.receive, events())


@router.delete("/v1/responses/{response_id}", responses=responses(media_type="application/json"))
async def delete_response(response_id: str, request: Request) -> Response:
    """Forget a response."""
    state = state_of(request)
    await _stored(state, response_id)
    await state.response_store.delete(response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


@router.post("/v1/responses/{response_id}/cancel", responses=responses(ResponseObject))
async def cancel_response(response_id: str, request: Request) -> Response:
    """End a response that is written in the background."""
    state = state_of(request)
    stored = await _stored(state, response_id)
    if not stored.body["background"]:
        raise bad_request("Only responses that were made with background set to true can be cancelled.", "response_id")
    if not await _cancel(state, response_id):
        await state.peers.ask_others("cancel_response", response_id)
    return json_response((await _stored(state, response_id)).body)


@router.get("/v1/responses/{response_id}/input_items", responses=responses(media_type="application/json"))
async def list_input_items(
    response_id: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[str, Query(pattern="^(asc|desc)$")] = "desc",
    after: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """What a response answers, the last item first."""
    items = (await _stored(state_of(request), response_id)).input_items
    items = items if order == "asc" else items[::-1]
    begin = next((number for number, item in enumerate(items, start=1) if item["id"] == after), 0)
    page = items[begin : begin + limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return json_response({"object": "list", "data": page, "has_more": begin + limit < len(items), **ends})


@router.post("/v1/responses/input_tokens", responses=responses(media_type="application/json"))
async def count_input_tokens(body: ResponseRequest, request: Request) -> Response:
    """How many tokens a request's input has."""
    job = await Job.of(body, context_of(request))
    prompt = await chat_prompt(job.context.state, job._message_fields())
    count = len(prompt["prompt_token_ids"])
    return json_response({"object": "response.input_tokens", "input_tokens": count})


def answer_peers(state: ServerState) -> None:
    """Let the other front ends ask for the responses that this one writes in the background."""

    async def is_written(response_id: str) -> bool:
        return response_id in state.background_responses

    async def cancel(response_id: str) -> bool:
        return await _cancel(state, response_id)

    state.peers.answers |= {"response_is_written": is_written, "cancel_response": cancel}


async def _cancel(state: ServerState, response_id: str) -> bool:
    """End a response that is written in the background here; False if there is none."""
    task = state.background_responses.get(response_id)
    if task is None:
        return False
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return True


async def _stored(state: ServerState, response_id: str, param: str = "response_id") -> StoredResponse:
    """A stored response.

    Raises:
        ApiError: (404) there is none; `param` is the part of the request that named it.
    """
    found = await state.response_store.get(response_id) if RESPONSE_ID.fullmatch(response_id) else None
    if found is not None and _unfinished(found) and response_id not in state.background_responses:
        if await state.peers.ask_others("response_is_written", response_id):
            return found
        # It may have been finished between the two questions.
        found = await state.response_store.get(response_id)
    if found is None:
        raise ApiError(404, f"There is no response {response_id[:200]!r} here.", param, "response_not_found")
    if _unfinished(found) and response_id not in state.background_responses:
        # Its server was ended while it was written.
        found.body.update(status="failed", error={"code": "server_error", "message": "The server was restarted."})
    return found


def _unfinished(stored: StoredResponse) -> bool:
    return stored.body["status"] in ("queued", "in_progress")


@dataclass
class Job:
    """One request: the conversation it goes on with, and the response as it grows.

    Fields:
        messages: of the conversation, without the instructions.
        choice: what it says of tools.
        num_events: that were sent.
        plan: how the answer is read; None until the prompt is known, and where it is told as it is.
        items: of the answer, once it is generated.
    """

    body: ResponseRequest
    context: Context
    messages: list[dict[str, Any]]
    response_object: ResponseObject
    choice: ToolChoice
    counter: UsageCounter = field(default_factory=lambda: UsageCounter(1))
    num_events: int = 0
    plan: AnswerPlan | None = None
    items: ResponseItems = field(init=False)

    @staticmethod
    async def of(body: ResponseRequest, context: Context) -> Job:
        """Check a request, and look up what it goes on from.

        Raises:
            ApiError, RequestError: it is refused.
        """
        body.check_fields()
        model = context.state.check_model(body.model)
        before: list[dict[str, Any]] = []
        if body.previous_response_id is not None:
            previous = await _stored(context.state, body.previous_response_id, "previous_response_id")
            if previous.body["status"] not in ("completed", "incomplete"):
                raise bad_request("The previous response is not complete.", "previous_response_id")
            before = previous.messages
        messages = [*before, *input_messages(body.input)]
        # Never made of the client's id: that may come twice, and one response must not take another's place.
        response = ResponseObject(f"resp_{uuid.uuid4().hex}", now(), model)
        job = Job(body, context, messages, _told_again(response, body), tool_choice_of(body))
        job._message_fields()
        return job

    async def response(self) -> ResponseObject:
        """The whole response."""
        async with aclosing(self._outputs(RequestOutputKind.FINAL_ONLY)) as outputs:
            async for output in outputs:
                [one] = output.outputs
                for _ in (*self.items.begin(), *self.items.follow(one, self._logprobs(one))):
                    pass
                self._finish(one)
        for _ in self.items.end(self.response_object.status):
            pass
        await self._keep()
        return self.response_object

    async def start_in_background(self) -> Response:
        """Keep it as queued, and write it behind this request."""
        state, response = self.context.state, self.response_object
        response.status = "queued"
        await self._keep()
        told = json_response(response)
        state.background_responses[response.id] = state.spawn(self._run_in_background())
        # A task that is cancelled before it has begun could not write down its end.
        await asyncio.sleep(0)
        return told

    async def _run_in_background(self) -> None:
        state, response = self.context.state, self.response_object
        try:
            with state.work():
                await self.response()
        except asyncio.CancelledError:
            response.status = "cancelled"
            await self._keep()
        except Exception as error:
            self._fail(api_error(error))
            await self._keep()
        finally:
            state.background_responses.pop(response.id, None)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The response in pieces."""
        response = self.response_object
        begun = False
        try:
            async with aclosing(self._outputs(RequestOutputKind.DELTA)) as outputs:
                async for output in outputs:
                    if not begun:
                        begun = True
                        yield self._event("response.created", response=response)
                        yield self._event("response.in_progress", response=response)
                        for kind, fields in self.items.begin():
                            yield self._event("response." + kind, **fields)
                    [one] = output.outputs
                    for kind, fields in self.items.follow(one, self._logprobs(one)):
                        yield self._event("response." + kind, **fields)
                    if one.finished:
                        self._finish(one)
            last = [self._event("response." + kind, **fields) for kind, fields in self.items.end(response.status)]
            await self._keep()
        except Exception as error:
            if not begun:
                raise
            told = api_error(error)
            self._fail(told)
            yield self._error_event(told)
            yield self._event("response.failed", response=response)
            return
        for data in last:
            yield data
        yield self._event(f"response.{response.status}", response=response)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self.num_events += 1
        return event(ResponseEvent(kind, self.num_events - 1, **fields), kind)

    def _error_event(self, error: ApiError) -> bytes:
        self.num_events += 1
        return event(ErrorEvent(self.num_events - 1, error.code, error.message, error.param), "error")

    def _message_fields(self) -> TemplateFields:
        """The messages as the template takes them; checks them."""
        instructions = self.body.instructions
        system = [] if instructions is None else [{"role": "system", "content": instructions}]
        tools = [
            validated(Tool, {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)})
            for tool in self.body.tools or ()
        ]
        return TemplateFields.model_construct(
            messages=[validated(ChatMessage, message) for message in [*system, *self.messages]],
            tools=tools if self.body.tool_choice != "none" else None,
            chat_template_kwargs=self.body.chat_template_kwargs,
            reasoning_effort=self.body.reasoning and self.body.reasoning.effort,
        )

    async def _outputs(self, kind: RequestOutputKind) -> AsyncGenerator[RequestOutput, None]:
        fields = self.body.sampling_fields()
        if self.choice.is_forced:
            # A format is for texts, and a forced call is none.
            fields.structured_outputs = None
        defaults = self.context.engine.default_sampling_params()
        params = fields.sampling_params(
            defaults,
            max_tokens=self.body.max_output_tokens or generation.default_max_tokens(defaults),
            logprobs=(self.body.top_logprobs or 0) if self.body.wants_logprobs else None,
            output_kind=kind,
        )
        prompt = await chat_prompt(self.context.state, self._message_fields())
        generation.check_room(self.context, [prompt], params, self.body.max_output_tokens, "max_output_tokens")
        thinking = Thinking(budget=self.body.thinking_token_budget)
        plan = self.context.state.parsers.plan(params, prompt.get("prompt", ""), self.choice, thinking)
        if plan is not None:
            params, self.plan = plan.params, plan
        reader = None if plan is None else plan.reader()
        streamed = kind is RequestOutputKind.DELTA
        self.items = ResponseItems(reader, f"msg_{self.response_object.id[5:]}", streamed)
        self.response_object.status = "in_progress"
        async with aclosing(generated(self.context, fields, [prompt], params, self.response_object.id)) as outputs:
            async for _, output in outputs:
                self.counter.add(0, output)
                yield output

    @property
    def _tokenizer(self) -> Tokenizer:
        return self.context.engine.tokenizer

    def _logprobs(self, one: CompletionOutput) -> list[Any]:
        if not self.body.wants_logprobs or one.logprobs is None:
            return []
        writer = LogprobWriter(self._tokenizer, as_token_ids=False)
        return list(writer.chat(one.token_ids, one.logprobs, self.body.top_logprobs or 0).content)

    def _finish(self, one: CompletionOutput) -> None:
        response, counter = self.response_object, self.counter
        cut_off = one.finish_reason == "length"
        response.status = "incomplete" if cut_off else "completed"
        response.incomplete_details = IncompleteDetails("max_output_tokens") if cut_off else None
        response.completed_at = None if cut_off else now()
        response.output = self.items.items
        reader, plan = self.items.reader, self.plan
        thought = 0 if plan is None or reader is None else plan.num_reasoning_tokens(reader, self._tokenizer)
        response.usage = ResponseUsage(
            counter.prompt_tokens,
            InputTokensDetails(counter.cached_tokens),
            counter.completion_tokens,
            OutputTokensDetails(thought),
            counter.prompt_tokens + counter.completion_tokens,
        )

    def _fail(self, error: ApiError) -> None:
        self.response_object.status = "failed"
        self.response_object.error = ResponseError(error.code or "server_error", error.message)

    async def _keep(self) -> None:
        response = self.response_object
        if self.body.store is False:
            return
        answers = [assistant_message(response.output)] if response.output else []
        given = self.body.input
        items = [{"role": "user", "content": given}] if isinstance(given, str) else [one.model_dump() for one in given]
        await self.context.state.response_store.put(
            StoredResponse(
                response.id,
                msgspec.to_builtins(response),
                [_input_item(item, f"{response.id[5:]}_{number}") for number, item in enumerate(items)],
                [*self.messages, *answers],
            )
        )


def input_messages(given: str | list[InputItem]) -> list[dict[str, Any]]:
    """The messages that an input stands for.

    Raises:
        ApiError: it has items that a text model cannot read.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    thought = ""
    for item in given:
        item.check_fields()
        if item.type == "reasoning":
            thought += "\n".join(str(part.get("text") or "") for part in item.content or () if isinstance(part, dict))
            continue
        message = _input_message(item)
        last = messages[-1] if messages else {}
        if thought and message["role"] == "assistant":
            message["reasoning_content"], thought = thought, ""
        if item.type == "function_call" and last.get("role") == "assistant":
            # Items of one answer are one message.
            last.setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            messages.append(message)
    return messages


def _input_message(item: InputItem) -> dict[str, Any]:
    if item.type in (None, "message"):
        if item.role is None or item.content is None:
            raise bad_request("Each message in input needs a role and content.", "input")
        return {"role": item.role, "content": item.content}
    if item.type == "function_call":
        function = {"name": item.name or "", "arguments": item.arguments or ""}
        call = {"id": item.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if item.type == "function_call_output":
        return {"role": "tool", "tool_call_id": item.call_id, "content": item.output}
    raise bad_request(f"Items of type {item.type[:100]!r} are not taken in input.", "input")


def tool_choice_of(body: ResponseRequest) -> ToolChoice:
    """
    Raises:
        ApiError: it demands a tool that there is not.
    """
    tools: dict[str, Any] = {tool.name or "": tool.parameters or {} for tool in body.tools or ()}
    strict = frozenset(tool.name or "" for tool in body.tools or () if tool.strict)
    choice, parallel = body.tool_choice, body.parallel_tool_calls is not False
    if not isinstance(choice, ResponseToolChoice):
        return ToolChoice(tools, choice or "auto", parallel=parallel, strict=strict)
    if choice.type == "function":
        return ToolChoice(tools, name=choice.name or "", parallel=parallel)
    allowed = {tool.name for tool in choice.tools or ()}
    tools = {name: parameters for name, parameters in tools.items() if name in allowed}
    return ToolChoice(tools, choice.mode or "auto", parallel=parallel, strict=strict & tools.keys())


def _input_item(item: dict[str, Any], name: str) -> dict[str, Any]:
    """An item of the input as it is listed."""
    listed = {"type": "message", "status": "completed", **{k: v for k, v in item.items() if v is not None}}
    listed["id"] = listed.get("id") or f"msg_in_{name}"
    if listed["type"] == "message" and isinstance(listed.get("content"), str):
        kind = "output_text" if listed.get("role") == "assistant" else "input_text"
        listed["content"] = [{"type": kind, "text": listed["content"]}]
    return listed


def _told_again(response: ResponseObject, body: ResponseRequest) -> ResponseObject:
    """The response with the fields of its request that are told again."""
    names = ("instructions", "max_output_tokens", "previous_response_id")
    for name in (*names, "max_tool_calls", "prompt_cache_key", "safety_identifier"):
        setattr(response, name, getattr(body, name))
    response.user = body.user or UNSET
    for name in ("temperature", "top_p", "top_logprobs", "metadata", "store", "background", "parallel_tool_calls"):
        if getattr(body, name) is not None:
            setattr(response, name, getattr(body, name))
    response.tools = [tool.model_dump() for tool in body.tools or ()]
    choice = body.tool_choice
    response.tool_choice = choice.model_dump(exclude_none=True) if isinstance(choice, ApiModel) else choice or "auto"
    if body.text is not None:
        response.text = body.text.model_dump(by_alias=True, exclude_none=True)
    if body.reasoning is not None:
        response.reasoning = {"effort": body.reasoning.effort, "summary": None}
    return response
