"""Strict tools where the model may choose: which answers each family's format lets through, and what is asked of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from tokenizers import AddedToken, Tokenizer

from interleaf.core.structured import GrammarCompiler
from interleaf.errors import GrammarError
from interleaf.frontend.async_engine import AsyncEngine
from interleaf.frontend.grammar import grammar_source
from interleaf.frontend.grammar_check import GrammarChecker
from interleaf.messages import Vocabulary
from interleaf.server.answer_reader import AnswerReader
from interleaf.server.app import create_app
from interleaf.server.options import ServerOptions
from interleaf.server.tool_parsers import TOOL_PARSERS
from interleaf.server.tool_parsers.strict import StrictCalls
from interleaf.structured_params import StructuredOutputsParams
from tests.loader.tiny import byte_level_bpe, tiny_llama
from tests.server.test_tools import HI, MODEL, Http, anthropic_client, engine, http, openai_client

__all__ = ["engine", "http"]
pytestmark = pytest.mark.anyio

SPECIAL = ["<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|tool_call|>", "<｜tool▁calls▁begin｜>",
           "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<|action_start|>",
           "<|plugin|>", "<|action_end|>"]  # fmt: skip
SEARCH: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"$ref": "#/$defs/days"},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
TOOLS = {"search": SEARCH, "now": {}, "note": {"type": "object", "properties": {"text": {"type": "string"}}}}
STRICT = frozenset(["search", "now"])
GOOD, BAD = {"city": "Paris", "days": 3, "unit": "C"}, {"city": "Paris", "days": 30}


def with_special_tokens() -> Tokenizer:
    tokenizer = Tokenizer.from_str(byte_level_bpe().to_str())
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


TOKENIZER = with_special_tokens()
IDS = {token: TOKENIZER.token_to_id(token) for token in SPECIAL}
COMPILER = GrammarCompiler(Vocabulary(TOKENIZER.to_str(), TOKENIZER.get_vocab_size(), [2]))


def fits(parser: str, text: str, parallel: bool = True) -> bool:
    answer = TOOL_PARSERS[parser].answer_format(StrictCalls(TOOLS, STRICT, parallel))
    tag = {"type": "structural_tag", "format": answer}
    params = StructuredOutputsParams(structural_tag=tag, disable_any_whitespace=True)
    grammar = COMPILER.submit(grammar_source(params, IDS)).result()
    state = grammar.start([], TOKENIZER.encode(text, add_special_tokens=False).ids)
    return state.error is None and state.matcher.is_accepting()


def call(name: str, arguments: Any, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments})


def xml(name: str, *values: tuple[str, str]) -> str:
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values)
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


Write = Callable[[str, Any], str]
DS = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
FAMILIES: list[tuple[str, Write]] = [
    ("hermes", lambda name, given: f"<tool_call>\n{call(name, given)}\n</tool_call>"),
    ("llama3_json", lambda name, given: call(name, given, "parameters")),
    ("llama4_json", lambda name, given: "<|python_tag|>" + call(name, given, "parameters")),
    ("mistral", lambda name, given: f"[TOOL_CALLS][{call(name, given)}]"),
    ("mistral", lambda name, given: f"[TOOL_CALLS]{name}[ARGS]{json.dumps(given)}"),
    ("mistral", lambda name, given: f"[TOOL_CALLS]{name}[CALL_ID]a1B2c3D4e[ARGS]{json.dumps(given)}"),
    ("qwen3_coder", lambda name, given: xml(name, *((key, str(value)) for key, value in given.items()))),
    ("deepseek_v3", lambda name, given: f"{DS}function<｜tool▁sep｜>{name}\n```json\n{json.dumps(given)}\n```"
     "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
    ("deepseek_v31", lambda name, given: f"{DS}{name}<｜tool▁sep｜>{json.dumps(given)}<｜tool▁call▁end｜>"),
    ("granite", lambda name, given: f"<|tool_call|>[{call(name, given)}]"),
    ("granite", lambda name, given: f"<tool_call>\n{call(name, given)}\n</tool_call>"),
    ("phi4_mini_json", lambda name, given: f"functools[{call(name, given)}]"),
    ("internlm", lambda name, given: f"<|action_start|><|plugin|>\n{call(name, given, 'parameters')}<|action_end|>"),
]  # fmt: skip


@pytest.mark.parametrize(("parser", "write"), FAMILIES)
def test_what_fits(parser: str, write: Write) -> None:
    good = write("search", GOOD)
    for text in ("", "Plain words.", "A < b, 1 [x] {y}", good, write("note", {"text": "anything"}), write("now", {})):
        assert fits(parser, text) and fits(parser, text, parallel=False), text
    for text in (
        write("search", BAD),
        write("other", {}),
        write("search", {"city": "Paris"}),
        good[: good.index("Paris")],
    ):
        assert not fits(parser, text), text
    # And what fits is read as this call.
    reader = AnswerReader(None, TOOL_PARSERS[parser](TOOLS))
    reader.feed(good, finished=True)
    [found] = reader.answer.calls
    assert (found.name, json.loads(found.arguments)) == ("search", GOOD)


@pytest.mark.parametrize(
    ("parser", "begin", "separator"),
    [
        ("hermes", "I look.\n", "\n"),
        ("llama3_json", "", "; "),
        ("qwen3_coder", "I look.\n", "\n"),
        ("granite", "I look.\n", "\n"),
    ],
)
def test_several_calls(parser: str, begin: str, separator: str) -> None:
    write = next(write for name, write in reversed(FAMILIES) if name == parser)
    one = write("search", GOOD)
    assert fits(parser, begin + one + separator + one)
    assert fits(parser, begin + one, parallel=False)
    assert not fits(parser, begin + one + separator + one, parallel=False)
    assert not fits(parser, begin + one + separator + write("search", BAD))


def test_several_calls_in_one_list() -> None:
    pair = f"[{call('search', GOOD)}, {call('now', {})}]"
    for parser, text in (("mistral", f"[TOOL_CALLS] {pair}"), ("phi4_mini_json", f"functools{pair}")):
        assert fits(parser, text) and not fits(parser, text, parallel=False)
    now = "now<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
    text = f"{DS}{now}\n<｜tool▁call▁begin｜>{now}<｜tool▁calls▁end｜>"
    assert fits("deepseek_v31", text) and not fits("deepseek_v31", text, parallel=False)


def test_values_of_parameters_in_xml() -> None:
    def written(**values: str) -> bool:
        return fits("qwen3_coder", xml("search", *values.items()))

    assert written(city="New York\nUSA", days="9")
    assert not written(city="a name too long", days="9")
    assert not written(city="x", days="nine") and not written(city="x", days="2", unit="K")
    assert fits("qwen3_coder", xml("note", ("whatever", "1 < 2"))), "is not strict"


@pytest.mark.parametrize("parser", sorted(TOOL_PARSERS))
def test_schemas_that_are_none(parser: str) -> None:
    """They are refused or taken, but break nothing."""
    for properties in (5, [], {"a": 5}, {"a": {"enum": 5, "type": 7, "$ref": "#/$defs/x"}}, {"a": {"maxLength": "b"}}):
        for required in (5, ["a", 7]):
            schema: Any = {"properties": properties, "required": required, "$defs": [1]}
            TOOL_PARSERS[parser].answer_format(StrictCalls({"f": schema}, frozenset("f"), True))


def test_families_that_cannot_be_held() -> None:
    for parser in ("pythonic", "gpt-oss"):
        assert TOOL_PARSERS[parser].answer_format(StrictCalls(TOOLS, STRICT, True)) is None


# ---- over HTTP ----

FUNCTIONS: Any = [
    {"type": "function", "function": {"name": name, "parameters": schema, "strict": name in STRICT or None}}
    for name, schema in TOOLS.items()
]


@pytest.fixture(autouse=True)
def grammars_are_not_compiled(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The fake tokenizer is none that the grammar library knows."""

    def check(self: GrammarChecker, source: str) -> None:
        if "uniqueItems" in source:
            raise GrammarError("The grammar cannot be used: uniqueItems.")

    if "engine" in request.fixturenames:
        monkeypatch.setattr(GrammarChecker, "check", check)


def grammar(engine: Any) -> str:
    return engine.client.requests[-1].grammar or ""


@pytest.mark.parametrize("stream", [False, True])
async def test_strict_tools_are_held(http: Http, engine: Any, stream: bool) -> None:
    http_client = http(f"<tool_call>{call('search', GOOD)}</tool_call>")
    client = openai_client(http_client)

    async def ask(**body: Any) -> str:
        answer: Any = await client.chat.completions.create(model=MODEL, messages=HI, stream=stream, **body)
        if stream:
            [_ async for _ in answer]
        return grammar(engine)

    held = await ask(tools=FUNCTIONS)
    assert "<tool_call>" in held and '\\"maximum\\": 9' in held.replace('\\\\"', '\\"')
    assert await ask(tools=FUNCTIONS, tool_choice="none") == ""
    assert await ask(tools=[FUNCTIONS[2]]) == ""
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "note"}}]}
    assert await ask(tools=FUNCTIONS, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}) == ""
    assert "start: call" not in await ask(tools=FUNCTIONS, parallel_tool_calls=False) != held
    assert (await ask(tools=FUNCTIONS, response_format={"type": "json_object"})).count("<tool_call>") == 0


async def test_the_other_apis(http: Http, engine: Any) -> None:
    http_client = http(f"<tool_call>{call('search', GOOD)}</tool_call>")
    tool = {"name": "search", "description": "", "parameters": SEARCH, "type": "function"}
    for strict in (True, False):
        tools: Any = [{**tool, "strict": strict}]
        response = await openai_client(http_client).responses.create(model=MODEL, input="hi", tools=tools)
        assert response.output[0].type == "function_call" and bool(grammar(engine)) == strict
        tools = [{"name": "search", "input_schema": SEARCH, "strict": strict}]
        await anthropic_client(http_client).messages.create(model=MODEL, messages=HI, max_tokens=50, tools=tools)
        assert bool(grammar(engine)) == strict


async def test_a_schema_that_cannot_be_kept_to(http: Http) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": parameters, "strict": True}}]
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        await openai_client(http("x")).chat.completions.create(model=MODEL, messages=HI, tools=tools)


async def test_thoughts_are_free(http: Http, engine: Any) -> None:
    client = openai_client(http("<think>x</think>", reasoning_parser="qwen3"))
    await client.chat.completions.create(model=MODEL, messages=HI, tools=FUNCTIONS)
    assert engine.client.requests[-1].params.reasoning_markers is not None


# ---- a model ----


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_wants_to_call(model: Path, stream: bool) -> None:
    """It begins a call at its first chance, and its weights know nothing of the rest."""
    tools: Any = [{"type": "function", "function": {"name": "search", "parameters": SEARCH, "strict": True}}]
    async with AsyncEngine(model=str(model), kv_cache_memory_bytes=1 << 24) as engine:
        app = create_app(engine, ServerOptions((MODEL,), tool_call_parser="mistral"))
        http_client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")
        completions = openai_client(http_client).chat.completions
        for seed in range(3):
            answer: Any = await completions.create(
                model=MODEL,
                messages=HI,
                tools=tools,
                seed=seed,
                max_tokens=250,
                parallel_tool_calls=False,
                logit_bias={str(IDS["[TOOL_CALLS]"]): 100},
                stream=stream,
            )
            if stream:
                deltas = [chunk.choices[0] async for chunk in answer]
                assert deltas[-1].finish_reason == "tool_calls"
                pieces = [call.function for one in deltas for call in one.delta.tool_calls or []]
                name, arguments = pieces[0].name, "".join(piece.arguments or "" for piece in pieces)
            else:
                assert answer.choices[0].finish_reason == "tool_calls"
                [found] = answer.choices[0].message.tool_calls
                name, arguments = found.function.name, found.function.arguments
            assert name == "search"
            jsonschema.validate(json.loads(arguments), SEARCH)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny_llama(tmp_path_factory.mktemp("strict"), vocab_size=TOKENIZER.get_vocab_size())
    TOKENIZER.save(str(path / "tokenizer.json"))
    return path
