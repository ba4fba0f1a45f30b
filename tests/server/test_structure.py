"""What every endpoint's fields ask of the engine's grammars; and what is wrong with them as status 400."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from interleaf.errors import GrammarError
from interleaf.frontend.grammar_check import GrammarChecker
from tests.server.conftest import MODEL, MakeClient, error
from tests.server.fake_async_engine import FakeAsyncEngine

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TAG = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f"]}
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def grammars_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake tokenizer is none that the grammar library knows."""

    def check(self: GrammarChecker, source: str) -> None:
        if "forbidden" in source:
            raise GrammarError("The grammar cannot be used: it is forbidden.")

    monkeypatch.setattr(GrammarChecker, "check", check)


def grammar(engine: FakeAsyncEngine) -> Any:
    """That of the last request."""
    source = engine.client.requests[-1].grammar
    return None if source is None else json.loads(source)["grammars"][0]


def without_options(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != "x-guidance"}


NAMED = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True, "description": "d"}}
JSON_FIELDS: list[dict[str, Any]] = [
    {"response_format": NAMED},
    {"structured_outputs": {"json": SCHEMA}},
    {"structured_outputs": {"json": json.dumps(SCHEMA), "_backend": "x", "regex": None}},
    {"guided_json": SCHEMA},
    {"guided_json": json.dumps(SCHEMA), "guided_decoding_backend": "x", "guided_whitespace_pattern": " ?"},
]


@pytest.mark.parametrize("fields", JSON_FIELDS)
@pytest.mark.parametrize("stream", [False, True])
async def test_json_schemas(client: httpx.AsyncClient, engine: FakeAsyncEngine, fields: Any, stream: bool) -> None:
    for path, prompt in (("completions", {"prompt": "hi"}), ("chat/completions", {"messages": HI})):
        response = await client.post(f"/v1/{path}", json={"model": MODEL, "stream": stream, **prompt, **fields})
        assert response.status_code == 200, response.text
        assert without_options(grammar(engine)["json_schema"]) == {**SCHEMA, "additionalProperties": False}
        pattern = fields.get("guided_whitespace_pattern")
        assert pattern is None or grammar(engine)["json_schema"]["x-guidance"] == {"whitespace_pattern": pattern}


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"response_format": {"type": "text"}}, None, None),
        ({"response_format": {"type": "json_object"}}, "json_schema", {"type": "object"}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "json_schema", {"type": "object"}),
        ({"response_format": {"type": "structural_tag", **TAG}}, "lark_grammar", "<f"),
        ({"structured_outputs": {"structural_tag": json.dumps(TAG)}}, "lark_grammar", "<f"),
        ({"structured_outputs": {"json_object": True}}, "json_schema", {"type": "object"}),
        ({"structured_outputs": {}}, None, None),
        ({"structured_outputs": {"choice": ["x", "y"]}}, "lark_grammar", '"x" | "y"'),
        ({"guided_choice": ["x", "y"]}, "lark_grammar", '"x" | "y"'),
        ({"guided_regex": "ab+"}, "lark_grammar", "/ab+/"),
        ({"guided_grammar": 'root ::= "x"'}, "lark_grammar", 'start: "x"'),
        ({"guided_grammar": 'start: "x"'}, "lark_grammar", 'start: "x"'),
    ],
)
async def test_other_structures(
    client: httpx.AsyncClient, engine: FakeAsyncEngine, fields: Any, kind: str | None, value: Any
) -> None:
    response = await client.post("/v1/chat/completions", json={"model": MODEL, "messages": HI, **fields})
    assert response.status_code == 200, response.text
    found = grammar(engine)
    if kind is None:
        assert found is None
    elif kind == "json_schema":
        assert without_options(found[kind]) == value
    else:
        assert value in found[kind]


async def test_responses_and_messages(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    wanted = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    body = {"model": MODEL, "input": "hi", "text": {"format": wanted}}
    told = (await client.post("/v1/responses", json=body)).json()
    assert told["text"]["format"] == wanted
    assert without_options(grammar(engine)["json_schema"]) == {**SCHEMA, "additionalProperties": False}
    body["text"] = {"format": {"type": "json_object"}}
    await client.post("/v1/responses", json=body)
    assert without_options(grammar(engine)["json_schema"]) == {"type": "object"}
    body = {"model": MODEL, "messages": HI, "max_tokens": 5}
    body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert (await client.post("/v1/messages", json=body)).status_code == 200
    assert without_options(grammar(engine)["json_schema"]) == {**SCHEMA, "additionalProperties": False}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": NAMED, "guided_regex": "a"}, "structured_outputs"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 5}}, "regex"),
        ({"guided_json": "{"}, "json"),
        ({"guided_choice": []}, "choice"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_grammar": "root ::= ("}, "grammar"),
        ({"guided_regex": "forbidden"}, "regex"),
        ({"response_format": {"type": "structural_tag"}}, "structural_tag"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals(client: httpx.AsyncClient, fields: Any, param: str, stream: bool) -> None:
    body = {"model": MODEL, "messages": HI, "stream": stream, **fields}
    told = error(await client.post("/v1/chat/completions", json=body))
    assert (told["status"], told["type"]) == (400, "invalid_request_error")
    assert told["param"].startswith(param), told


async def test_a_schema_that_is_nested_too_deeply(make_client: MakeClient) -> None:
    async with make_client() as client:
        schema = '{"items":' * 500 + "{}" + "}" * 500
        body = f'{{"model": "{MODEL}", "prompt": "hi", "guided_json": {schema}}}'
        response = await client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert error(response)["status"] == 400
