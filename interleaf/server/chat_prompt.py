"""From messages to a prompt, for every endpoint that takes messages."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from pathlib import Path
from typing import Any

import msgspec

from interleaf.errors import ConfigError, RequestError
from interleaf.frontend.processor import PromptDict
from interleaf.server.errors import bad_request
from interleaf.server.generation import INLINE_CHARS, tokenized
from interleaf.server.protocol.chat import ChatMessage, TemplateFields
from interleaf.server.state import ServerState

RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"}
)
"""Names in `chat_template_kwargs` that would take the place of other fields."""


async def chat_prompt(state: ServerState, body: TemplateFields, with_tools: bool = True) -> PromptDict:
    """The prompt that the template makes of a request's messages.

    Raises:
        ApiError, RequestError: the messages or the template are refused.
    """
    body_size = sum(len(message.content or "") for message in body.messages)
    if body_size <= INLINE_CHARS:
        prompt = _render(state, body, with_tools)
    else:
        prompt = await asyncio.to_thread(_render, state, body, with_tools)
    if body.add_special_tokens:
        return await tokenized(state.engine, prompt["prompt"], True)
    return prompt


def _render(state: ServerState, body: TemplateFields, with_tools: bool) -> PromptDict:
    messages = [message_dict(message) for message in body.messages]
    try:
        return _rendered(state, body, with_tools, messages)
    except RequestError:
        # Some templates (DeepSeek's) put arguments behind a text, which must then be text as well.
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        if not calls:
            raise
        for call in calls:
            call["function"]["arguments"] = msgspec.json.encode(call["function"]["arguments"]).decode()
        return _rendered(state, body, with_tools, messages)


def _rendered(state: ServerState, body: TemplateFields, with_tools: bool, messages: list[dict[str, Any]]) -> PromptDict:
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []] if with_tools else []
    return state.engine.processor.render_chat(
        messages,
        chat_template=_template(state, body.chat_template),
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        tools=tools or None,
        chat_template_kwargs={**(state.options.default_chat_template_kwargs or {}), **_template_variables(body)},
    )


def _template(state: ServerState, asked: str | None) -> str | None:
    if asked is None:
        return state.options.chat_template
    if asked in state.engine.tokenizer.chat_templates or state.options.trust_request_chat_template:
        return asked
    raise bad_request(
        "chat_template of a request is a program, which this server runs only if it was started with "
        "--trust-request-chat-template.",
        "chat_template",
    )


def _template_variables(body: TemplateFields) -> dict[str, Any]:
    given = body.chat_template_kwargs or {}
    reserved = sorted(RESERVED & given.keys())
    if reserved:
        raise bad_request(
            f"chat_template_kwargs must not have {reserved[0]!r}, which is a field of its own or fixed.",
            "chat_template_kwargs",
        )
    own: dict[str, Any] = {"documents": body.documents, "reasoning_effort": body.reasoning_effort}
    if body.reasoning_effort == "none":
        own["enable_thinking"] = False
    return {**{name: value for name, value in own.items() if value is not None}, **given}


def template_text(given: str | None, names: Container[str]) -> str | None:
    """A chat template that the server was started with: Jinja text, the name of one of the model's, or a file.

    Args:
        names: of the model's templates.

    Raises:
        ConfigError: it is none of them.
    """
    if given is None or "{" in given or given in names:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The chat template {given!r} is no Jinja text, no template of the model and no file that can be read "
            f"({getattr(error, 'strerror', None) or error})."
        ) from None


def message_dict(message: ChatMessage) -> dict[str, Any]:
    """A message as templates expect it: calls with parsed arguments, content of text parts only."""
    plain = message.model_dump(exclude_none=True)
    content = message.content
    if isinstance(content, list):
        plain["content"] = [_text_part(part.type, part.text, part.refusal) for part in content]
    elif content is None:
        plain["content"] = ""
    reasoning = message.reasoning or message.reasoning_content
    if reasoning:
        # Templates know it by one name or the other.
        plain["reasoning"] = plain["reasoning_content"] = reasoning
    for call in plain.get("tool_calls", ()):
        call["function"]["arguments"] = _arguments(call["function"]["arguments"])
    return plain


def _text_part(kind: str, text: str | None, refusal: str | None) -> dict[str, str]:
    words = refusal if kind == "refusal" else text
    if kind not in ("text", "input_text", "output_text", "refusal") or words is None:
        raise bad_request(
            f"This model reads text only: content parts of type {kind[:100]!r} are not taken.", "messages"
        )
    return {"type": "text", "text": words}


def _arguments(text: str) -> Any:
    if not text:
        return {}
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise bad_request("The arguments of a message's tool call are not valid JSON.", "messages") from None
