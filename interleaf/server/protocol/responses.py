"""`/v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field

from interleaf.server.errors import bad_request
from interleaf.server.protocol.chat import MAX_TOOLS
from interleaf.server.protocol.common import WITHOUT_EFFECT, ApiModel, FirstMistake, SamplingFields, Texts

MAX_ITEMS = 10_000
Parts = Annotated[list[dict[str, Any]], FirstMistake()]
LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = frozenset({LOGPROBS, "reasoning.encrypted_content"})
"""The latter is never there: reasoning is told as it is."""


class InputItem(ApiModel):
    """One item of the input; which fields it needs depends on its type."""

    type: str | None = None
    role: str | None = Field(None, max_length=100)
    content: str | Parts | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | Parts | None = None
    summary: Parts | None = None

    without_effect: ClassVar[dict[str, str]] = dict.fromkeys(
        ("id", "status", "phase", "encrypted_content"), "it changes nothing"
    )


class FunctionTool(ApiModel):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseToolChoice(ApiModel):
    """A tool by its name, or a choice among some of the tools."""

    type: Literal["function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[FunctionTool], FirstMistake()] | None = Field(None, max_length=MAX_TOOLS)


class TextFormat(ApiModel):
    """As in chats, but for the schema, which stands here itself."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = Field(None, max_length=1000)
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(ApiModel):
    format: TextFormat | None = None


class Reasoning(ApiModel):
    effort: str | None = None

    without_effect: ClassVar[dict[str, str]] = dict.fromkeys(("summary", "generate_summary"), "nothing is summed up")


class ResponseRequest(ApiModel):
    model: str | None = None
    input: str | Annotated[list[InputItem], FirstMistake()] = Field(default=[])
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Texts | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    store: bool | None = True
    background: bool | None = False
    metadata: dict[str, str] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], FirstMistake()] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = True
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = "disabled"
    user: str | None = None
    max_tool_calls: int | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | Texts | None = None
    ignore_eos: bool | None = None
    priority: int | None = 0
    cache_salt: str | None = Field(None, min_length=1)
    chat_template_kwargs: dict[str, Any] | None = None
    thinking_token_budget: int | None = Field(None, ge=0, le=2**31 - 1)

    without_effect: ClassVar[dict[str, str]] = {**WITHOUT_EFFECT, "max_tool_calls": "no tool is run here"}

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def sampling_fields(self) -> SamplingFields:
        """What of it a generation is told."""
        names = SamplingFields.model_fields.keys() & type(self).model_fields.keys() - {"stream_options"}
        fields = SamplingFields.model_construct(**{name: getattr(self, name) for name in names})
        wanted = self.text and self.text.format
        if wanted and wanted.type != "text":
            schema = wanted.json_schema if wanted.type == "json_schema" else None
            fields.structured_outputs = {"json_object": True} if schema is None else {"json": schema}
        return fields

    def check_fields(self) -> None:
        super().check_fields()
        unsupported = {
            "truncation": self.truncation == "auto",
            "tools": any(tool.type != "function" for tool in self.tools or ()),
            "include": not INCLUDABLE.issuperset(self.include or ()),
            "conversation": bool((self.model_extra or {}).get("conversation")),
            "prompt": bool((self.model_extra or {}).get("prompt")),
        }
        for name, asked in unsupported.items():
            if asked:
                raise bad_request(f"This value of {name} is not supported here.", name, "unsupported_parameter")
        if any(not tool.name for tool in self.tools or ()):
            raise bad_request("Each function in tools needs a name.", "tools")
        if self.background and self.store is False:
            raise bad_request("background needs store set to true.", "background")
        if self.stream_options and not self.stream:
            raise bad_request("stream_options are only for requests with stream set to true.", "stream_options")
        if self.top_logprobs and not self.wants_logprobs:
            raise bad_request(f'top_logprobs needs "{LOGPROBS}" in include.', "top_logprobs")
        if not self.input:
            raise bad_request("input must not be empty.", "input")
        if len(self.input) > MAX_ITEMS and not isinstance(self.input, str):
            raise bad_request(f"input has more than {MAX_ITEMS} items.", "input")


class InputTokensDetails(msgspec.Struct):
    """Writing into the prefix cache costs nothing, so it is not counted."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


class OutputMessage(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    status: str
    content: list[OutputText]
    role: str = "assistant"


class OutputReasoning(msgspec.Struct, tag_field="type", tag="reasoning"):
    id: str
    status: str
    content: list[ReasoningText]
    summary: list[Any] = []


class OutputCall(msgspec.Struct, tag_field="type", tag="function_call"):
    id: str
    status: str
    call_id: str
    name: str
    arguments: str = ""


OutputItem = OutputMessage | OutputReasoning | OutputCall


class ResponseError(msgspec.Struct):
    code: str
    message: str


class IncompleteDetails(msgspec.Struct):
    reason: str


class ResponseObject(msgspec.Struct):
    """A response as it is now; the fields of its request are told again."""

    id: str
    created_at: int
    model: str
    status: str = "in_progress"
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[OutputItem] = []
    usage: ResponseUsage | UnsetType = UNSET
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = {}
    background: bool = False
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: dict[str, str | None] = msgspec.field(default_factory=lambda: {"effort": None, "summary": None})
    store: bool = True
    temperature: float = 1.0
    text: dict[str, Any] = msgspec.field(default_factory=lambda: {"format": {"type": "text"}})
    tool_choice: Any = "auto"
    tools: list[Any] = []
    top_logprobs: int = 0
    top_p: float = 1.0
    truncation: str = "disabled"
    user: str | UnsetType = UNSET
    max_tool_calls: int | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str = "default"
    object: str = "response"


class ResponseEvent(msgspec.Struct):
    """One event of a stream; which fields it has depends on its type."""

    type: str
    sequence_number: int
    response: ResponseObject | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    part: OutputText | ReasoningText | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[Any] | UnsetType = UNSET


class ErrorEvent(msgspec.Struct):
    sequence_number: int
    code: str | None
    message: str
    param: str | None
    type: str = "error"
