"""Anthropic's `/v1/messages`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import Field

from interleaf.server.errors import bad_request
from interleaf.server.protocol.chat import MAX_MESSAGES, MAX_TOOLS
from interleaf.server.protocol.common import WITHOUT_EFFECT, ApiModel, FirstMistake, SamplingFields, Texts


class Block(ApiModel):
    """A piece of content; which fields it needs depends on its type."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | Annotated[list[dict[str, Any]], FirstMistake()] | None = None

    without_effect: ClassVar[dict[str, str]] = {
        "cache_control": "every prefix is cached",
        "citations": "none are made",
        "data": "only its maker can read it",
        "is_error": "templates have no place for it",
        "signature": "nothing is signed",
    }


Blocks = Annotated[list[Block], FirstMistake()]


class InputMessage(ApiModel):
    role: Literal["user", "assistant"]
    content: str | Blocks


class ToolDefinition(ApiModel):
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    strict: bool | None = None

    without_effect: ClassVar[dict[str, str]] = {"cache_control": "every prefix is cached"}


class ToolChoice(ApiModel):
    type: Literal["auto", "none", "any", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = False


class Thinking(ApiModel):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1, le=2**31 - 1)

    without_effect: ClassVar[dict[str, str]] = {"display": "reasoning is told as it is"}


class OutputFormat(ApiModel):
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(ApiModel):
    effort: str | None = None
    format: OutputFormat | None = None


class CountTokensRequest(ApiModel):
    model: str | None = None
    messages: Annotated[list[InputMessage], FirstMistake()] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: str | Blocks | None = None
    tools: Annotated[list[ToolDefinition], FirstMistake()] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    without_effect: ClassVar[dict[str, str]] = {**WITHOUT_EFFECT, "cache_control": "every prefix is cached"}

    def check_fields(self) -> None:
        super().check_fields()
        for message in self.messages:
            for block in message.content if isinstance(message.content, list) else ():
                block.check_fields()
        for tool in self.tools or ():
            tool.check_fields()
            if tool.type not in (None, "custom"):
                raise bad_request(f"Tools of type {tool.type[:100]!r} are not run here.", "tools")


class MessagesRequest(CountTokensRequest):
    max_tokens: int = Field(ge=1)
    stream: bool | None = False
    stop_sequences: Texts | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = None
    top_k: int | None = None
    priority: int | None = 0

    def sampling_fields(self) -> SamplingFields:
        """What of it a generation is told."""
        return SamplingFields.model_construct(
            stop=self.stop_sequences,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            priority=self.priority,
            structured_outputs=self._structure(),
        )

    def _structure(self) -> dict[str, Any] | None:
        wanted = self.output_config and self.output_config.format
        return {"json": wanted.json_schema} if wanted else None


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any] = {}


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct):
    """`input_tokens` are those that were not in the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class MessageResponse(msgspec.Struct):
    id: str
    model: str
    content: list[ContentBlock]
    usage: MessageUsage
    stop_reason: str | None = None
    stop_sequence: str | None = None
    role: str = "assistant"
    type: str = "message"


class TokenCount(msgspec.Struct):
    input_tokens: int
