"""Keys, sizes, ids, probes and whatever else happens to every request."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest

from interleaf.errors import (
    DeadlineExceededError,
    EngineDeadError,
    EngineRestartingError,
    OverloadedError,
    RequestFailedError,
)
from tests.server.conftest import MODEL, MakeClient, error
from tests.server.fake_async_engine import FakeAsyncEngine

pytestmark = pytest.mark.anyio

BODY = {"model": MODEL, "prompt": "hi"}


async def test_keys(make_client: MakeClient) -> None:
    async with make_client(api_keys=("one", "two")) as client:
        for headers in ({}, {"Authorization": "Bearer three"}, {"Authorization": "one"}, {"x-api-key": ""}):
            for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nothing", "/health/../v1/models"):
                told = error(await client.get(path, headers=headers))
                assert (told["status"], told["code"]) == (401, "invalid_api_key")
        for headers in ({"Authorization": "Bearer two"}, {"authorization": "bearer one"}, {"x-api-key": "one"}):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        for path in ("/health", "/ready", "/ping"):
            assert (await client.get(path)).status_code == 200


async def test_the_parent_of_a_trace_reaches_the_engine(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"}
    await client.post("/v1/completions", json={"prompt": "hi"}, headers={**parent, "x-other": "c"})
    assert engine.trace_headers == parent


async def test_request_ids(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json=BODY, headers={"X-Request-Id": "abc"})
    assert response.headers["x-request-id"] == "abc" and response.json()["id"] == "cmpl-abc"
    made = (await client.get("/v1/models")).headers["x-request-id"]
    assert len(made) == 32
    for bad in ("x" * 200, "a b", ""):
        assert len((await client.get("/ping", headers={"X-Request-Id": bad})).headers["x-request-id"]) == 32
    assert "x-request-id" in (await client.get("/nothing")).headers


async def test_bodies_that_are_too_long(make_client: MakeClient) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b"x" * 100

    async with make_client(max_body_size=1000) as client:
        for content in (b"x" * 1001, pieces()):
            response = await client.post(
                "/v1/completions", content=content, headers={"Content-Type": "application/json"}
            )
            assert error(response)["status"] == 413
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff",
        b'{"prompt": NaN}',
        b'{"prompt": "\\ud800"}',
        b'{"n": 1e999}',
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"a":' * 5000,
        b"[" * 100000,
    ],
)
async def test_malformed_json(client: httpx.AsyncClient, content: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
        response = await client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert error(response)["status"] == 400


async def test_other_content_types(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", content=b"prompt=hi", headers={"Content-Type": "text/plain"})
    assert error(response)["status"] == 400


async def test_paths_and_methods(client: httpx.AsyncClient) -> None:
    assert error(await client.get("/nothing"))["status"] == 404
    response = await client.get("/v1/completions")
    assert error(response)["status"] == 405 and response.headers["allow"] == "POST"
    assert (await client.put("/v1/batches")).headers["allow"] == "GET, POST"


async def test_unknown_fields_are_logged_once(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interleaf.server.protocol.common._reported", set())
    for _ in range(2):
        response = await client.post("/v1/completions", json={**BODY, "frobnicate": 1, "user": "me"})
        assert response.status_code == 200
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and "'frobnicate'" in warnings[0] and "not known" in warnings[0]


@pytest.mark.parametrize(
    ("failure", "status", "retry"),
    [
        (OverloadedError("Full.", 7.2), 429, "7"),
        (OverloadedError("Full.", 0.1), 429, "1"),
        (EngineDeadError("Pid 77 died."), 503, "2"),
        (EngineRestartingError("Wait."), 503, "2"),
        (RequestFailedError("Twice."), 500, None),
        (ZeroDivisionError("at 0x7f001234 in /usr/lib/secret.py"), 500, None),
        (DeadlineExceededError("Late."), 504, None),
    ],
)
async def test_failures(
    client: httpx.AsyncClient, engine: FakeAsyncEngine, failure: Exception, status: int, retry: str | None
) -> None:
    engine.failure = failure
    for stream in (False, True):
        response = await client.post("/v1/completions", json={**BODY, "stream": stream})
        assert error(response)["status"] == status
        assert response.headers.get("retry-after") == retry
        assert not any(word in response.text for word in ("0x", "secret", "Pid", "Traceback"))


async def test_a_failure_in_mid_stream(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    engine.failure, engine.fail_after = ZeroDivisionError("secret"), 3
    response = await client.post("/v1/completions", json={**BODY, "stream": True})
    assert response.status_code == 200
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and lines[-2].startswith('data: {"error":{') and "secret" not in response.text
    assert len(lines) == 5


async def test_probes(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    assert (await client.get("/health")).status_code == 200
    assert (await client.post("/ping")).status_code == 200
    engine.healthy = False
    assert error(await client.get("/health"))["status"] == 503
    engine.is_ready = False
    assert error(await client.get("/ready"))["status"] == 503


async def test_operations(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    assert set((await client.get("/version")).json()) == {"version"}
    assert (await client.get("/load")).json() == {"server_load": 0}
    page = await client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4") and "vllm:" in page.text
    assert (await client.post("/reset_prefix_cache")).status_code == 200 and engine.client.num_resets == 1
    assert (await client.post("/sleep?level=1")).status_code == 200
    assert (await client.get("/is_sleeping")).json() == {"is_sleeping": True}
    assert (await client.post("/wake_up")).status_code == 200
    assert (await client.get("/is_sleeping")).json() == {"is_sleeping": False}
    assert error(await client.post("/sleep?level=9"))["param"] == "level"


async def test_models(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == [MODEL, "alias"]
    one = (await client.get("/v1/models/alias")).json()
    assert one["object"] == "model" and one["root"] == MODEL and one["max_model_len"] == 64
    assert error(await client.get("/v1/models/some/other"))["status"] == 404


async def test_tokens(client: httpx.AsyncClient) -> None:
    body = (await client.post("/tokenize", json={"prompt": "hi", "return_token_strs": True})).json()
    assert body == {"count": 2, "max_model_len": 64, "tokens": [104, 105], "token_strs": ["h", "i"]}
    messages = [{"role": "user", "content": "hi"}]
    assert (await client.post("/tokenize", json={"messages": messages})).json()["tokens"] == list(b"u:hi;a:")
    assert (await client.post("/detokenize", json={"tokens": [104, 105]})).json() == {"prompt": "hi"}
    assert error(await client.post("/tokenize", json={}))["status"] == 400
    assert error(await client.post("/tokenize", json={"prompt": "x", "model": "y"}))["status"] == 404
    for tokens in ([-1], [128], [2**70], ["1"]):
        assert error(await client.post("/detokenize", json={"tokens": tokens}))["status"] == 400


async def test_cors(make_client: MakeClient) -> None:
    preflight = {"Origin": "http://page", "Access-Control-Request-Method": "POST"}
    async with make_client() as closed, make_client(allowed_origins=("http://page",), api_keys=("k",)) as open_one:
        assert "access-control-allow-origin" not in (await closed.get("/ping", headers=preflight)).headers
        response = await open_one.options("/v1/chat/completions", headers=preflight)
        assert response.status_code == 200 and response.headers["access-control-allow-origin"] == "http://page"
        response = await open_one.get("/v1/models", headers={"Origin": "http://page"})
        assert response.status_code == 401 and response.headers["access-control-allow-origin"] == "http://page"


async def test_a_draining_server_takes_no_work(make_client: MakeClient, engine: FakeAsyncEngine) -> None:
    engine.pause = 0.2
    async with make_client() as client:
        running = asyncio.ensure_future(client.post("/v1/completions", json=BODY))
        await asyncio.sleep(0.03)
        assert (await client.get("/load")).json() == {"server_load": 1}
        state = client._transport.app.state.server  # type: ignore[attr-defined]
        drained = asyncio.ensure_future(state.drain(5))
        await asyncio.sleep(0)
        response = await client.post("/v1/completions", json=BODY)
        assert error(response)["status"] == 503 and response.headers["retry-after"]
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200
        assert await drained and (await running).status_code == 200
        assert await state.drain(0)


async def test_deadlines(make_client: MakeClient, engine: FakeAsyncEngine) -> None:
    async with make_client(request_timeout=5.0) as client:
        for header, deadline in ((None, 5.0), ("2.5", 2.5), ("60", 5.0)):
            headers = {} if header is None else {"X-Request-Timeout": header}
            assert (await client.post("/v1/completions", json=BODY, headers=headers)).status_code == 200
            assert engine.calls[-1][1]["deadline"] == deadline
        for header in ("0", "-1", "nan", "inf", "soon", ""):
            response = await client.post("/v1/completions", json=BODY, headers={"X-Request-Timeout": header})
            assert error(response)["status"] == 400


async def test_behind_a_proxy(make_client: MakeClient) -> None:
    """As uvicorn has it: what the proxy cut off is in the path again."""
    async with make_client(api_keys=("k",)) as client:
        app = client._transport.app  # type: ignore[attr-defined]
    transport = httpx.ASGITransport(app, root_path="/llm")
    async with httpx.AsyncClient(transport=transport, base_url="http://server/llm/") as client:
        assert (await client.get("health")).status_code == 200
        assert (await client.get("v1/models")).status_code == 401
        assert (await client.get("v1/models", headers={"x-api-key": "k"})).status_code == 200
        told = (await client.post("v1/messages", json={}, headers={"x-api-key": "k"})).json()
        assert told["type"] == "error"


async def test_invocations_are_whatever_the_body_says(client: httpx.AsyncClient) -> None:
    for body, kind in (
        ({"prompt": "hi"}, "text_completion"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "chat.completion"),
        ({"input": "hi"}, "list"),
    ):
        assert (await client.post("/invocations", json=body)).json()["object"] == kind
    assert error(await client.post("/invocations", json={}))["status"] == 400
    assert error(await client.post("/invocations", json={"prompt": 5}))["param"] == "prompt"
