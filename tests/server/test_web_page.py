"""The page at `/` and what it asks for; how it looks in a browser is tested elsewhere."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.server.conftest import MakeClient, error
from tests.server.fake_async_engine import FakeAsyncEngine

pytestmark = pytest.mark.anyio


async def test_the_page_and_its_files(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text and "https://" not in page.text
    names = re.findall(r'(?:href|src)="(page/[^"]+)"', page.text)
    assert len(names) == 3
    for name in names:
        assert (await client.get("/" + name)).status_code == 200
    for name in ("index.html", "..%2Fapp.py", "nothing"):
        assert (await client.get(f"/page/{name}")).status_code == 404


async def test_scripts_use_what_the_page_has(client: httpx.AsyncClient) -> None:
    ids = set(re.findall(r'id="([^"]+)"', (await client.get("/")).text))
    for name in ("chat.js", "live.js"):
        script = (await client.get(f"/page/{name}")).text
        assert set(re.findall(r'element\("([^"]+)"\)', script)) <= ids


async def test_live_figures(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    told = (await client.get("/live")).json()
    assert told["blocks"] == "AAECAw==" and told["stats"]["num_running"] == 0
    engine.is_ready = False
    assert error(await client.get("/live"))["status"] == 503


async def test_a_browser_is_asked_for_the_key(make_client: MakeClient) -> None:
    async with make_client(api_keys=("k",)) as client:
        assert (await client.get("/")).headers["www-authenticate"].startswith("Basic ")
        assert (await client.get("/v1/models")).headers["www-authenticate"].startswith("Bearer ")
        for user in ("", "me"):
            assert (await client.get("/", auth=(user, "k"))).status_code == 200
        assert (await client.get("/", auth=("k", "x"))).status_code == 401
        assert (await client.get("/", headers={"Authorization": "Basic ???"})).status_code == 401
