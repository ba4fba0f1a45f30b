"""`/v1/embeddings` on the fake engine: an input's length, whether it is a mean, and zeros."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx
import pytest

from tests.fake_engine import MAX_MODEL_LEN
from tests.server.conftest import MODEL, error
from tests.server.fake_async_engine import FakeAsyncEngine

pytestmark = pytest.mark.anyio

WIDTH = 32


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/embeddings", json={"model": MODEL, "input": "hi", **body})


async def vectors(client: httpx.AsyncClient, **body: Any) -> list[Any]:
    response = await post(client, **body)
    assert response.status_code == 200, response.text
    return [one["embedding"] for one in response.json()["data"]]


async def test_the_response(client: httpx.AsyncClient) -> None:
    body = (await post(client, input=["hi", "you"])).json()
    assert body == {
        "object": "list",
        "model": MODEL,
        "data": [{"object": "embedding", "index": i, "embedding": [1.0] + [0.0] * (WIDTH - 1)} for i in range(2)],
        "usage": {"prompt_tokens": 5, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}},
    }


@pytest.mark.parametrize(
    ("given", "lengths"),
    [
        ("hello", [5]),
        (["hello", "a"], [5, 1]),
        ([65, 66, 67], [3]),
        ([[65], [66, 67]], [1, 2]),
        (["x" * length for length in range(1, 41)], list(range(1, 41))),
    ],
)
async def test_forms_of_input(client: httpx.AsyncClient, given: Any, lengths: list[int]) -> None:
    assert [one[0] for one in await vectors(client, input=given, normalize=False)] == lengths


async def test_base64_is_little_endian_float32(client: httpx.AsyncClient) -> None:
    [numbers] = await vectors(client, input="abc", pooling="mean")
    [text] = await vectors(client, input="abc", pooling="mean", encoding_format="base64")
    assert list(struct.unpack(f"<{WIDTH}f", base64.b64decode(text))) == numbers
    assert numbers[:2] == [struct.unpack("f", struct.pack("f", x / 10**0.5))[0] for x in (3.0, 1.0)]


async def test_options_reach_the_engine(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    assert await vectors(client, pooling="mean", dimensions=2, normalize=False) == [[2.0, 1.0]]
    assert await vectors(client, pooling="last", dimensions=1) == [[1.0]]
    assert await vectors(client, input="x" * 100, truncate_prompt_tokens=7, dimensions=1, normalize=False) == [[7.0]]
    await vectors(client, input="x" * 100, truncate_prompt_tokens=-1, request_id="r", cache_salt="s", user="me")
    told = engine.calls[-1][1]
    assert (told["id"], told["salt"]) == ("embd-r", "s")
    assert len(engine.client.requests[-1].prompt_token_ids) == MAX_MODEL_LEN


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1000]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": None}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": WIDTH + 1}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"pooling": "max"}, "pooling"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"priority": 1}, "priority"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    told = error(await post(client, **body))
    assert (told["status"], told["param"]) == (400, param), told


async def test_other_errors(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    assert error(await client.post("/v1/embeddings", json={"model": MODEL}))["code"] == "missing_required_parameter"
    assert error(await post(client, model="nope"))["code"] == "model_not_found"
    told = error(await post(client, input="x" * (MAX_MODEL_LEN + 1)))
    assert (told["code"], told["param"]) == ("context_length_exceeded", "input")
    engine.failure = RuntimeError("secret")
    told = error(await post(client))
    assert told["status"] == 500 and "secret" not in told["message"]
