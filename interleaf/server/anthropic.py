"""`POST /v1/messages` and `/v1/messages/count_tokens`, as Anthropic's clients call them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from interleaf.frontend.processor import PromptDict
from interleaf.outputs import CompletionOutput, RequestOutput
from interleaf.params import RequestOutputKind
from interleaf.server.answers import Thinking, ToolChoice
from interleaf.server.chat_prompt import chat_prompt
from interleaf.server.errors import api_error, bad_request, validated
from interleaf.server.generation import Context, UsageCounter, context_of, generated
from interleaf.server.message_blocks import MessageBlocks
from interleaf.server.protocol.anthropic import (
    Block,
    CountTokensRequest,
    InputMessage,
    MessageResponse,
    MessagesRequest,
    MessageUsage,
    TokenCount,
)
from interleaf.server.protocol.chat import TemplateFields
from interleaf.server.routing import ANTHROPIC_ERROR_SCHEMA, JsonRoute, responses
from interleaf.server.state import ServerState, state_of
from interleaf.server.streaming import EventStream, event, json_response, until_gone

OWN_PLACES = ("tool_result", "tool_use", "thinking", "redacted_thinking")
"""Types of blocks that are no part of a message's text."""

router = APIRouter(route_class=JsonRoute, tags=["Anthropic"])


@router.post("/v1/messages", responses=responses(MessageResponse, stream=True, error_schema=ANTHROPIC_ERROR_SCHEMA))
async def create_message(body: MessagesRequest, request: Request) -> Response:
    """Answer a conversation."""
    job = Job.of(body, context_of(request))
    if body.stream:
        return await EventStream.begin(request.receive, job.events())
    return json_response(await until_gone(request.receive, job.response()))


@router.post("/v1/messages/count_tokens", responses=responses(TokenCount, error_schema=ANTHROPIC_ERROR_SCHEMA))
async def count_tokens(body: CountTokensRequest, request: Request) -> Response:
    """How many tokens a conversation has."""
    body.check_fields()
    state = state_of(request)
    state.check_model(body.model)
    prompt = await _prompt(state, body)
    return json_response(TokenCount(len(prompt["prompt_token_ids"])))


@dataclass
class Job:
    """One request.

    Fields:
        blocks: of the answer, once it is generated.
    """

    body: MessagesRequest
    context: Context
    message: MessageResponse
    choice: ToolChoice
    counter: UsageCounter = field(default_factory=lambda: UsageCounter(1))
    blocks: MessageBlocks = field(init=False)

    @staticmethod
    def of(body: MessagesRequest, context: Context) -> Job:
        """Check a request.

        Raises:
            ApiError: it is refused.
        """
        body.check_fields()
        model = context.state.check_model(body.model)
        if body.thinking is not None and body.thinking.type == "enabled" and context.state.parsers.reasoning is None:
            raise bad_request("thinking is not supported by this model.", "thinking")
        message = MessageResponse(f"msg_{context.request_id}", model, [], MessageUsage(0, 0, 0))
        return Job(body, context, message, _tool_choice(body))

    async def response(self) -> MessageResponse:
        """The whole response."""
        async with aclosing(self._outputs(RequestOutputKind.FINAL_ONLY)) as outputs:
            async for output in outputs:
                [one] = output.outputs
                for _ in (*self.blocks.begin(), *self.blocks.follow(one)):
                    pass
                self._finish(one)
        self.message.content = self.blocks.blocks
        self.message.usage = self._usage()
        return self.message

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The response in pieces."""
        begun = False
        try:
            async with aclosing(self._outputs(RequestOutputKind.DELTA)) as outputs:
                async for output in outputs:
                    if not begun:
                        begun = True
                        usage = self._usage()
                        usage.output_tokens = 0
                        self.message.usage = usage
                        yield _event("message_start", message=self.message)
                        for kind, fields in self.blocks.begin():
                            yield _event(kind, **fields)
                    [one] = output.outputs
                    for kind, fields in self.blocks.follow(one):
                        yield _event(kind, **fields)
                    self._finish(one)
        except Exception as error:
            if not begun:
                raise
            yield event(api_error(error).body(anthropic=True), "error")
            return
        ended = {"stop_reason": self.message.stop_reason, "stop_sequence": self.message.stop_sequence}
        yield _event("message_delta", delta=ended, usage=self._usage())
        yield _event("message_stop")

    async def _outputs(self, kind: RequestOutputKind) -> AsyncGenerator[RequestOutput, None]:
        fields = self.body.sampling_fields()
        params = fields.sampling_params(
            self.context.engine.default_sampling_params(), max_tokens=self.body.max_tokens, output_kind=kind
        )
        prompt = await _prompt(self.context.state, self.body)
        self._check_room(len(prompt["prompt_token_ids"]))
        plan = self.context.state.parsers.plan(params, prompt.get("prompt", ""), self.choice, _thinking(self.body))
        if plan is not None:
            params = plan.params
        self.blocks = MessageBlocks(None if plan is None else plan.reader(), kind is RequestOutputKind.DELTA)
        async with aclosing(generated(self.context, fields, [prompt], params, self.message.id)) as outputs:
            async for _, output in outputs:
                self.counter.add(0, output)
                yield output

    def _check_room(self, length: int) -> None:
        """See whether `max_tokens` fits behind the prompt; clients look for Anthropic's words.

        Raises:
            ApiError: it doesn't.
        """
        asked, most = self.body.max_tokens, self.context.engine.config.scheduler.max_model_len
        # A prompt that leaves no room at all is refused for what it is.
        if length < most < length + asked:
            raise bad_request(
                f"input length and `max_tokens` exceed context limit: {length} + {asked} > {most}, decrease input "
                f"length or `max_tokens` and try again",
                "max_tokens",
            )

    def _finish(self, one: CompletionOutput) -> None:
        if one.finish_reason == "length":
            self.message.stop_reason = "max_tokens"
        elif isinstance(one.stop_reason, str):
            self.message.stop_reason, self.message.stop_sequence = "stop_sequence", one.stop_reason
        elif one.finished:
            self.message.stop_reason = "tool_use" if self.blocks.has_calls else "end_turn"

    def _usage(self) -> MessageUsage:
        counter = self.counter
        return MessageUsage(
            counter.prompt_tokens - counter.cached_tokens, counter.completion_tokens, counter.cached_tokens
        )


def _tool_choice(body: MessagesRequest) -> ToolChoice:
    """
    Raises:
        ApiError: it demands a tool that there is not.
    """
    tools: dict[str, Any] = {tool.name: tool.input_schema or {} for tool in body.tools or ()}
    strict = frozenset(tool.name for tool in body.tools or () if tool.strict)
    choice = body.tool_choice
    if choice is None:
        return ToolChoice(tools, strict=strict)
    mode = "required" if choice.type == "any" else "none" if choice.type == "none" else "auto"
    name = choice.name or "" if choice.type == "tool" else None
    return ToolChoice(tools, mode, name, not choice.disable_parallel_tool_use, strict)


def _thinking(body: MessagesRequest) -> Thinking:
    asked = body.thinking
    last = body.messages[-1]
    continued = last.content if last.role == "assistant" and isinstance(last.content, str) else None
    if asked is None:
        return Thinking(continued=continued)
    return Thinking(asked.type != "disabled", asked.budget_tokens, continued)


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


async def _prompt(state: ServerState, body: CountTokensRequest) -> PromptDict:
    """The prompt of a conversation; a last message of the assistant's is continued."""
    messages = [] if body.system is None else [{"role": "system", "content": _text(body.system)}]
    for message in body.messages:
        messages += _messages(message)
    tools = [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.input_schema},
        }
        for tool in body.tools or ()
    ]
    prefilled = body.messages[-1].role == "assistant"
    fields: dict[str, Any] = {
        "messages": messages,
        "tools": tools or None,
        "add_generation_prompt": not prefilled,
        "continue_final_message": prefilled,
        "reasoning_effort": body.output_config and body.output_config.effort,
    }
    if body.thinking is not None and body.thinking.type != "adaptive":
        fields["chat_template_kwargs"] = {"enable_thinking": body.thinking.type == "enabled"}
    with_tools = body.tool_choice is None or body.tool_choice.type != "none"
    return await chat_prompt(state, validated(TemplateFields, fields), with_tools)


def _messages(message: InputMessage) -> list[dict[str, Any]]:
    """The messages, in OpenAI's form, that one of Anthropic's stands for: results of tools are their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)}
        for block in message.content
        if block.type == "tool_result"
    ]
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name or "", "arguments": msgspec.json.encode(block.input or {}).decode()},
        }
        for block in message.content
        if block.type == "tool_use"
    ]
    thoughts = [block.thinking for block in message.content if block.type == "thinking" and block.thinking]
    rest = [block for block in message.content if block.type not in OWN_PLACES]
    spoken: list[dict[str, Any]] = []
    if rest or calls or not results:
        spoken = [{"role": message.role, "content": _text(rest)}]
        if calls:
            spoken[0]["tool_calls"] = calls
        if thoughts:
            spoken[0]["reasoning_content"] = "\n".join(thoughts)
    return [*results, *spoken]


def _text(content: str | list[Block]) -> str:
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text" or block.text is None:
            raise bad_request(
                f"This model reads text only: blocks of type {block.type[:100]!r} are not taken.", "messages"
            )
    return "\n".join(block.text or "" for block in content)


def _result(block: Block) -> str:
    if isinstance(block.content, list):
        return _text([validated(Block, part) for part in block.content])
    return block.content or ""
