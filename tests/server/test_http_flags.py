"""Flags of the server that change every answer, on the fake engine."""

from __future__ import annotations

import argparse
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from interleaf.cli.http_flags import ALWAYS_SO, add_http_flags, http_options
from interleaf.errors import ConfigError
from tests.server.conftest import MODEL, MakeClient, error, events
from tests.server.fake_async_engine import FakeAsyncEngine

pytestmark = pytest.mark.anyio
HI: Any = [{"role": "user", "content": "hi"}]


def options(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_http_flags(parser)
    return http_options(vars(parser.parse_args(words)))


async def chat(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    answer = await client.post("/v1/chat/completions", json={"model": MODEL, "messages": HI, "max_tokens": 3, **body})
    assert answer.status_code == 200, answer.text
    return answer


async def test_role_and_tokens(make_client: MakeClient) -> None:
    async with make_client(**options("--response-role", "bot", "--return-tokens-as-token-ids")) as client:
        [choice] = (await chat(client, logprobs=True)).json()["choices"]
        assert choice["message"]["role"] == "bot"
        assert choice["logprobs"]["content"][0]["token"].startswith("token_id:")
        [choice] = (await chat(client, logprobs=True, return_tokens_as_token_ids=False)).json()["choices"]
        assert not choice["logprobs"]["content"][0]["token"].startswith("token_id:")
        told = events(await chat(client, stream=True))
        assert told[0]["choices"][0]["delta"]["role"] == "bot" and "usage" not in told[-1]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_usage_in_every_stream(make_client: MakeClient, path: str) -> None:
    async with make_client(**options("--enable-force-include-usage")) as client:
        prompt: dict[str, Any] = {"messages": HI} if "chat" in path else {"prompt": "hi"}
        answer = await client.post(path, json={"model": MODEL, "stream": True, "max_tokens": 2, **prompt})
        told = events(answer)
        assert told[-1]["choices"] == [] and told[-1]["usage"]["completion_tokens"] == 2


async def test_variables_of_the_template(
    make_client: MakeClient, engine: FakeAsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    render = engine.processor.render_chat

    def spy(*args: Any, **fields: Any) -> Any:
        seen.append(fields["chat_template_kwargs"])
        return render(*args, **fields)

    monkeypatch.setattr(engine.processor, "render_chat", spy)
    async with make_client(**options("--default-chat-template-kwargs", '{"a": 1, "b": 2}')) as client:
        await chat(client)
        await chat(client, chat_template_kwargs={"b": 3})
    assert seen == [{"a": 1, "b": 2}, {"a": 1, "b": 3}]


async def test_no_documentation(make_client: MakeClient) -> None:
    async with make_client(**options("--disable-fastapi-docs")) as client:
        for path in ("/docs", "/openapi.json"):
            assert error(await client.get(path))["status"] == 404
        await chat(client)


class Layer:
    """Middleware as a class."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["path"] = scope["path"].replace("/again", "")
        await self._app(scope, receive, send)


async def stamped(request: Any, call_next: Any) -> Any:
    """Middleware as a function."""
    answer = await call_next(request)
    answer.headers["x-stamp"] = "1"
    return answer


async def test_middleware(make_client: MakeClient) -> None:
    words = ("--middleware", f"{__name__}.Layer", "--middleware", f"{__name__}.stamped")
    async with make_client(**options(*words)) as client:
        answer = await client.get("/again/v1/models")
        assert answer.status_code == 200 and answer.headers["x-stamp"] == "1"
        assert events(await chat(client, stream=True))
    for name in ("nothing.here", f"{__name__}.pytestmark", "plain"):
        with pytest.raises(ConfigError, match="middleware"):
            make_client(**options("--middleware", name))


async def test_pages_of_other_origins(make_client: MakeClient) -> None:
    words = ("--allow-credentials", "--allowed-methods", '["GET"]', "--allowed-headers", '["X-A"]')
    async with make_client(allowed_origins=("http://a",), **options(*words)) as client:
        asked = {"Origin": "http://a", "Access-Control-Request-Method": "GET"}
        answer = await client.options("/v1/models", headers=asked)
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["access-control-allow-methods"] == "GET"
        refused = await client.options("/v1/models", headers={**asked, "Access-Control-Request-Method": "POST"})
        assert refused.status_code == 400


@pytest.mark.parametrize("name", sorted(ALWAYS_SO))
def test_what_is_always_so(name: str) -> None:
    flag = name.replace("_", "-")
    assert options("--" + flag) == options()
    with pytest.raises(ConfigError, match=name):
        options("--no-" + flag)
