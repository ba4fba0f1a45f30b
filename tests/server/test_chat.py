"""`/v1/chat/completions` on the fake engine."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.conftest import MODEL, MakeClient, error, events
from tests.server.fake_async_engine import FakeAsyncEngine

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]


async def chat(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"model": MODEL, "messages": HI, **body})


async def test_an_answer(client: httpx.AsyncClient) -> None:
    body = (await chat(client)).json()
    assert body["id"].startswith("chatcmpl-") and body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello there", "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_a_stream(client: httpx.AsyncClient) -> None:
    first, *chunks = events(await chat(client, stream=True))
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "hello there"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks)


async def test_usage_in_a_stream(client: httpx.AsyncClient) -> None:
    *chunks, last = events(await chat(client, stream=True, n=2, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 24
    assert sum(bool(chunk["choices"][0]["delta"].get("role")) for chunk in chunks) == 2


async def test_logprobs(client: httpx.AsyncClient) -> None:
    [choice] = (await chat(client, logprobs=True, top_logprobs=2, max_completion_tokens=2)).json()["choices"]
    assert choice["finish_reason"] == "length"
    first, second = choice["logprobs"]["content"]
    assert first["token"] == "h" and first["logprob"] == -2.0 and first["bytes"] == [104]
    assert [top["token"] for top in first["top_logprobs"]] == ["d", "h"]
    assert second["token"] == "e"
    chunks = events(await chat(client, logprobs=True, max_tokens=2, stream=True, return_tokens_as_token_ids=True))
    told = [chunk["choices"][0]["logprobs"]["content"] for chunk in chunks[1:]]
    assert [entry[0]["token"] for entry in told] == ["token_id:104", "token_id:101"]
    assert told[0][0]["top_logprobs"] == []


async def test_parts_and_roles(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "good"}]},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [_call("{}")]},
        {"role": "tool", "tool_call_id": "1", "content": "5"},
    ]
    await chat(client, messages=messages, max_tokens=1)
    assert bytes(engine.client.requests[-1].prompt_token_ids) == b"s:be\ngood;u:hi;a:;t:5;a:"


def _call(arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}


async def test_tools_reach_the_template(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    for choice, prompt in ((None, b"u:hi;t1;a:"), ("auto", b"u:hi;t1;a:"), ("none", b"u:hi;a:")):
        assert (await chat(client, tools=tools, tool_choice=choice, max_tokens=1)).status_code == 200
        assert bytes(engine.client.requests[-1].prompt_token_ids) == prompt


async def test_going_on_behind_a_message(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    engine.client.script["u:hi;a:he"] = "llo"
    messages = [*HI, {"role": "assistant", "content": "he"}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    for echo, text in ((False, "llo"), (True, "hello")):
        [choice] = (await chat(client, messages=messages, **options, echo=echo)).json()["choices"]
        assert choice["message"] == {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    chunks = events(await chat(client, messages=messages, **options, echo=True, stream=True))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "hello"


async def test_templates_of_requests(make_client: MakeClient, engine: FakeAsyncEngine) -> None:
    async with make_client() as closed, make_client(trust_request_chat_template=True) as trusting:
        assert error(await chat(closed, chat_template="{{ 1 }}"))["param"] == "chat_template"
        assert (await chat(closed, chat_template="other", max_tokens=1)).status_code == 200
        assert (await chat(trusting, chat_template="{}", max_tokens=1)).status_code == 200
    assert bytes(engine.client.requests[-1].prompt_token_ids) == b"{}u:hi;a:"


async def test_token_ids_and_prompt_logprobs(client: httpx.AsyncClient) -> None:
    body = (await chat(client, return_token_ids=True, prompt_logprobs=0, max_tokens=1)).json()
    assert body["prompt_token_ids"] == list(b"u:hi;a:") and body["choices"][0]["token_ids"] == [104]
    assert len(body["prompt_logprobs"]) == 7 and body["prompt_logprobs"][0] is None
    first, second, *_ = events(await chat(client, return_token_ids=True, max_tokens=1, stream=True))
    assert first["prompt_token_ids"] == list(b"u:hi;a:") and "prompt_token_ids" not in second
    assert second["choices"][0]["token_ids"] == [104]


async def test_without_a_limit_the_context_is_filled(client: httpx.AsyncClient) -> None:
    body = (await chat(client, ignore_eos=True)).json()
    assert body["usage"]["total_tokens"] == 64 and body["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [_call("{")]}]}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs"),
        ({"continue_final_message": True, "tools": 3}, "tools"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    told = error(await chat(client, **body))
    assert (told["status"], told["type"], told["param"]) == (400, "invalid_request_error", param), told


async def test_null_is_the_default(client: httpx.AsyncClient) -> None:
    names = ["temperature", "top_p", "n", "stop", "seed", "max_tokens", "logprobs", "top_logprobs", "stream", "tools"]
    assert (await chat(client, **dict.fromkeys(names))).status_code == 200
