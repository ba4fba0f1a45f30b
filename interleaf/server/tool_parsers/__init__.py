"""Parsers of tool calls by name; a plug-in adds its own with `register`.

from interleaf.server.tool_parsers import ToolParser, register

@register("my_model")
class MyParser(ToolParser):
    markers = ("<call>",)

    def read_call(self):
        yield from self.expect("<call>")
        yield from self.read_calls()
        yield from self.expect("</call>")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from interleaf.server.tool_parsers.deepseek import DeepSeekParser
from interleaf.server.tool_parsers.gpt_oss import GptOssParser
from interleaf.server.tool_parsers.granite import GraniteParser
from interleaf.server.tool_parsers.hermes import HermesParser
from interleaf.server.tool_parsers.internlm import InternLmParser
from interleaf.server.tool_parsers.llama3_json import Llama3JsonParser
from interleaf.server.tool_parsers.mistral import MistralParser
from interleaf.server.tool_parsers.parser import ToolParser, Tools
from interleaf.server.tool_parsers.phi4_mini_json import Phi4MiniJsonParser
from interleaf.server.tool_parsers.pythonic import PythonicParser
from interleaf.server.tool_parsers.qwen3_coder import Qwen3CoderParser

__all__ = ["TOOL_PARSERS", "ToolParser", "Tools", "auto_name", "register"]

TOOL_PARSERS: dict[str, type[ToolParser]] = {
    "hermes": HermesParser,
    "llama3_json": Llama3JsonParser,
    "llama4_json": Llama3JsonParser,
    "mistral": MistralParser,
    "qwen3_coder": Qwen3CoderParser,
    "qwen3_xml": Qwen3CoderParser,
    "pythonic": PythonicParser,
    "llama4_pythonic": PythonicParser,
    "deepseek_v3": DeepSeekParser,
    "deepseek_v31": DeepSeekParser,
    "granite": GraniteParser,
    "granite-20b-fc": GraniteParser,
    "internlm": InternLmParser,
    "phi4_mini_json": Phi4MiniJsonParser,
    "gpt-oss": GptOssParser,
    "openai": GptOssParser,
}
"""Names are vLLM's."""

SIGNS: tuple[tuple[str, str], ...] = (
    ("<|channel|>", "gpt-oss"),
    ("[TOOL_CALLS]", "mistral"),
    ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("<function=", "qwen3_coder"),
    ("<|plugin|>", "internlm"),
    ("<|/tool_call|>", "phi4_mini_json"),
    ("functools", "phi4_mini_json"),
    ("<|tool_call|>", "granite"),
    ("<function_call>", "granite"),
    ("<tool_call>", "hermes"),
    ("<|python_start|>", "pythonic"),
    ("func_name1(params_name1=", "pythonic"),
    ('{"name": function name, "parameters":', "llama3_json"),
    ("<|python_tag|>", "llama3_json"),
)
"""Text in a chat template -> the parser for what its models write; the first that is there counts."""

COMMONEST = "hermes"
"""For templates without a sign: its marks are so plain that no other text is taken for a call."""

Parser = TypeVar("Parser", bound=type[ToolParser])


def auto_name(template: str | None) -> str:
    """The parser for the models that a chat template was made for."""
    return next((name for sign, name in SIGNS if sign in (template or "")), COMMONEST)


def register(*names: str) -> Callable[[Parser], Parser]:
    """Make a class known under names, for `--tool-call-parser`; plug-ins decorate with this."""

    def add(parser: Parser) -> Parser:
        TOOL_PARSERS.update(dict.fromkeys(names, parser))
        return parser

    return add
