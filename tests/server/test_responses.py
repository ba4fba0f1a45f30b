"""`/v1/responses` on the fake engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from interleaf.server.response_store import MemoryStore, SqliteStore, StoredResponse
from tests.server.conftest import MODEL, MakeClient, error
from tests.server.fake_async_engine import FakeAsyncEngine

pytestmark = pytest.mark.anyio


async def respond(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/responses", json={"model": MODEL, "input": "hi", **body})


def typed_events(response: httpx.Response) -> list[dict[str, Any]]:
    """The values of events that bear names, which must be the values' types."""
    values = []
    for block in response.text.removeprefix(":\n\n").removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        values.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {values[-1]['type']}"
    return values


async def test_a_response(client: httpx.AsyncClient) -> None:
    body = (await respond(client, metadata={"a": "b"}, temperature=0.5)).json()
    assert body["id"].startswith("resp_") and body["object"] == "response" and body["status"] == "completed"
    [message] = body["output"]
    assert message["role"] == "assistant" and message["status"] == "completed"
    assert message["content"] == [{"type": "output_text", "text": "hello there", "annotations": [], "logprobs": []}]
    assert body["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 12,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 19,
    }
    assert body["metadata"] == {"a": "b"} and body["temperature"] == 0.5


async def test_a_kept_response_is_streamed_again(client: httpx.AsyncClient) -> None:
    written = typed_events(await respond(client, stream=True))
    path = f"/v1/responses/{written[-1]['response']['id']}"

    async def replayed(after: int) -> list[dict[str, Any]]:
        response = await client.get(path, params={"stream": "true", "starting_after": after})
        return typed_events(response) if response.text != ":\n\n" else []

    again = await replayed(-1)
    kinds = [value["type"] for value in again]
    assert kinds == list(dict.fromkeys(value["type"] for value in written)), "a delta for all of the text"
    assert [value["sequence_number"] for value in again] == list(range(len(again)))
    ends = [
        [value for value in values if value["type"].endswith((".done", ".completed"))] for values in (written, again)
    ]
    for one, other in zip(*ends, strict=True):
        assert {**one, "sequence_number": 0} == {**other, "sequence_number": 0}
    for after in (0, 3, len(again) - 1):
        assert await replayed(after) == again[after + 1 :]


async def test_a_background_response_is_streamed_once_it_is_written(client: httpx.AsyncClient) -> None:
    told = typed_events(await respond(client, stream=True, background=True))
    assert told[0]["response"]["status"] == "in_progress" and told[-1]["type"] == "response.completed"
    assert told[-1]["response"]["output"][0]["content"][0]["text"] == "hello there"


async def test_input_items_come_in_pages_and_input_tokens_are_counted(client: httpx.AsyncClient) -> None:
    items = [{"role": "user", "content": text} for text in ("a", "b", "c")]
    made = (await respond(client, input=items, max_output_tokens=1)).json()
    path = f"/v1/responses/{made['id']}/input_items"
    texts = []
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = {"after": page["last_id"]} if page["last_id"] else {}
        page = (await client.get(path, params={"limit": 2, "order": "asc", **after})).json()
        texts.append([item["content"][0]["text"] for item in page["data"]])
    assert texts == [["a", "b"], ["c"]]
    assert [item["content"][0]["text"] for item in (await client.get(path)).json()["data"]] == ["c", "b", "a"]
    counted = (await client.post("/v1/responses/input_tokens", json={"input": items})).json()
    assert counted == {"object": "response.input_tokens", "input_tokens": made["usage"]["input_tokens"]}


async def test_a_stream(client: httpx.AsyncClient) -> None:
    values = typed_events(await respond(client, stream=True))
    kinds = [value["type"].removeprefix("response.") for value in values]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [value["sequence_number"] for value in values] == list(range(len(values)))
    assert "".join(value["delta"] for value in values if "delta" in value) == "hello there" == values[-4]["text"]
    assert values[-1]["response"]["output"][0]["content"][0]["text"] == "hello there"
    retrieved = (await client.get(f"/v1/responses/{values[0]['response']['id']}")).json()
    assert retrieved == values[-1]["response"]


async def test_the_length_limit(client: httpx.AsyncClient) -> None:
    body = (await respond(client, max_output_tokens=3)).json()
    assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert typed_events(await respond(client, max_output_tokens=3, stream=True))[-1]["type"] == "response.incomplete"


async def test_going_on(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    engine.client.script["s:be;u:hi;a:"] = "yes"
    first = (await respond(client, instructions="be")).json()
    second = (await respond(client, input="yo", previous_response_id=first["id"], max_output_tokens=1)).json()
    assert bytes(engine.client.requests[-1].prompt_token_ids) == b"u:hi;a:yes;u:yo;a:"
    await respond(client, input="so", previous_response_id=second["id"], max_output_tokens=1)
    assert bytes(engine.client.requests[-1].prompt_token_ids).startswith(b"u:hi;a:yes;u:yo;a:")
    items = (await client.get(f"/v1/responses/{first['id']}/input_items")).json()["data"]
    assert items[0]["content"] == [{"type": "input_text", "text": "hi"}]
    assert (await client.delete(f"/v1/responses/{first['id']}")).json()["deleted"]
    for response in (
        await client.get(f"/v1/responses/{first['id']}"),
        await client.delete(f"/v1/responses/{first['id']}"),
        await respond(client, previous_response_id=first["id"]),
        await client.get("/v1/responses/resp_"),
    ):
        assert error(response)["status"] == 404
    assert error(await respond(client, previous_response_id="resp_"))["param"] == "previous_response_id"


async def test_items(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    given = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yo", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "1", "output": "5"},
    ]
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
    body = (await respond(client, input=given, tools=tools, max_output_tokens=1)).json()
    assert bytes(engine.client.requests[-1].prompt_token_ids) == b"u:hi;a:yo;t:5;t1;a:"
    assert body["tools"][0]["name"] == "f"


async def test_ids_are_new_even_if_request_ids_are_not(client: httpx.AsyncClient) -> None:
    client.headers["X-Request-Id"] = "same"
    assert (await respond(client)).json()["id"] != (await respond(client)).json()["id"]


async def test_not_stored(client: httpx.AsyncClient) -> None:
    body = (await respond(client, store=False)).json()
    assert (await client.get(f"/v1/responses/{body['id']}")).status_code == 404


async def test_logprobs(client: httpx.AsyncClient) -> None:
    options = {"include": ["message.output_text.logprobs"], "top_logprobs": 1, "max_output_tokens": 2}
    told = (await respond(client, **options)).json()["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in told] == ["h", "e"] and len(told[0]["top_logprobs"]) == 1
    values = typed_events(await respond(client, **options, stream=True))
    assert values[4]["logprobs"] == told[:1] and values[-4]["logprobs"] == told


async def test_in_the_background(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    body = (await respond(client, background=True)).json()
    assert body["status"] == "queued"
    for _ in range(100):
        await asyncio.sleep(0.01)
        kept = (await client.get(f"/v1/responses/{body['id']}")).json()
        if kept["status"] == "completed":
            break
    assert kept["output"][0]["content"][0]["text"] == "hello there"
    engine.pause = 5
    body = (await respond(client, background=True)).json()
    await asyncio.sleep(0.05)
    assert (await client.get("/load")).json() == {"server_load": 1}
    assert (await client.post(f"/v1/responses/{body['id']}/cancel")).json()["status"] == "cancelled"
    assert (await client.get(f"/v1/responses/{body['id']}")).json()["status"] == "cancelled"
    assert not engine.client.has_unfinished()


async def test_failures(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    done = (await respond(client)).json()
    assert error(await client.post(f"/v1/responses/{done['id']}/cancel"))["status"] == 400
    engine.failure, engine.fail_after = ZeroDivisionError("secret"), 2
    *_, told, last = typed_events(await respond(client, stream=True))
    assert told["type"] == "error" and told["code"] == "internal_error" and "secret" not in told["message"]
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "messages"),
        ({"input": [{"role": "user", "content": [{"text": "x"}]}]}, "content.0.type"),
        ({"input": [{"role": "", "content": "x"}]}, "role"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True, "store": False}, "background"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    told = error(await respond(client, **body))
    assert (told["status"], told["param"]) == (400, param), told


async def test_a_file_keeps_them(make_client: MakeClient, tmp_path: Path) -> None:
    async with make_client(response_store=tmp_path / "store") as client:
        body = (await respond(client)).json()
    async with make_client(response_store=tmp_path / "store") as client:
        assert (await client.get(f"/v1/responses/{body['id']}")).json() == body


async def test_what_a_dead_server_left(make_client: MakeClient, tmp_path: Path) -> None:
    store = SqliteStore(StoredResponse, tmp_path / "store")
    await store.put(StoredResponse(f"resp_{1:032x}", {"status": "in_progress", "background": True}, [], []))
    await store.close()
    async with make_client(response_store=tmp_path / "store") as client:
        assert (await client.get(f"/v1/responses/resp_{1:032x}")).json()["status"] == "failed"


async def test_memory_is_bounded() -> None:
    store = MemoryStore(StoredResponse, max_count=2, max_bytes=10_000)
    for name in "abc":
        await store.put(StoredResponse(name, {}, [], []))
        assert await store.get("a") is not None or name == "c"
    assert await store.get("a") is not None and await store.get("b") is None
    await store.put(StoredResponse("d", {"x": "y" * 20_000}, [], []))
    assert [await store.get(name) for name in "acd"] == [None] * 3
    await store.put(StoredResponse("e", {}, [], []))
    assert await store.get("e") is not None
