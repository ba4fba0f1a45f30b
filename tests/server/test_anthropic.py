"""Anthropic's messages on the fake engine."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from interleaf.errors import OverloadedError
from tests.server.conftest import MODEL, MakeClient
from tests.server.fake_async_engine import FakeAsyncEngine
from tests.server.test_responses import typed_events

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]


async def ask(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/messages", json={"model": MODEL, "max_tokens": 40, "messages": HI, **body})


async def test_a_message(client: httpx.AsyncClient) -> None:
    body = (await ask(client)).json()
    assert body.pop("id").startswith("msg_")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "hello there"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 7,
            "output_tokens": 12,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
        },
    }


async def test_reasons_to_stop(client: httpx.AsyncClient) -> None:
    body = (await ask(client, max_tokens=3)).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("max_tokens", None)
    body = (await ask(client, stop_sequences=["lo"])).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "lo")
    assert body["content"][0]["text"] == "hel"


async def test_a_stream(client: httpx.AsyncClient) -> None:
    start, block, *deltas, stop, ended, last = typed_events(await ask(client, stream=True))
    assert start["type"] == "message_start" and start["message"]["content"] == []
    assert start["message"]["usage"]["input_tokens"] == 7 and start["message"]["usage"]["output_tokens"] == 0
    assert block == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert {delta["type"] for delta in deltas} == {"content_block_delta"}
    assert "".join(delta["delta"]["text"] for delta in deltas) == "hello there"
    assert stop == {"type": "content_block_stop", "index": 0}
    assert ended["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert ended["usage"]["output_tokens"] == 12
    assert last == {"type": "message_stop"}


async def test_conversations(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "5"}]},
    ]
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    await ask(client, messages=messages, system=[{"type": "text", "text": "be"}], tools=tools, max_tokens=1)
    assert bytes(engine.client.requests[-1].prompt_token_ids) == b"s:be;u:hi;a:;t:5;t1;a:"


async def test_the_answer_may_be_begun(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    engine.client.script["u:hi;a:he"] = "llo"
    assert (await ask(client, messages=[*HI, {"role": "assistant", "content": "he"}])).json()["content"][0][
        "text"
    ] == "llo"


async def test_counting(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/messages/count_tokens", json={"model": MODEL, "messages": HI})
    assert response.json() == {"input_tokens": 7}


def error(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert set(body) == {"type", "error"} and body["type"] == "error" and body["error"]["message"]
    return response.status_code, body["error"]["type"]


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": None},
        {"max_tokens": 0},
        {"messages": []},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"text": "x"}]}]}]},
        {"temperature": 1.5},
        {"top_p": -1},
        {"tool_choice": {"type": "any"}},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"stop_sequences": [""]},
        {"system": 3},
    ],
)
async def test_refusals(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert error(await ask(client, **body)) == (400, "invalid_request_error")


async def test_errors_have_this_form(make_client: MakeClient, engine: FakeAsyncEngine) -> None:
    async with make_client(api_keys=("k",)) as client:
        assert error(await ask(client)) == (401, "authentication_error")
        client.headers["x-api-key"] = "k"
        assert error(await ask(client, model="nope")) == (404, "not_found_error")
        assert error(await client.post("/v1/messages", content=b"{")) == (400, "invalid_request_error")
        engine.failure = OverloadedError("Full.")
        assert error(await ask(client)) == (429, "rate_limit_error")
        engine.failure, engine.fail_after = ZeroDivisionError("secret"), 2
        last = typed_events(await ask(client, stream=True))[-1]
        assert last["error"]["type"] == "api_error" and "secret" not in last["error"]["message"]


async def test_more_tokens_than_there_is_room_for(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    most = engine.config.scheduler.max_model_len
    refused = await ask(client, max_tokens=most)
    assert refused.status_code == 400
    told = refused.json()["error"]
    assert told["type"] == "invalid_request_error"
    assert told["message"].startswith(f"input length and `max_tokens` exceed context limit: 7 + {most} > {most},")
    assert (await ask(client, max_tokens=most - 7)).status_code == 200


async def test_models(client: httpx.AsyncClient) -> None:
    async def got(path: str) -> Any:
        return (await client.get(path, headers={"anthropic-version": "2023-06-01"})).json()

    listed = await got("/v1/models")
    assert [one["id"] for one in listed["data"]] == [MODEL, "alias"]
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (MODEL, "alias", False)
    one = await got(f"/v1/models/{MODEL}")
    assert one == listed["data"][0] and one["type"] == "model" and one["created_at"].endswith("Z")
    assert (await client.get("/v1/models")).json()["object"] == "list"
