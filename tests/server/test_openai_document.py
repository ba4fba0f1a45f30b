"""What the server answers, against the schemas of OpenAI's own OpenAPI document, with a fake engine."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from interleaf.config import SchedulerConfig
from interleaf.frontend.grammar_check import GrammarChecker
from tests.fake_engine import engine_config
from tests.server.conftest import MODEL, MakeClient
from tests.server.fake_async_engine import FakeAsyncEngine
from tests.server.test_tools import CALLS, THOUGHT, TOOLS, WEATHER, Says

pytestmark = pytest.mark.anyio

HI: Any = [{"role": "user", "content": "hi"}]
RESPONSE_TOOLS: Any = [{"type": "function", **WEATHER, "strict": False}]
FORMAT: Any = {"type": "json_schema", "name": "any", "schema": {"type": "object"}, "strict": True}
REQUIRED = {"tools": TOOLS, "tool_choice": "required"}
ARGUMENTS = '{"city": "Paris"}'


@cache
def schemas() -> dict[str, Any]:
    document = json.loads(Path(__file__).with_name("openai_schemas.json").read_text())
    found: dict[str, Any] = _plain(document["schemas"])
    # The document has no null there, but its examples do, as clients expect.
    completion = found["CreateCompletionResponse"]["properties"]["choices"]["items"]["properties"]
    completion["finish_reason"] = {"anyOf": [completion["finish_reason"], {"type": "null"}]}
    return found


def _plain(value: Any) -> Any:
    """The same with anyOf, as what the document calls oneOf often fits several; and with `nullable` spelled out."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    plain = {"anyOf" if name == "oneOf" else name: _plain(one) for name, one in value.items() if name != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if value.get("nullable") is True else plain


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    root = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas()}}
    return jsonschema.Draft202012Validator(root)


def check(value: Any, name: str) -> None:
    error = jsonschema.exceptions.best_match(validator(name).iter_errors(value))
    assert error is None, (list(error.absolute_path), error.message[:300], value)


def test_the_check_can_fail() -> None:
    with pytest.raises(AssertionError):
        check({"object": "list"}, "ListModelsResponse")
    with pytest.raises(AssertionError):
        check({"type": "response.output_text.delta", "delta": 1}, "ResponseStreamEvent")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeAsyncEngine:
    # The fake tokenizer is none that the grammar library knows.
    monkeypatch.setattr(GrammarChecker, "check", lambda self, source: None)
    scheduler = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=4096)
    return FakeAsyncEngine(engine_config(scheduler=scheduler))


@pytest.fixture
def client(make_client: MakeClient) -> httpx.AsyncClient:
    return make_client(tool_call_parser="hermes", reasoning_parser="deepseek_r1")


async def asked(client: httpx.AsyncClient, method: str, path: str, **body: Any) -> Any:
    answer = await client.request(method, "/v1" + path, json=body or None)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def streamed(client: httpx.AsyncClient, path: str, **body: Any) -> list[Any]:
    answer = await client.post("/v1" + path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


CHATS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("hello", {}),
    "two": ("hello", {"n": 2}),
    "logprobs": ("hello", {"logprobs": True, "top_logprobs": 2}),
    "reasoning": (THOUGHT + "hello", {}),
    "calls": (CALLS, {"tools": TOOLS}),
    "named": (ARGUMENTS, {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}),
    "required": ('[{"name": "get_weather", "parameters": {"city": "Paris"}}]', REQUIRED),
    "cut": ("hello", {"max_tokens": 2}),
}


@pytest.mark.parametrize("name", CHATS)
async def test_chats(engine: FakeAsyncEngine, client: httpx.AsyncClient, name: str) -> None:
    text, extra = CHATS[name]
    engine.client.script = Says(text)
    body = {"model": MODEL, "messages": HI, **extra}
    check(await asked(client, "POST", "/chat/completions", **body), "CreateChatCompletionResponse")
    for chunk in await streamed(client, "/chat/completions", **body, stream_options={"include_usage": True}):
        check(chunk, "CreateChatCompletionStreamResponse")


async def test_kept_chats(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "messages": HI, "store": True, "metadata": {"a": "b"}, "max_tokens": 4}
    path = "/chat/completions/" + (await asked(client, "POST", "/chat/completions", **body))["id"]
    check(await asked(client, "GET", path), "CreateChatCompletionResponse")
    check(await asked(client, "POST", path, metadata={}), "CreateChatCompletionResponse")
    check(await asked(client, "GET", "/chat/completions"), "ChatCompletionList")
    messages = await asked(client, "GET", path + "/messages")
    # The document has these be the assistant's, though they are those that it answers.
    messages["data"] = [{**message, "role": "assistant"} for message in messages["data"]]
    check(messages, "ChatCompletionMessageList")
    check(await asked(client, "DELETE", path), "ChatCompletionDeleted")


@pytest.mark.parametrize("extra", [{}, {"n": 2}, {"logprobs": 2}, {"echo": True}])
async def test_completions(client: httpx.AsyncClient, extra: dict[str, Any]) -> None:
    body = {"model": MODEL, "prompt": ["hi", "ho"], "max_tokens": 4, **extra}
    check(await asked(client, "POST", "/completions", **body), "CreateCompletionResponse")
    for chunk in await streamed(client, "/completions", **body):
        check(chunk, "CreateCompletionResponse")


RESPONSES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("hello", {"instructions": "Be kind.", "metadata": {"a": "b"}}),
    "logprobs": ("hello", {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
    "reasoning": (THOUGHT + "hello", {}),
    "calls": (CALLS, {"tools": RESPONSE_TOOLS}),
    "named": (ARGUMENTS, {"tools": RESPONSE_TOOLS, "tool_choice": {"type": "function", "name": "get_weather"}}),
    "format": ("{}", {"text": {"format": FORMAT}}),
    "cut": ("hello", {"max_output_tokens": 2}),
}


@pytest.mark.parametrize("name", RESPONSES)
async def test_responses(engine: FakeAsyncEngine, client: httpx.AsyncClient, name: str) -> None:
    text, extra = RESPONSES[name]
    engine.client.script = Says(text)
    body = {"model": MODEL, "input": "hi", **extra}
    written = await asked(client, "POST", "/responses", **body)
    check(written, "Response")
    path = "/responses/" + written["id"]
    check(await asked(client, "GET", path), "Response")
    check(await asked(client, "GET", path + "/input_items"), "ResponseItemList")
    for event in await streamed(client, "/responses", **body):
        check(event, "ResponseStreamEvent")
    replayed = await client.get("/v1" + path, params={"stream": "true"})
    for line in replayed.text.splitlines():
        if line.startswith("data: "):
            check(json.loads(line.removeprefix("data: ")), "ResponseStreamEvent")


async def test_response_in_the_background(client: httpx.AsyncClient) -> None:
    queued = await asked(client, "POST", "/responses", model=MODEL, input="hi", background=True)
    check(queued, "Response")
    check(await asked(client, "POST", f"/responses/{queued['id']}/cancel"), "Response")
    check(await asked(client, "POST", "/responses/input_tokens", model=MODEL, input="hi"), "TokenCountsResource")


async def test_models_embeddings_and_errors(client: httpx.AsyncClient) -> None:
    check(await asked(client, "GET", "/models"), "ListModelsResponse")
    check(await asked(client, "GET", f"/models/{MODEL}"), "Model")
    check(await asked(client, "POST", "/embeddings", model=MODEL, input=["a", "b"]), "CreateEmbeddingResponse")
    refused = await client.post("/v1/chat/completions", json={"model": "another", "messages": HI})
    check(refused.json(), "ErrorResponse")


async def test_files_and_batches(client: httpx.AsyncClient) -> None:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": HI}}
    form = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    upload = await client.post("/v1/files", data=form, files={"file": ("in.jsonl", json.dumps(line))})
    check(upload.json(), "OpenAIFile")
    check(await asked(client, "GET", "/files"), "ListFilesResponse")
    wanted = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = await asked(client, "POST", "/batches", input_file_id=upload.json()["id"], **wanted)
    while batch["status"] not in ("completed", "failed"):
        check(batch, "Batch")
        await asyncio.sleep(0.01)
        batch = await asked(client, "GET", f"/batches/{batch['id']}")
    check(batch, "Batch")
    check(await asked(client, "GET", "/batches"), "ListBatchesResponse")
    check(await asked(client, "GET", f"/files/{batch['output_file_id']}"), "OpenAIFile")
    check(await asked(client, "DELETE", f"/files/{batch['output_file_id']}"), "DeleteFileResponse")
