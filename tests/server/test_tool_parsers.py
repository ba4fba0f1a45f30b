"""Each tool parser on what its models write, cut at random places; and on what is malformed."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from interleaf.server.answer_reader import AnswerReader, CallBegun, CallGrown
from interleaf.server.text_reader import Content
from interleaf.server.tool_parsers import TOOL_PARSERS, auto_name
from interleaf.server.tool_parsers.forced import NamedCallParser, RequiredCallsParser

TOOLS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "metric": {"type": "boolean"},
            "tags": {"type": "array"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
    },
    "now": {"type": "object", "properties": {}},
}
PARIS = {"city": "Paris", "days": 3}
TRICKY = {"city": 'a "b" \\ {c} [d] </tool_call> \u00e9\U0001f600\n', "tags": [{"x": [1, -2.5e3, None]}, True]}


def call(name: str = "get_weather", arguments: Any = PARIS, key: str = "arguments", **options: Any) -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False, **options)


Sample = tuple[str, str, str | None, list[tuple[str, Any]]]
"""Parser, text, content, calls."""

W = "get_weather"
DS = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
SAMPLES: list[Sample] = [
    ("hermes", f"<tool_call>\n{call()}\n</tool_call>", None, [(W, PARIS)]),
    ("hermes", f"Let me see.\n<tool_call>{call(arguments=TRICKY)}</tool_call>\n", "Let me see.", [(W, TRICKY)]),
    ("hermes", f"<tool_call>{call(indent=2)}</tool_call>\n<tool_call>{call('now', {})}</tool_call>", None,
     [(W, PARIS), ("now", {})]),
    ("hermes", '<tool_call>{"arguments": {"city": "x"}, "name": "get_weather"}</tool_call> Done.', "Done.",
     [(W, {"city": "x"})]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', None, [("now", {})]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', None, [("now", {})]),
    ("hermes", f'<tool_call>{{"name": "now", "arguments": {json.dumps(json.dumps(PARIS))}}}</tool_call>', None,
     [("now", PARIS)]),
    ("hermes", '<tool_call>{"type": "function", "id": 5, "function": ' + call() + "}</tool_call>", None, [(W, PARIS)]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "x\ny"}}</tool_call>', None, [("now", {"a": "x\ny"})]),
    ("hermes", f"<tool_call>{call()}", None, [(W, PARIS)]),
    ("hermes", "a < b <tool and <tool_cal\n", "a < b <tool and <tool_cal\n", []),
    ("llama3_json", call(key="parameters"), None, [(W, PARIS)]),
    ("llama3_json", f"<|python_tag|>{call(key='parameters')}", None, [(W, PARIS)]),
    ("llama3_json", f"{call(key='parameters')}; {call('now', {}, 'parameters')}", None, [(W, PARIS), ("now", {})]),
    ("llama3_json", '{"answer": 42}', '{"answer": 42}', []),
    ("llama3_json", ' {"name": "other", "parameters": {}}', ' {"name": "other", "parameters": {}}', []),
    ("llama3_json", "It is {warm}.", "It is {warm}.", []),
    ("llama3_json", '<|python_tag|>brave_search.call(query="x")', '<|python_tag|>brave_search.call(query="x")', []),
    ("mistral", f"[TOOL_CALLS] [{call()}, {call('now', {})}]", None, [(W, PARIS), ("now", {})]),
    ("mistral", f"Sure[TOOL_CALLS]get_weather[ARGS]{json.dumps(TRICKY)}", "Sure", [(W, TRICKY)]),
    ("mistral", f"[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{{}}[TOOL_CALLS]get_weather{json.dumps(PARIS)}", None,
     [("now", {}), (W, PARIS)]),
    ("mistral", "[TOOL_CALLS] nothing", "[TOOL_CALLS] nothing", []),
    ("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n"
     "</parameter>\n</function>\n</tool_call>", None, [(W, PARIS)]),
    ("qwen3_xml", 'Hm.\n\n<function=get_weather><parameter=city>a "b"\n<c>\n\n</parameter><parameter=metric>True'
     '</parameter><parameter=tags>[1, {"a": "b"}]</parameter><parameter=note>3</parameter></function>', "Hm.",
     [(W, {"city": 'a "b"\n<c>\n', "metric": True, "tags": [1, {"a": "b"}], "note": "3"})]),
    ("qwen3_coder", "<tool_call><function=now></function></tool_call>", None, [("now", {})]),
    ("qwen3_coder", "<tool_call><function=other><parameter=a>7</parameter><parameter=b>x</parameter></function>"
     "</tool_call>", None, [("other", {"a": 7, "b": "x"})]),
    ("qwen3_coder", f"<tool_call>\n{call()}\n</tool_call>", None, [(W, PARIS)]),
    ("qwen3_coder", "<function=a b>", "<function=a b>", []),
    ("pythonic", "[get_weather(city='Paris', days=3), now()]", None, [(W, PARIS), ("now", {})]),
    ("pythonic", '<|python_start|>[get_weather(city="(a, \'b\')]", tags=[-1, {"x": (1, 2)}, null], metric=True)]'
     "<|python_end|>", None, [(W, {"city": "(a, 'b')]", "tags": [-1, {"x": [1, 2]}, None], "metric": True})]),
    ("pythonic", "[1, 2, 3]", "[1, 2, 3]", []),
    ("pythonic", "[other(a=1)]", "[other(a=1)]", []),
    ("pythonic", "[now(a=__import__('os').system('true'))]", "[now(a=__import__('os').system('true'))]", []),
    ("pythonic", "[now(**{'a': 1})]", "[now(**{'a': 1})]", []),
    ("pythonic", "[now(a=2**99**99)]", "[now(a=2**99**99)]", []),
    ("pythonic", "[now(a='\\ud800')]", "[now(a='\\ud800')]", []),
    ("pythonic", f"[now(a={'[' * 99}{']' * 99})]", f"[now(a={'[' * 99}{']' * 99})]", []),
    ("deepseek_v3", f"{DS}function<｜tool▁sep｜>get_weather\n```json\n{json.dumps(PARIS)}\n```<｜tool▁call▁end｜>\n"
     "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", None,
     [(W, PARIS), ("now", {})]),
    ("deepseek_v31", f"Well.{DS}get_weather<｜tool▁sep｜>{json.dumps(TRICKY)}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
     "Well.", [(W, TRICKY)]),
    ("granite", f"<|tool_call|>[{call()}]", None, [(W, PARIS)]),
    ("granite", f"<tool_call>\n{call()}\n</tool_call>", None, [(W, PARIS)]),
    ("granite-20b-fc", f"<function_call> {call()}\n<function_call> {call('now', {})}", None,
     [(W, PARIS), ("now", {})]),
    ("granite", f"[{call()}]", None, [(W, PARIS)]),
    ("granite", "[1] is a reference", "[1] is a reference", []),
    ("internlm", f"I see.<|action_start|><|plugin|>\n{call(key='parameters')}<|action_end|>\n", "I see.", [(W, PARIS)]),
    ("phi4_mini_json", f"functools[{call()}, {call('now', {})}]", None, [(W, PARIS), ("now", {})]),
    ("phi4_mini_json", f"<|tool_call|>[{call()}]<|/tool_call|>", None, [(W, PARIS)]),
    ("phi4_mini_json", "from functools import cache", "from functools import cache", []),
    ("gpt-oss", f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{json.dumps(PARIS)}"
     "<|call|>", None, [(W, PARIS)]),
    ("openai", "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>", None,
     [("now", {})]),
]  # fmt: skip

MALFORMED: list[tuple[str, str]] = [
    ("hermes", "<tool_call>no JSON</tool_call> more"),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": }}</tool_call>'),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 1'),
    ("hermes", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "\\x"}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 01}}'),
    ("hermes", '<tool_call>{"name": "now", "arguments": "not an object"}'),
    ("hermes", f'<tool_call>{{"name": "now", "arguments": {{"a": {"[" * 5000}'),
    ("hermes", "<tool_call>"),
    ("llama3_json", '{"name": "get_weather", "parameters": {"city": "Par'),
    ("mistral", "[TOOL_CALLS]now[ARGS]{'a': 1}"),
    ("mistral", "[TOOL_CALLS][ARGS]{}"),
    ("qwen3_coder", "<tool_call><function=get_weather><parameter=city>Par"),
    ("qwen3_coder", "<tool_call><function=get_weather>oops</function>"),
    ("pythonic", "[now(a=1"),
    ("pythonic", "[now(1)]"),
    ("deepseek_v3", f"{DS}function<｜tool▁sep｜>"),
    ("deepseek_v31", f"{DS}now<｜tool▁sep｜>[]"),
    ("granite", "<|tool_call|>[{]"),
    ("internlm", "<|action_start|><|interpreter|>print(1)"),
    ("phi4_mini_json", "functools[{"),
    ("gpt-oss", "<|channel|>commentary to=functions.now<|message|>none"),
]


def pieces(text: str, rng: random.Random) -> list[str]:
    places = sorted(rng.sample(range(len(text) + 1), min(len(text), rng.randint(0, 12))))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def follow(reader: AnswerReader, fed: list[str]) -> tuple[str | None, list[tuple[int, str, str]]]:
    """What a client makes of a stream: content, and (index, name, arguments) of calls; checks the stream's form."""
    content = ""
    calls: dict[int, list[str]] = {}
    for place, text in enumerate(fed):
        for news in reader.feed(text, finished=place == len(fed) - 1):
            if isinstance(news, Content):
                assert news.text
                content += news.text
            elif isinstance(news, CallBegun):
                assert news.index == len(calls) and news.call.id
                calls[news.index] = [news.call.name, ""]
            elif isinstance(news, CallGrown):
                assert news.index == len(calls) - 1
                calls[news.index][1] += news.arguments
    return content or None, [(index, *call) for index, call in calls.items()]  # type: ignore[misc]


@pytest.mark.parametrize(("parser", "text", "content", "calls"), SAMPLES)
def test_samples(parser: str, text: str, content: str | None, calls: list[tuple[str, Any]]) -> None:
    answer_reader = AnswerReader(None, TOOL_PARSERS[parser](TOOLS))
    answer_reader.feed(text, finished=True)
    answer = answer_reader.answer
    assert answer.content == content
    assert [(one.name, json.loads(one.arguments)) for one in answer.calls] == calls
    rng = random.Random(text)
    for fed in ([*text, ""], *(pieces(text, rng) for _ in range(30))):
        told = follow(AnswerReader(None, TOOL_PARSERS[parser](TOOLS)), fed)
        assert told == (content, [(index, one.name, one.arguments) for index, one in enumerate(answer.calls)])


@pytest.mark.parametrize(("parser", "text"), MALFORMED)
def test_what_is_malformed_is_content(parser: str, text: str) -> None:
    """Whole; and a stream cut anywhere ends in the same, though it may have begun a call."""
    whole = AnswerReader(None, TOOL_PARSERS[parser](TOOLS))
    streamed = follow(whole, [text])
    assert whole.answer.content == text and not whole.answer.calls
    rng = random.Random(text)
    for fed in ([*text, ""], *(pieces(text, rng) for _ in range(30))):
        reader = AnswerReader(None, TOOL_PARSERS[parser](TOOLS))
        assert follow(reader, fed) == streamed
        assert reader.answer == whole.answer


@pytest.mark.parametrize("parser", sorted(TOOL_PARSERS))
def test_no_text_breaks_a_parser(parser: str) -> None:
    """Samples that are cut, doubled and mixed: nothing is raised, and cuts change nothing."""
    rng = random.Random(parser)
    own = [text for name, text, *_ in SAMPLES if TOOL_PARSERS[name] is TOOL_PARSERS[parser]]
    texts = [text for _, text, *_ in SAMPLES] + [text for _, text in MALFORMED if len(text) < 1000]
    for _ in range(150):
        text = "".join(
            one[rng.randrange(len(one)) // 2 : rng.randrange(len(one) + 1)] for one in rng.choices(own * 5 + texts, k=3)
        )
        whole = AnswerReader(None, TOOL_PARSERS[parser](TOOLS))
        streamed = follow(whole, [text])
        reader = AnswerReader(None, TOOL_PARSERS[parser](TOOLS))
        assert follow(reader, pieces(text, rng)) == streamed
        for one in whole.answer.calls:
            assert isinstance(json.loads(one.arguments), dict)


def test_arguments_come_while_they_are_written() -> None:
    reader = AnswerReader(None, TOOL_PARSERS["hermes"](TOOLS))
    reader.feed('<tool_call>{"name": "get_weather", "arguments": {"city": "Par')
    assert reader.answer.calls[0].arguments == '{"city": "Par'
    reader = AnswerReader(None, TOOL_PARSERS["qwen3_coder"](TOOLS))
    reader.feed("<tool_call><function=get_weather><parameter=city>Par")
    assert reader.answer.calls[0].arguments == '{"city": "Par'


def test_long_arguments_at_once() -> None:
    """Time grows with the length, not with its square."""
    arguments = {"tags": list(range(10_000)), "city": "x" * 1_000_000}
    begin = time.process_time()
    reader = AnswerReader(None, TOOL_PARSERS["hermes"](TOOLS))
    reader.feed(f"<tool_call>{call(arguments=arguments)}</tool_call>", finished=True)
    assert json.loads(reader.answer.calls[0].arguments) == arguments
    assert time.process_time() - begin < 5


def test_one_call_only() -> None:
    text = f"Hm. <tool_call>{call()}</tool_call><tool_call>{call('now', {})}</tool_call>"
    reader = AnswerReader(None, TOOL_PARSERS["hermes"](TOOLS), single_call=True)
    assert follow(reader, [*text, ""]) == ("Hm.", [(0, W, json.dumps(PARIS))])


def test_forced_calls() -> None:
    text = f"[{call(key='parameters')}, {call('now', {}, 'parameters')}]"
    for fed in ([text], [*text, ""]):
        calls = follow(AnswerReader(None, RequiredCallsParser(TOOLS)), fed)
        assert calls == (None, [(0, W, json.dumps(PARIS)), (1, "now", "{}")])
    named = follow(AnswerReader(None, NamedCallParser({W: {}})), [*json.dumps(TRICKY), ""])
    assert named == (None, [(0, W, json.dumps(TRICKY))])
    cut_off = AnswerReader(None, NamedCallParser({W: {}}))
    assert follow(cut_off, ['{"city": "Pa']) == (None, [(0, W, '{"city": "Pa')])
    assert cut_off.answer.calls[0].arguments == '{"city": "Pa'


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("<tools>...<tool_call>", "hermes"),
        ("<tool_call>\n<function=example>", "qwen3_coder"),
        ("[AVAILABLE_TOOLS]...[TOOL_CALLS]", "mistral"),
        ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
        ("<|start|>assistant<|channel|>", "gpt-oss"),
        ('{"name": function name, "parameters": ...}<|python_tag|>', "llama3_json"),
        ("[func_name1(params_name1=params_value1...)]", "pythonic"),
        ("<|tool|>...<|/tool|><|tool_call|>...<|/tool_call|>", "phi4_mini_json"),
        ("<|start_of_role|>...<|tool_call|>", "granite"),
        (None, "hermes"),
    ],
)
def test_parsers_by_template(template: str | None, name: str) -> None:
    assert auto_name(template) == name
