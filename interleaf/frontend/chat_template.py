"""Chat templates: Jinja in a sandbox, with the functions and filters that model makers rely on.

A template comes from a checkpoint, so it is data: it runs in Jinja's immutable sandbox, sees only
what it is given, and its output is capped.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from interleaf.errors import RequestError

if TYPE_CHECKING:
    import jinja2
    import jinja2.nodes
    import jinja2.parser

MAX_TEMPLATE_CHARS = 1_000_000
MAX_OUTPUT_CHARS = 32_000_000

CONTINUE_MARK = "\ue000CONTINUE\ue001"
"""Put behind the message to continue, with a space behind it: a template that trims messages takes the space."""


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Write a chat as text.

    Args:
        template: Jinja text.
        messages: dicts with a role and content; not changed.
        tools: JSON schemas of functions.
        add_generation_prompt: end with the start of an assistant's message.
        continue_final_message: end within the last message.
        variables: what else the template may read, such as the special tokens.

    Raises:
        RequestError: the template is broken, refuses the messages, or writes without end.
    """
    if not messages:
        raise RequestError("messages must not be empty.", "messages")
    if continue_final_message and add_generation_prompt:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other: set one of them to false.",
            "continue_final_message",
        )
    chat = _mark_final_message(messages) if continue_final_message else list(messages)
    text = _render(
        compile_template(template),
        {
            "documents": None,
            **(variables or {}),
            "messages": chat,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        },
    )
    return _cut_at_mark(text) if continue_final_message else text


@lru_cache(maxsize=32)
def compile_template(template: str) -> jinja2.Template:
    """Parse and compile a template; the last few are kept.

    Raises:
        RequestError: it is too long or not well-formed.
    """
    import jinja2

    if len(template) > MAX_TEMPLATE_CHARS:
        raise RequestError(f"The chat template is longer than {MAX_TEMPLATE_CHARS} characters.", "chat_template")
    try:
        return _environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise RequestError(
            f"The chat template is not well-formed at line {error.lineno}: {_sentence(error)}", "chat_template"
        ) from None
    except (RecursionError, jinja2.TemplateError, ValueError, OverflowError, MemoryError) as error:
        raise RequestError(f"The chat template cannot be compiled: {_sentence(error)}", "chat_template") from None


def _render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    pieces = []
    left = MAX_OUTPUT_CHARS
    try:
        for piece in template.generate(variables):
            left -= len(piece)
            if left < 0:
                raise RequestError(f"The chat template wrote more than {MAX_OUTPUT_CHARS} characters.", "messages")
            pieces.append(piece)
    except RequestError:
        raise
    except Exception as error:
        # A template is a program: what it makes of unexpected messages can raise anything.
        raise RequestError(f"The chat template does not take these messages: {_sentence(error)}", "messages") from None
    return "".join(pieces)


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:500].rstrip(".") + "."


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """Jinja as Transformers sets it up, since templates are written against that."""
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; here it changes nothing."""

        tags = {"generation"}

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which no model has seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(pattern)


def _mark_final_message(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A copy of the messages in which the last text has the mark behind it."""
    final = copy.deepcopy(dict(messages[-1]))
    content = final.get("content")
    if isinstance(content, str):
        final["content"] = content + CONTINUE_MARK + " "
        return [*messages[:-1], final]
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            part["text"] += CONTINUE_MARK + " "
            return [*messages[:-1], final]
    raise RequestError("continue_final_message needs a last message with text in it.", "messages")


def _cut_at_mark(text: str) -> str:
    """The text up to the mark."""
    before, mark, behind = text.rpartition(CONTINUE_MARK)
    if not mark:
        raise RequestError("The chat template leaves the last message out, so it cannot be continued.", "messages")
    return before if behind.startswith(" ") else before.rstrip()
