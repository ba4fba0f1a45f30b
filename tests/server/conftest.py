"""A server on the fake engine, in this process: `client` talks to it without a socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from interleaf.server.app import create_app
from interleaf.server.options import ServerOptions
from tests.server.fake_async_engine import FakeAsyncEngine

MODEL = "fake-model"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> FakeAsyncEngine:
    engine = FakeAsyncEngine()
    engine.client.script = {"hi": "hello there", "u:hi;a:": "hello there"}
    return engine


MakeClient = Callable[..., httpx.AsyncClient]


@pytest.fixture
def make_client(engine: FakeAsyncEngine) -> MakeClient:
    """A client of a server with these options (fields of ServerOptions)."""

    def make(**options: Any) -> httpx.AsyncClient:
        app = create_app(engine, ServerOptions(**{"served_model_names": (MODEL, "alias"), **options}))
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")

    return make


@pytest.fixture
async def client(make_client: MakeClient) -> AsyncIterator[httpx.AsyncClient]:
    async with make_client() as client:
        yield client


def events(response: httpx.Response) -> list[Any]:
    """The values of a stream's events; the end mark must be there, and is left out."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def error(response: httpx.Response) -> dict[str, Any]:
    """An error's body, whose form is checked."""
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, body
    assert isinstance(body["error"]["message"], str) and body["error"]["message"]
    return {"status": response.status_code, **body["error"]}
