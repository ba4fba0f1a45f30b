"""Chats with `store`, on the fake engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import MODEL, MakeClient, error, events

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"
HI = [{"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
HI += [{"role": "user", "content": "hi", "name": "Ada"}]


async def chat(client: httpx.AsyncClient, **body: Any) -> Any:
    answer = await client.post(PATH, json={"model": MODEL, "messages": HI, "max_tokens": 5, "store": True, **body})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.fixture(params=["memory", "file"])
async def client(request: pytest.FixtureRequest, make_client: MakeClient, tmp_path: Path) -> Any:
    async with make_client(response_store=tmp_path / "store" if request.param == "file" else None) as client:
        yield client


async def test_a_chat_is_kept_until_it_is_deleted(client: httpx.AsyncClient) -> None:
    answer = (await chat(client, temperature=0.5, metadata={"a": "b"}, user="u")).json()
    path = f"{PATH}/{answer['id']}"
    kept = (await client.get(path)).json()
    assert {name: kept[name] for name in answer} == answer
    assert (kept["temperature"], kept["metadata"], kept["input_user"]) == (0.5, {"a": "b"}, "u")
    changed = (await client.post(path, json={"metadata": {"c": "d"}})).json()
    assert changed == {**kept, "metadata": {"c": "d"}} == (await client.get(path)).json()
    assert (await client.delete(path)).json() == {
        "id": answer["id"],
        "object": "chat.completion.deleted",
        "deleted": True,
    }
    for gone in (await client.get(path), await client.delete(path), await client.get(path + "/messages")):
        assert error(gone)["status"] == 404


async def test_a_client_that_gives_an_id_twice(client: httpx.AsyncClient) -> None:
    first, second = [(await chat(client, request_id="mine", seed=seed)).json() for seed in (1, 2)]
    assert first["id"] == "chatcmpl-mine" != second["id"]
    for answer in (first, second):
        assert (await client.get(f"{PATH}/{answer['id']}")).json()["choices"] == answer["choices"]


async def test_its_messages(client: httpx.AsyncClient) -> None:
    name = (await chat(client)).json()["id"]
    told = (await client.get(f"{PATH}/{name}/messages")).json()
    assert [(one["id"], one["role"], one["content"]) for one in told["data"]] == [
        (f"{name}-0", "system", "a\nb"),
        (f"{name}-1", "user", "hi"),
    ]
    assert told["data"][0]["content_parts"] == HI[0]["content"] and told["data"][1]["name"] == "Ada"
    page = (await client.get(f"{PATH}/{name}/messages", params={"limit": 1, "order": "desc"})).json()
    assert page["has_more"] and page["first_id"] == page["last_id"] == f"{name}-1"
    page = (await client.get(f"{PATH}/{name}/messages", params={"after": f"{name}-0"})).json()
    assert [one["id"] for one in page["data"]] == [f"{name}-1"] and not page["has_more"]


async def test_they_are_listed_by_page(client: httpx.AsyncClient) -> None:
    names = [(await chat(client, metadata={"parity": str(n % 2), "n": str(n)})).json()["id"] for n in range(5)]
    # Neither a look nor a change moves a chat in the list.
    await client.get(f"{PATH}/{names[0]}")
    await client.post(f"{PATH}/{names[1]}", json={"metadata": {"parity": "1"}})
    assert (await chat(client, store=False)).json()["id"] not in names

    async def listed(**params: Any) -> tuple[list[str], bool]:
        page = (await client.get(PATH, params=params)).json()
        found = [one["id"] for one in page["data"]]
        assert [page["first_id"], page["last_id"]] == ([found[0], found[-1]] if found else [None, None])
        return found, page["has_more"]

    assert await listed() == (names, False) == await listed(model=MODEL)
    assert await listed(order="desc") == (names[::-1], False)
    assert await listed(limit=2) == (names[:2], True)
    assert await listed(limit=2, after=names[2]) == (names[3:], False)
    assert await listed(limit=2, after=names[3], order="desc") == (names[1:3][::-1], True)
    assert await listed(**{"metadata[parity]": "1"}) == (names[1:4:2], False)
    assert await listed(**{"metadata[parity]": "1", "metadata[n]": "3"}) == ([names[3]], False)
    assert await listed(model="another") == ([], False)


async def test_a_stream_is_kept_as_the_answer_that_it_makes(client: httpx.AsyncClient) -> None:
    same = {"n": 2, "seed": 1, "logprobs": True, "top_logprobs": 1}
    whole = (await chat(client, **same)).json()
    told = events(await chat(client, **same, stream=True, stream_options={"include_usage": True}))
    kept = (await client.get(f"{PATH}/{told[0]['id']}")).json()
    assert kept["choices"] == whole["choices"]
    assert kept["usage"] == whole["usage"] and kept["object"] == "chat.completion"


async def test_a_file_keeps_them(make_client: MakeClient, tmp_path: Path) -> None:
    async with make_client(response_store=tmp_path / "store") as client:
        answer = (await chat(client)).json()
    async with make_client(response_store=tmp_path / "store") as client:
        assert (await client.get(f"{PATH}/{answer['id']}")).json()["choices"] == answer["choices"]


@pytest.mark.parametrize(
    ("metadata", "param"),
    [
        ({str(number): "" for number in range(17)}, "metadata"),
        ({"a" * 65: ""}, "metadata"),
        ({"a": "b" * 513}, "metadata.a"),
        ({"a": 1}, "metadata.a"),
        ("a", "metadata"),
    ],
)
async def test_metadata_has_limits(client: httpx.AsyncClient, metadata: Any, param: str) -> None:
    refused = await client.post(PATH, json={"model": MODEL, "messages": HI, "store": True, "metadata": metadata})
    told = error(refused)
    assert told["status"] == 400 and str(told["param"]).startswith(param), told
