"""Answers in the form of chat completions: whole messages, and the deltas of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from interleaf.outputs import CompletionOutput
from interleaf.server.answer_reader import Answer, AnswerReader, CallBegun, CallGrown, News
from interleaf.server.answers import AnswerPlan, ToolChoice
from interleaf.server.protocol.chat import (
    AllowedToolsChoice,
    AnswerCall,
    AnswerMessage,
    CallDelta,
    CalledFunction,
    ChatCompletionRequest,
    Delta,
    NamedToolChoice,
    Tool,
)
from interleaf.server.text_reader import Content, Reasoning

if TYPE_CHECKING:
    from collections.abc import Iterable

    from interleaf.frontend.tokenizer import Tokenizer
    from interleaf.server.tool_parsers import Tools


def tools_of(tools: Iterable[Tool] | None) -> Tools:
    """Name -> JSON schema of the parameters."""
    return {tool.function.name: tool.function.parameters or {} for tool in tools or ()}


def strict_names(tools: Iterable[Tool] | None) -> frozenset[str]:
    """Tools whose calls must fit their schema."""
    return frozenset(tool.function.name for tool in tools or () if tool.function.strict)


def tool_choice_of(body: ChatCompletionRequest) -> ToolChoice:
    """
    Raises:
        ApiError: it demands a tool that there is not.
    """
    tools, choice = tools_of(body.tools), body.tool_choice
    strict = strict_names(body.tools)
    parallel = body.parallel_tool_calls is not False
    if isinstance(choice, NamedToolChoice):
        return ToolChoice(tools, name=choice.function.name, parallel=parallel)
    if isinstance(choice, AllowedToolsChoice):
        allowed = {tool.function.name for tool in choice.allowed_tools.tools}
        tools = {name: parameters for name, parameters in tools.items() if name in allowed}
        return ToolChoice(tools, choice.allowed_tools.mode, parallel=parallel, strict=strict & tools.keys())
    return ToolChoice(tools, choice or "auto", parallel=parallel, strict=strict)


class ChatAnswers:
    """What the sequences of one request have written so far.

    Args:
        plan: None tells texts as they are.
        role: of the messages.
        echo: text that goes before each content.
    """

    def __init__(self, plan: AnswerPlan | None, role: str, echo: str) -> None:
        self._plan = plan
        self._role = role
        self._echo = echo
        self._readers: dict[int, AnswerReader] = {}

    def message(self, one: CompletionOutput) -> tuple[AnswerMessage, str | None]:
        """The message of a sequence that comes whole, and its finish reason."""
        if self._plan is None:
            return AnswerMessage(self._role, self._echo + one.text), one.finish_reason
        reader = self._reader(one.index)
        reader.follow(one)
        answer = reader.answer
        empty = None if answer.calls or answer.reasoning else ""
        message = AnswerMessage(self._role, (self._echo + (answer.content or "")) or empty)
        if answer.calls:
            message.tool_calls = _calls(answer)
        if self._plan.tells_reasoning:
            message.reasoning = message.reasoning_content = answer.reasoning
        return message, self._plan.finish_reason(one.finish_reason, reader)

    def deltas(self, one: CompletionOutput) -> tuple[list[Delta], str | None]:
        """What a sequence has brought, and its finish reason if it has one."""
        if self._plan is None:
            return [Delta(content=one.text)] if one.text else [], one.finish_reason
        reader = self._reader(one.index)
        deltas: list[Delta] = []
        for news in reader.follow(one):
            _add(deltas, news)
        return deltas, self._plan.finish_reason(one.finish_reason, reader)

    def num_reasoning_tokens(self, tokenizer: Tokenizer) -> int | None:
        """Of all sequences; None for a model that does not reason."""
        plan = self._plan
        if plan is None or plan.reasoning is None:
            return None
        return sum(plan.num_reasoning_tokens(reader, tokenizer) for reader in self._readers.values())

    def _reader(self, index: int) -> AnswerReader:
        if index not in self._readers:
            assert self._plan is not None
            self._readers[index] = self._plan.reader()
        return self._readers[index]


def _calls(answer: Answer) -> list[AnswerCall]:
    return [AnswerCall(call.id, CalledFunction(call.arguments, call.name)) for call in answer.calls]


def _add(deltas: list[Delta], news: News) -> None:
    """Put news behind the deltas; a piece of a call's arguments goes into the delta that is there for this call."""
    if isinstance(news, Content):
        deltas.append(Delta(content=news.text))
    elif isinstance(news, Reasoning):
        deltas.append(Delta(reasoning=news.text, reasoning_content=news.text))
    elif isinstance(news, CallBegun):
        function = CalledFunction("", news.call.name)
        deltas.append(Delta(tool_calls=[CallDelta(news.index, function, news.call.id, "function")]))
    elif isinstance(news, CallGrown):
        last = deltas[-1].tool_calls if deltas else UNSET
        if last is not UNSET and last[0].index == news.index:
            last[0].function.arguments += news.arguments
        else:
            deltas.append(Delta(tool_calls=[CallDelta(news.index, CalledFunction(news.arguments))]))
