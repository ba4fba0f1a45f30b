"""The page at `/` and what it asks for; how it looks in a browser is tested elsewhere."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.server.conftest import MakeClient, error
from tests.server.fake_async_engine import FakeAsyncEngine

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("path", "number_of_files"), [("/", 3), ("/docs", 3)])
async def test_pages_and_their_files(client: httpx.AsyncClient, path: str, number_of_files: int) -> None:
    page = await client.get(path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    names = re.findall(r'(?:href|src)="(page/[^"]+)"', page.text)
    assert len(names) == number_of_files
    contents = [await client.get("/" + name) for name in names]
    for content in (page, *contents):
        assert content.status_code == 200 and not re.search(r"https?://|[\"'(]//", content.text)


async def test_there_are_no_other_files(client: httpx.AsyncClient) -> None:
    assert (await client.get("/redoc")).status_code == 404
    for name in ("index.html", "..%2Fapp.py", "nothing"):
        assert (await client.get(f"/page/{name}")).status_code == 404


async def test_scripts_use_what_the_page_has(client: httpx.AsyncClient) -> None:
    for path, scripts in (("/", ("chat.js", "live.js")), ("/docs", ("docs.js",))):
        ids = set(re.findall(r'id="([^"]+)"', (await client.get(path)).text))
        for name in scripts:
            script = (await client.get(f"/page/{name}")).text
            assert set(re.findall(r'element\("([^"]+)"\)', script)) <= ids


async def test_live_figures(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    told = (await client.get("/live")).json()
    assert told["blocks"] == "AAECAw==" and told["stats"]["num_running"] == 0
    engine.is_ready = False
    assert error(await client.get("/live"))["status"] == 503


async def test_a_browser_is_asked_for_the_key(make_client: MakeClient) -> None:
    async with make_client(api_keys=("k",)) as client:
        for page in ("/", "/docs"):
            assert (await client.get(page)).headers["www-authenticate"].startswith("Basic ")
        assert (await client.get("/v1/models")).headers["www-authenticate"].startswith("Bearer ")
        for user in ("", "me"):
            assert (await client.get("/", auth=(user, "k"))).status_code == 200
        assert (await client.get("/", auth=("k", "x"))).status_code == 401
        assert (await client.get("/", headers={"Authorization": "Basic ???"})).status_code == 401
