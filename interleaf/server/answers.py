"""How the answers to a request are read: which parsers there are, and what they need of the engine.

A request without tools, to a model that does not reason, has no `AnswerPlan`, and its text is told as it is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from interleaf.errors import ConfigError
from interleaf.frontend.reasoning_families import family_of
from interleaf.params import SamplingParams
from interleaf.reasoning import ReasoningMarkers
from interleaf.server.answer_reader import AnswerReader
from interleaf.server.errors import bad_request
from interleaf.server.options import ServerOptions
from interleaf.server.reasoning_parsers import REASONING_PARSERS, ReasoningKind
from interleaf.server.tool_parsers import TOOL_PARSERS, ToolParser, Tools, auto_name
from interleaf.server.tool_parsers.forced import (
    NamedCallParser,
    RequiredCallsParser,
    required_grammar,
)
from interleaf.server.tool_parsers.strict import StrictCalls, arguments_schema
from interleaf.structured_params import StructuredOutputsParams

if TYPE_CHECKING:
    from interleaf.frontend.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What a request says of tools, whichever API it came by.

    Fields:
        tools: those that may be called.
        mode: "auto", "none" or "required".
        name: of the one tool that must be called; then `mode` counts no more.
        parallel: more than one call may be returned.
        strict: names of the tools whose calls must fit their schema where the model chooses to call.
    """

    tools: Tools
    mode: str = "auto"
    name: str | None = None
    parallel: bool = True
    strict: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.tools and (self.mode == "required" or self.name is not None):
            raise bad_request("tool_choice demands a call, but there are no tools.", "tool_choice")
        if self.name is not None and self.name not in self.tools:
            raise bad_request(f"tool_choice names {self.name[:100]!r}, which is not among the tools.", "tool_choice")

    @property
    def is_forced(self) -> bool:
        return self.name is not None or self.mode == "required"


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a request says of reasoning.

    Fields:
        is_told: the answer shows it.
        budget: most tokens of it; None is no limit.
        continued: the text of the message that the answer goes on with, where there is one.
    """

    is_told: bool = True
    budget: int | None = None
    continued: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """How the answers to one request are read.

    Fields:
        params: of the request, with what the parsers need.
        reasoning: None for a model that does not reason.
        markers: None where this answer has no reasoning.
        tool_parser: None where calls are not looked for.
    """

    params: SamplingParams
    reasoning: ReasoningKind | None
    markers: ReasoningMarkers | None
    tool_parser: type[ToolParser] | None
    choice: ToolChoice
    thinking: Thinking

    def reader(self) -> AnswerReader:
        """A reader for one sequence."""
        reasoning = None
        if self.reasoning is not None and self.markers is not None:
            reasoning = self.reasoning.parser(self.reasoning.family, self.markers.is_open)
        tools = None if self.tool_parser is None else self.tool_parser(self._tools())
        return AnswerReader(reasoning, tools, not self.choice.parallel, self.thinking.is_told)

    @property
    def tells_reasoning(self) -> bool:
        """Whether answers have a place for reasoning."""
        return self.reasoning is not None and self.thinking.is_told

    def finish_reason(self, reason: str | None, reader: AnswerReader) -> str | None:
        """OpenAI's: calls that the model chose to make are a reason of their own."""
        chosen = reason == "stop" and reader.answer.calls and self.choice.name is None
        return "tool_calls" if chosen else reason

    def num_reasoning_tokens(self, reader: AnswerReader, tokenizer: Tokenizer) -> int:
        """Tokens of an answer up to the end of its reasoning, the marks included."""
        if self.reasoning is None or not reader.has_reasoned:
            return 0
        ends, token_ids = self.reasoning.family.ends, reader.token_ids

        def is_over(count: int) -> bool:
            text = tokenizer.decode(token_ids[:count])
            return any(end in text for end in ends)

        low, high = 0, len(token_ids)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if is_over(middle) else (middle + 1, high)
        return low

    def _tools(self) -> Tools:
        tools = self.choice.tools
        return tools if self.choice.name is None else {self.choice.name: tools[self.choice.name]}


class AnswerParsers:
    """The parsers of one server.

    Args:
        template: the chat template that is in use, if there is one.

    Raises:
        ConfigError: a parser that the options name does not exist, or a plug-in fails.
    """

    def __init__(self, options: ServerOptions, tokenizer: Tokenizer, template: str | None) -> None:
        self._tokenizer = tokenizer
        self._auto_tools = options.enable_auto_tool_choice
        for plugin in (options.tool_parser_plugin, options.reasoning_parser_plugin):
            if plugin is not None:
                _run_plugin(plugin)
        self.tool_parser = self._tool_parser(options.tool_call_parser, template)
        self.reasoning = self._reasoning(options.reasoning_parser, template)

    def _tool_parser(self, name: str, template: str | None) -> type[ToolParser] | None:
        name = auto_name(template) if name == "auto" else name
        return _named("tool call", name, TOOL_PARSERS, "interleaf.tool_parsers")

    def _reasoning(self, name: str, template: str | None) -> ReasoningKind | None:
        found = family_of(template) or "none" if name == "auto" else name
        return _named("reasoning", found, REASONING_PARSERS, "interleaf.reasoning_parsers")

    def plan(self, params: SamplingParams, prompt: str, choice: ToolChoice, thinking: Thinking) -> AnswerPlan | None:
        """How to read the answers to a prompt; None if they are to be told as they are.

        Raises:
            ApiError, RequestError: what the request asks for cannot be had together.
        """
        reasoning = self.reasoning
        tool_parser = self._chosen(choice)
        if reasoning is None and tool_parser is None:
            return None
        markers = None if reasoning is None else self._markers(reasoning, prompt, thinking)
        changes: dict[str, Any] = {}
        if choice.is_forced:
            changes["structured_outputs"] = _forced(choice, params)
        elif tool_parser is not None and choice.strict and params.structured_outputs is None:
            changes["structured_outputs"] = _strict(choice, tool_parser)
        held = changes.get("structured_outputs", params.structured_outputs) is not None
        if markers is not None and (thinking.budget is not None or held):
            changes |= {"reasoning_markers": markers, "thinking_token_budget": thinking.budget}
        if self._are_special([*(tool_parser.markers if tool_parser else ()), *_texts(reasoning if markers else None)]):
            changes["skip_special_tokens"] = False
        return AnswerPlan(msgspec.structs.replace(params, **changes), reasoning, markers, tool_parser, choice, thinking)

    def _chosen(self, choice: ToolChoice) -> type[ToolParser] | None:
        if choice.name is not None:
            return NamedCallParser
        if choice.mode == "required":
            return RequiredCallsParser
        return self.tool_parser if self._auto_tools and choice.tools and choice.mode == "auto" else None

    def _markers(self, reasoning: ReasoningKind, prompt: str, thinking: Thinking) -> ReasoningMarkers | None:
        family = reasoning.family
        if thinking.continued is None:
            return family.markers(self._tokenizer, prompt)
        last_start = max(thinking.continued.rfind(start) for start in family.starts)
        if last_start <= max(thinking.continued.rfind(end) for end in family.ends):
            return None
        return family.markers(self._tokenizer, family.starts[0])

    def _are_special(self, markers: Sequence[str]) -> bool:
        """Whether any of these is a token that is left out of texts unless they are told not to."""
        special = self._tokenizer.convert_ids_to_tokens(self._tokenizer.all_special_ids) if markers else []
        return not set(markers).isdisjoint(special)


def _texts(reasoning: ReasoningKind | None) -> tuple[str, ...]:
    if reasoning is None:
        return ()
    texts = (*reasoning.family.starts, *reasoning.family.ends)
    # Marks of several tokens begin with one of them.
    return (*texts, *(text[: text.index("|>") + 2] for text in texts if "|>" in text))


def _forced(choice: ToolChoice, params: SamplingParams) -> StructuredOutputsParams:
    if params.structured_outputs is not None:
        raise bad_request("A forced tool_choice and structured output exclude each other.", "tool_choice")
    if choice.name is not None:
        return StructuredOutputsParams(json=arguments_schema(choice.tools[choice.name]), disable_any_whitespace=True)
    return StructuredOutputsParams(grammar=required_grammar(choice.tools, single=not choice.parallel))


def _strict(choice: ToolChoice, parser: type[ToolParser]) -> StructuredOutputsParams | None:
    """What holds the calls that the model chooses to make; None for a family whose calls cannot be held."""
    answer = parser.answer_format(StrictCalls(choice.tools, choice.strict, choice.parallel))
    if answer is None:
        return None
    tag = {"type": "structural_tag", "format": answer}
    return StructuredOutputsParams(structural_tag=tag, disable_any_whitespace=True)


def _named(kind: str, name: str, known: Mapping[str, T], group: str) -> T | None:
    """A parser by its name, also out of an installed package; "none" is none."""
    if name == "none":
        return None
    if name in known:
        return known[name]
    for entry in entry_points(group=group):
        if entry.name == name:
            loaded: T = _guarded(entry.load, f"the package that brings {name!r}")
            return loaded
    raise ConfigError(f"There is no {kind} parser {name!r}: choose auto, none, {', '.join(sorted(known))}.")


def _run_plugin(path: str) -> None:
    """Run a Python file, which registers parsers."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"There is no plug-in {path!r}: name a Python file.")
    spec = importlib.util.spec_from_file_location(f"interleaf_plugin_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"The plug-in {path!r} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    _guarded(lambda: loader.exec_module(module), f"the plug-in {path!r}")


def _guarded(load: Callable[[], T], what: str) -> T:
    try:
        return load()
    except Exception as error:
        raise ConfigError(f"A parser cannot be loaded: {what} fails with {type(error).__name__} ({error}).") from error
