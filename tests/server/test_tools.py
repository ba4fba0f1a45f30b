"""Tool calls and reasoning as the official clients see them, on a fake engine that says what it is told to say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import httpx2
import openai
import pydantic
import pytest

from interleaf.config import SchedulerConfig
from interleaf.errors import ConfigError
from interleaf.frontend.grammar_check import GrammarChecker
from interleaf.server.app import create_app
from interleaf.server.options import ServerOptions
from tests.fake_engine import engine_config
from tests.server.conftest import MODEL, error
from tests.server.fake_async_engine import FakeAsyncEngine
from tests.server.test_responses import typed_events

pytestmark = pytest.mark.anyio

HI: Any = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
NOW: Any = {"name": "now", "parameters": {"type": "object", "properties": {}}}
TOOLS: Any = [{"type": "function", "function": WEATHER}, {"type": "function", "function": NOW}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
CALLS = f'I look.\n{CALL}\n<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>'
THOUGHT = "<think>\nLet me think.\n</think>\n\n"
LONG = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=4096)


class Says(dict[str, Any]):
    """A script that has the same answer to every prompt."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def get(self, key: str, default: Any = None) -> Any:
        return self.text


@pytest.fixture(autouse=True)
def grammars_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake tokenizer is none that the grammar library knows."""
    monkeypatch.setattr(GrammarChecker, "check", lambda self, source: None)


@pytest.fixture
def engine() -> FakeAsyncEngine:
    return FakeAsyncEngine(engine_config(scheduler=LONG))


Http = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def http(engine: FakeAsyncEngine) -> AsyncIterator[Http]:
    """Clients of servers with these options on an engine that says `text`."""
    clients = []

    def make(text: str, **options: Any) -> httpx.AsyncClient:
        engine.client.script = Says(text)
        app = create_app(engine, ServerOptions((MODEL,), **options))
        clients.append(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server"))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


def openai_client(http_client: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://server/v1", api_key="x", http_client=http_client, max_retries=0)


def anthropic_client(http_client: httpx.AsyncClient) -> anthropic.AsyncAnthropic:
    # The client of anthropic is built on another library of the same kind.
    app = http_client._transport.app  # type: ignore[attr-defined]
    other = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://server")
    return anthropic.AsyncAnthropic(base_url="http://server", api_key="x", http_client=other, max_retries=0)


def grammar(engine: FakeAsyncEngine) -> str:
    """That the last request was held to."""
    found = engine.client.requests[-1].grammar
    assert found is not None
    return found


# ---- chat completions ----


async def test_calls(http: Http) -> None:
    client = openai_client(http(CALLS))
    [choice] = (await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS)).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    first, second = choice.message.tool_calls or []
    assert first.type == second.type == "function" and first.id != second.id
    assert (first.function.name, first.function.arguments) == ("get_weather", '{"city": "Paris"}')
    assert (second.function.name, second.function.arguments) == ("now", "{}")
    [choice] = (await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS, tool_choice="none")).choices
    assert choice.finish_reason == "stop" and choice.message.content == CALLS and not choice.message.tool_calls


async def test_streamed_calls(http: Http) -> None:
    """With two sequences, logprobs and usage beside them."""
    client = openai_client(http(CALLS))
    stream = await client.chat.completions.create(
        model=MODEL, messages=HI, tools=TOOLS, stream=True, n=2, logprobs=True, stream_options={"include_usage": True}
    )
    calls: dict[tuple[int, int], dict[str, Any]] = {}
    content, reasons, num_logprobs = {0: "", 1: ""}, {}, 0
    async for chunk in stream:
        for choice in chunk.choices:
            num_logprobs += len(choice.logprobs.content or []) if choice.logprobs else 0
            content[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
            for piece in choice.delta.tool_calls or []:
                assert piece.function is not None
                if (choice.index, piece.index) not in calls:
                    assert piece.id and piece.type == "function" and piece.function.name
                    calls[choice.index, piece.index] = {"name": piece.function.name, "arguments": "", "pieces": 0}
                else:
                    assert piece.id is None and piece.function.name is None and piece.type is None
                calls[choice.index, piece.index]["arguments"] += piece.function.arguments or ""
                calls[choice.index, piece.index]["pieces"] += 1
        usage = chunk.usage
    assert content == {0: "I look.", 1: "I look."} and reasons == {0: "tool_calls", 1: "tool_calls"}
    assert sorted(calls) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [calls[0, index]["arguments"] for index in (0, 1)] == ['{"city": "Paris"}', "{}"]
    assert calls[0, 0]["pieces"] > 10
    assert usage is not None and usage.completion_tokens == num_logprobs == 2 * (len(CALLS) + 1)


async def test_one_call_at_most(http: Http) -> None:
    client = openai_client(http(CALLS))
    asked: Any = {"model": MODEL, "messages": HI, "tools": TOOLS, "parallel_tool_calls": False}
    [choice] = (await client.chat.completions.create(**asked)).choices
    assert [call.function.name for call in choice.message.tool_calls or []] == ["get_weather"]
    async with client.chat.completions.stream(**asked) as stream:
        final = await stream.get_final_completion()
    assert [call.function.name for call in final.choices[0].message.tool_calls or []] == ["get_weather"]


@pytest.mark.parametrize("text", ['<tool_call>{"name": "now", "arguments": {"a": }}</tool_call>', "a <tool_call> tag"])
async def test_what_is_malformed_is_content(http: Http, text: str) -> None:
    client = openai_client(http(text))
    [choice] = (await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS)).choices
    assert (choice.message.content, choice.finish_reason, choice.message.tool_calls) == (text, "stop", None)
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS, stream=True)
    ]
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_a_call_that_is_cut_off(http: Http) -> None:
    client = openai_client(http(CALL))
    asked: Any = {"model": MODEL, "messages": HI, "tools": TOOLS, "max_completion_tokens": len(CALL) - 20}
    [choice] = (await client.chat.completions.create(**asked)).choices
    assert choice.finish_reason == "length" and choice.message.content == CALL[:-20]


async def test_a_forced_call(http: Http, engine: FakeAsyncEngine) -> None:
    """What the grammar is made of; that it holds is tested on a real engine."""
    client = openai_client(http('{"city": "Paris"}'))
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    asked: Any = {"model": MODEL, "messages": HI, "tools": TOOLS, "tool_choice": named}
    [choice] = (await client.chat.completions.create(**asked)).choices
    assert choice.finish_reason == "stop" and choice.message.content is None
    [call] = choice.message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    assert WEATHER["parameters"].items() <= json.loads(grammar(engine))["grammars"][0]["json_schema"].items()
    async with client.chat.completions.stream(**asked) as stream:
        final = await stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Paris"} and final.choices[0].finish_reason == "stop"


async def test_required_calls(http: Http, engine: FakeAsyncEngine) -> None:
    client = openai_client(http('[{"name": "get_weather", "parameters": {"city": "Paris"}}]'))
    asked: Any = {"model": MODEL, "messages": HI, "tools": TOOLS, "tool_choice": "required"}
    [choice] = (await client.chat.completions.create(**asked)).choices
    assert choice.finish_reason == "tool_calls"
    assert [call.function.arguments for call in choice.message.tool_calls or []] == ['{"city": "Paris"}']
    assert "get_weather" in grammar(engine) and "now" in grammar(engine)
    allowed: Any = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_weather"}}]},
    }
    await client.chat.completions.create(**{**asked, "tool_choice": allowed})
    assert "get_weather" in grammar(engine) and "now" not in grammar(engine)


@pytest.mark.parametrize(
    "body",
    [
        {"tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": TOOLS, "tool_choice": "always"},
    ],
)
async def test_refusals(http: Http, body: dict[str, Any]) -> None:
    told = error(await http("").post("/v1/chat/completions", json={"messages": HI, **body}))
    assert told["status"] == 400 and told["param"].startswith("tool_choice")


async def test_a_conversation_with_calls(http: Http, engine: FakeAsyncEngine) -> None:
    """What the client was given goes back as it is, with the tool's result."""
    client = openai_client(http(THOUGHT + CALL, reasoning_parser="qwen3"))
    [choice] = (await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS)).choices
    call = (choice.message.tool_calls or [])[0]
    seen: list[Any] = []
    apply = engine.tokenizer.apply_chat_template
    engine.tokenizer.apply_chat_template = lambda messages, **options: (
        seen.append(messages) or apply(messages, **options)
    )
    messages = [*HI, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "15 degrees"}]
    await client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    [[_, answer, result]] = seen
    assert answer["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Paris"}}
    assert answer["tool_calls"][0]["id"] == result["tool_call_id"] == call.id
    assert answer["reasoning_content"] == answer["reasoning"] == "Let me think."


async def test_templates_that_want_arguments_as_text(http: Http, engine: FakeAsyncEngine) -> None:
    def picky(messages: list[Any], **options: Any) -> str:
        from interleaf.frontend.chat_template import render_chat

        template = "{{ 'x' + messages[1].tool_calls[0].function.arguments }}"
        return render_chat(template, messages)

    client = http("yes")
    engine.tokenizer.apply_chat_template = picky
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    messages = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
    response = await client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200
    assert bytes(engine.client.requests[-1].prompt_token_ids) == b'x{"a":1}'


# ---- the client's helpers ----


class Reply(pydantic.BaseModel):
    steps: list[str]
    answer: int


class GetWeather(pydantic.BaseModel):
    """Weather of a city."""

    city: str
    unit: Literal["c", "f"] = "c"


async def test_parsing_of_calls(http: Http) -> None:
    text = '<tool_call>{"name": "GetWeather", "arguments": {"city": "Rome", "unit": "f"}}</tool_call>'
    client = openai_client(http(text))
    tools: Any = [openai.pydantic_function_tool(GetWeather)]
    parsed = await client.chat.completions.parse(model=MODEL, messages=HI, tools=tools)
    [call] = parsed.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == GetWeather(city="Rome", unit="f")
    async with client.chat.completions.stream(model=MODEL, messages=HI, tools=tools) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    [call] = final.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == GetWeather(city="Rome", unit="f")
    async with client.beta.chat.completions.stream(model=MODEL, messages=HI, tools=tools) as stream:
        assert (await stream.get_final_completion()).choices[0].finish_reason == "tool_calls"


# ---- reasoning ----


async def test_reasoning(http: Http) -> None:
    client = openai_client(http(f"{THOUGHT}Four. \n{CALL}", reasoning_parser="qwen3"))
    whole = await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS)
    message: Any = whole.choices[0].message
    assert message.reasoning == message.reasoning_content == "Let me think." and message.content == "Four."
    assert len(message.tool_calls) == 1 and whole.choices[0].finish_reason == "tool_calls"
    assert whole.usage is not None and whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens == len(THOUGHT.rstrip())
    told = {"reasoning": "", "reasoning_content": "", "content": ""}
    async for chunk in await client.chat.completions.create(
        model=MODEL, messages=HI, tools=TOOLS, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            for name in told:
                told[name] += getattr(choice.delta, name, None) or ""
    assert told == {"reasoning": "Let me think.", "reasoning_content": "Let me think.", "content": "Four."}
    assert chunk.usage is not None and chunk.usage.completion_tokens_details is not None
    assert chunk.usage.completion_tokens_details.reasoning_tokens == len(THOUGHT.rstrip())
    hidden: Any = {"include_reasoning": False}
    [choice] = (await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS, extra_body=hidden)).choices
    assert choice.message.content == "Four." and not hasattr(choice.message, "reasoning")


@pytest.mark.parametrize(
    ("parser", "text", "reasoning", "content"),
    [
        ("qwen3", "<think>a</think>b", "a", "b"),
        ("qwen3", " plain", None, " plain"),
        ("qwen3", "<think>cut of", "cut of", None),
        ("deepseek_r1", "a\n</think>\n\nb\n", "a", "b\n"),
        ("deepseek_r1", "<think>\na</think>b", "a", "b"),
        ("deepseek_r1", "never ends", "never ends", None),
        ("mistral", "[THINK]a[/THINK]b", "a", "b"),
        ("granite", "Here's my thought process: a Here is my response: b", "a", "b"),
        ("openai_gptoss", "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b",
         "a", "b"),
        ("openai_gptoss", "plain", None, "plain"),
        ("none", "<think>a</think>b", None, "<think>a</think>b"),
    ],
)  # fmt: skip
async def test_families(http: Http, parser: str, text: str, reasoning: str | None, content: str | None) -> None:
    client = http(text, reasoning_parser=parser)
    message = (await client.post("/v1/chat/completions", json={"messages": HI})).json()["choices"][0]["message"]
    assert (message.get("reasoning"), message["content"]) == (reasoning, content)
    stream = await client.post("/v1/chat/completions", json={"messages": HI, "stream": True})
    deltas = [
        json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
        for line in stream.text.split("\n\n")
        if line and line != "data: [DONE]"
    ]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == (reasoning or "")
    assert "".join(delta.get("content", "") for delta in deltas) == (content or "")


async def test_harmony(http: Http, engine: FakeAsyncEngine) -> None:
    engine.tokenizer.chat_templates = {"default": "...<|channel|>..."}
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>"
    )
    [choice] = (await openai_client(http(text)).chat.completions.create(model=MODEL, messages=HI, tools=TOOLS)).choices
    message: Any = choice.message
    assert (message.reasoning, message.content) == ("Hm.", "I look.")
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == [("now", "{}")]


async def test_where_the_prompt_stands(http: Http, engine: FakeAsyncEngine) -> None:
    """A template may begin the reasoning, or end it at once."""
    client = http("a</think>b", reasoning_parser="qwen3")
    for prompt, reasoning, content in (
        ("x<think>\n", "a", "b"),
        ("x<think>\n\n</think>\n\n", None, "a</think>b"),
        ("x", None, "a</think>b"),
    ):
        engine.tokenizer.apply_chat_template = lambda messages, prompt=prompt, **options: prompt
        message = (await client.post("/v1/chat/completions", json={"messages": HI})).json()["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == (reasoning, content)


async def test_what_the_engine_is_told(http: Http, engine: FakeAsyncEngine) -> None:
    client = http("hm", reasoning_parser="qwen3")
    seen: list[dict[str, Any]] = []
    apply = engine.tokenizer.apply_chat_template
    engine.tokenizer.apply_chat_template = lambda messages, **options: (
        seen.append(options) or apply(messages, **options)
    )
    for body in (
        {"thinking_token_budget": 5},
        {"max_thinking_tokens": 5, "reasoning_effort": "low"},
        {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
        {"reasoning_effort": "none"},
        {},
    ):
        assert (await client.post("/v1/chat/completions", json={"messages": HI, **body})).status_code == 200
    told = [request.params for request in engine.client.requests]
    assert [params.thinking_token_budget for params in told] == [5, 5, None, None, None]
    assert told[0].reasoning_markers is not None and told[0].reasoning_markers.end_token_ids == list(b"</think>")
    assert told[2].reasoning_markers is None
    assert [options.get("reasoning_effort") for options in seen] == [None, "low", "none", "none", None]
    assert [options.get("enable_thinking") for options in seen] == [None, None, True, False, None]


async def test_plain_chats_have_no_parsers(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    client = http("hello")

    def fail(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("interleaf.server.answers.AnswerReader", fail)
    for stream in (False, True):
        assert (await client.post("/v1/chat/completions", json={"messages": HI, "stream": stream})).status_code == 200


# ---- responses ----

FLAT: Any = [{"type": "function", **WEATHER}, {"type": "function", **NOW}]


async def test_response_items(http: Http) -> None:
    client = openai_client(http(THOUGHT + CALLS, reasoning_parser="qwen3"))
    response = await client.responses.create(model=MODEL, input="hi", tools=FLAT)
    thought, message, first, second = response.output
    assert thought.type == "reasoning" and thought.content and thought.content[0].text == "Let me think."
    assert message.type == "message" and response.output_text == "I look."
    assert first.type == second.type == "function_call" and first.call_id != second.call_id
    assert (first.name, first.arguments, first.status) == ("get_weather", '{"city": "Paris"}', "completed")
    assert response.usage and response.usage.output_tokens_details.reasoning_tokens == len(THOUGHT.rstrip())
    result: Any = {"type": "function_call_output", "call_id": first.call_id, "output": "15"}
    again = await client.responses.create(
        model=MODEL, input=[result], previous_response_id=response.id, tools=FLAT, tool_choice="none"
    )
    assert again.status == "completed"
    back: Any = [item.model_dump(exclude_none=True) for item in response.output]
    await client.responses.create(model=MODEL, input=[*HI, *back, result], tools=FLAT)


async def test_response_events(http: Http) -> None:
    http_client = http(THOUGHT + CALLS, reasoning_parser="qwen3")
    body = {"model": MODEL, "input": "hi", "tools": FLAT, "stream": True}
    values = typed_events(await http_client.post("/v1/responses", json=body))
    kinds = [value["type"].removeprefix("response.") for value in values]
    squeezed = [kind for place, kind in enumerate(kinds) if not place or kinds[place - 1] != kind]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert squeezed == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done", *call, *call, "completed"),
    ]
    assert [value["sequence_number"] for value in values] == list(range(len(values)))
    done = [value["item"] for value in values if value["type"].endswith("output_item.done")]
    assert values[-1]["response"]["output"] == done
    deltas = [value["delta"] for value in values if value["type"].endswith("arguments.delta")]
    assert "".join(deltas) == '{"city": "Paris"}{}'
    async with openai_client(http_client).responses.stream(model=MODEL, input="hi", tools=FLAT) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]


async def test_parsing_of_response_calls(http: Http) -> None:
    text = '<tool_call>{"name": "GetWeather", "arguments": {"city": "Rome"}}</tool_call>'
    client = openai_client(http(text))
    tools: Any = [openai.pydantic_function_tool(GetWeather)]
    flat: Any = [{"type": "function", **tool["function"]} for tool in tools]
    parsed = await client.responses.parse(model=MODEL, input="hi", tools=flat)
    [call] = parsed.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Rome"}


async def test_a_response_that_is_forced_to_call(http: Http, engine: FakeAsyncEngine) -> None:
    client = openai_client(http('{"city": "Paris"}'))
    named: Any = {"type": "function", "name": "get_weather"}
    response = await client.responses.create(model=MODEL, input="hi", tools=FLAT, tool_choice=named)
    [call] = response.output
    assert call.type == "function_call" and call.arguments == '{"city": "Paris"}'
    assert response.tool_choice == openai.types.responses.ToolChoiceFunction(type="function", name="get_weather")
    http_client = http("")
    told = error(await http_client.post("/v1/responses", json={"input": "hi", "tool_choice": "required"}))
    assert (told["status"], told["param"]) == (400, "tool_choice")


# ---- Anthropic ----

CLAUDE_TOOLS: Any = [
    {"name": "get_weather", "input_schema": WEATHER["parameters"]},
    {"name": "now", "input_schema": NOW["parameters"]},
]


async def test_messages(http: Http) -> None:
    client = anthropic_client(http(THOUGHT + CALLS, reasoning_parser="qwen3"))
    asked: Any = {"model": MODEL, "max_tokens": 2000, "messages": HI, "tools": CLAUDE_TOOLS}
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    message = await client.messages.create(**asked, thinking=thinking)
    thought, text, first, second = message.content
    assert thought.type == "thinking" and thought.thinking == "Let me think."
    assert text.type == "text" and text.text == "I look."
    assert first.type == "tool_use" and first.input == {"city": "Paris"} and first.name == "get_weather"
    assert second.type == "tool_use" and second.input == {} and message.stop_reason == "tool_use"
    async with client.messages.stream(**asked, thinking=thinking) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_message()
    assert {"thinking", "text", "input_json"} <= set(kinds)
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert final.content[2].input == {"city": "Paris"} and final.stop_reason == "tool_use"  # type: ignore[union-attr]
    result: Any = {"type": "tool_result", "tool_use_id": first.id, "content": "15"}
    back: Any = [*HI, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    await client.messages.create(**{**asked, "messages": back})
    hidden: Any = {"type": "disabled"}
    assert (await client.messages.create(**asked, thinking=hidden)).content[0].type == "text"


async def test_forced_messages(http: Http, engine: FakeAsyncEngine) -> None:
    client = anthropic_client(http('[{"name": "now", "parameters": {}}]'))
    asked: Any = {"model": MODEL, "max_tokens": 2000, "messages": HI, "tools": CLAUDE_TOOLS}
    message = await client.messages.create(**asked, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert [block.type for block in message.content] == ["tool_use"] and message.stop_reason == "tool_use"
    assert ")*" not in grammar(engine)
    client = anthropic_client(http('{"city": "x"}'))
    message = await client.messages.create(**asked, tool_choice={"type": "tool", "name": "get_weather"})
    assert message.content[0].input == {"city": "x"}  # type: ignore[union-attr]


# ---- which parsers ----


async def test_parsers_by_template(http: Http, engine: FakeAsyncEngine) -> None:
    engine.tokenizer.chat_templates = {"default": "x", "tool_use": "[TOOL_CALLS]"}
    client = openai_client(http('[TOOL_CALLS]now[ARGS]{"a": 1}'))
    [choice] = (await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS)).choices
    [call] = choice.message.tool_calls or []
    assert call.function.arguments == '{"a": 1}' and len(call.id) == 9
    off = openai_client(http(CALL, enable_auto_tool_choice=False))
    [choice] = (await off.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS)).choices
    assert choice.message.content == CALL


async def test_special_tokens_are_shown_to_parsers(http: Http, engine: FakeAsyncEngine) -> None:
    engine.tokenizer.convert_ids_to_tokens = lambda ids: ["[TOOL_CALLS]" for _ in ids]
    client = http("hm", tool_call_parser="mistral")
    for tools in (None, TOOLS):
        await client.post("/v1/chat/completions", json={"messages": HI, "tools": tools})
    assert [request.params.skip_special_tokens for request in engine.client.requests] == [True, False]


PLUGIN = """
from interleaf.frontend.reasoning_families import ReasoningFamily
from interleaf.server import reasoning_parsers
from interleaf.server.tool_parsers import ToolParser, register

reasoning_parsers.register("aloud", ReasoningFamily(("Hm:",), ("So:",)))


@register("angle")
class AngleParser(ToolParser):
    markers = ("<<",)

    def read_call(self):
        yield from self.expect("<<")
        yield from self.read_calls()
        yield from self.expect(">>")
"""


async def test_plugins(http: Http, tmp_path: Path) -> None:
    path = tmp_path / "my_parsers.py"
    path.write_text(PLUGIN)
    options = {"tool_parser_plugin": str(path), "tool_call_parser": "angle", "reasoning_parser": "aloud"}
    client = openai_client(http('Hm: well So: <<{"name": "now"}>>', **options))
    [choice] = (await client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS)).choices
    assert [call.function.name for call in choice.message.tool_calls or []] == ["now"]
    assert choice.message.reasoning == "well"  # type: ignore[attr-defined]
    path.write_text("1 / 0")
    for bad in (
        {"tool_call_parser": "nope"},
        {"reasoning_parser": "nope"},
        {"tool_parser_plugin": str(path)},
        {"reasoning_parser_plugin": "nowhere.py"},
    ):
        with pytest.raises(ConfigError):
            http("", **bad)


async def test_a_format_is_for_texts(http: Http, engine: FakeAsyncEngine) -> None:
    """Clients send the schema as a format and as a tool, whose call is then forced."""
    client = http('{"city": "Paris"}')
    schema = WEATHER["parameters"]
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}
    body: Any = {"model": MODEL, "messages": HI, "tools": TOOLS, "response_format": wanted}
    named = {"type": "function", "function": {"name": "get_weather"}}
    [choice] = (await client.post("/v1/chat/completions", json={**body, "tool_choice": named})).json()["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'
    tool = {"type": "function", **WEATHER}
    text = {"format": {"type": "json_schema", "name": "w", "schema": schema}}
    body = {"model": MODEL, "input": "hi", "tools": [tool], "text": text}
    body["tool_choice"] = {"type": "function", "name": "get_weather"}
    [item] = (await client.post("/v1/responses", json=body)).json()["output"]
    assert (item["type"], item["arguments"]) == ("function_call", '{"city": "Paris"}')
    body = {"model": MODEL, "messages": HI, "tools": TOOLS, "tool_choice": named, "guided_regex": "a"}
    assert error(await client.post("/v1/chat/completions", json=body))["param"] == "tool_choice"
