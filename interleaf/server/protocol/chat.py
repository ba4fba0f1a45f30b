"""`/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field

from interleaf.server.errors import bad_request
from interleaf.server.protocol.common import (
    ApiModel,
    FirstMistake,
    Metadata,
    PromptLogprobsField,
    SamplingFields,
    Texts,
    Usage,
)

MAX_MESSAGES = 10_000
MAX_TOOLS = 1_000


class ContentPart(ApiModel):
    """A piece of a message; text is the only kind that is taken."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(ApiModel):
    name: str
    arguments: str = ""


class ToolCall(ApiModel):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(ApiModel):
    role: str = Field(min_length=1, max_length=100)
    content: str | Annotated[list[ContentPart], FirstMistake()] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], FirstMistake()] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class FunctionDefinition(ApiModel):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(ApiModel):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(ApiModel):
    name: str


class NamedToolChoice(ApiModel):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(ApiModel):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedToolChoice], FirstMistake()] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedToolsChoice(ApiModel):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class TemplateFields(ApiModel):
    """How messages become a prompt."""

    messages: Annotated[list[ChatMessage], FirstMistake()] = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: Annotated[list[Tool], FirstMistake()] | None = Field(None, max_length=MAX_TOOLS)
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False
    add_special_tokens: bool | None = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Annotated[list[dict[str, Any]], FirstMistake()] | None = None
    reasoning_effort: str | None = None


class ChatCompletionRequest(SamplingFields, TemplateFields):
    logprobs: bool | None = False
    top_logprobs: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolsChoice | None = None
    parallel_tool_calls: bool | None = True
    include_reasoning: bool | None = True
    thinking_token_budget: int | None = Field(None, ge=0, le=2**31 - 1)
    max_thinking_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    modalities: Texts | None = None
    store: bool | None = False
    metadata: Metadata | None = None
    user: str | None = None
    echo: bool | None = False

    def check_fields(self) -> None:
        super().check_fields()
        if self.modalities not in (None, ["text"]):
            raise bad_request('modalities must be ["text"].', "modalities", "unsupported_parameter")
        if self.top_logprobs is not None:
            if self.top_logprobs < 0:
                raise bad_request("top_logprobs must be at least 0.", "top_logprobs")
            if self.top_logprobs and not self.logprobs:
                raise bad_request("top_logprobs needs logprobs set to true.", "top_logprobs")


class ChatUpdate(ApiModel):
    """What can be changed of a chat that is kept."""

    metadata: Metadata | None


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(msgspec.Struct):
    """In a stream, a piece of one: its name comes once."""

    arguments: str
    name: str | UnsetType = UNSET


class AnswerCall(msgspec.Struct):
    id: str
    function: CalledFunction
    type: str = "function"


class AnswerMessage(msgspec.Struct):
    """`reasoning` is what vLLM calls it, `reasoning_content` what others do; they are there if the model may reason."""

    role: str
    content: str | None
    refusal: str | None = None
    annotations: list[Any] = []
    tool_calls: list[AnswerCall] | UnsetType = UNSET
    reasoning: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET


class ChatResponse(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobsField | UnsetType = UNSET
    object: str = "chat.completion"
    service_tier: str = "default"


class ChatList(msgspec.Struct):
    data: list[ChatResponse]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class ChatDeleted(msgspec.Struct):
    id: str
    deleted: bool = True
    object: str = "chat.completion.deleted"


class StoredMessage(msgspec.Struct):
    """A message of a request; `content_parts` are there where its content came in parts."""

    id: str
    role: str
    content: str | None
    content_parts: list[dict[str, str]] | None = None
    name: str | None = None
    refusal: None = None


class StoredMessageList(msgspec.Struct):
    data: list[StoredMessage]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class CallDelta(msgspec.Struct):
    """A piece of a call; `id` and `type` come with the first one."""

    index: int
    function: CalledFunction
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class Delta(msgspec.Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    object: str = "chat.completion.chunk"
    service_tier: str = "default"
