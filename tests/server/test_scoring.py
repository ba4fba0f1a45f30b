"""`/pooling`, `/score` and `/rerank` on the fake engine, whose embeddings tell a text's letters."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import httpx
import pytest

from tests import fake_engine
from tests.server.conftest import MODEL, error

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def embeddings_of_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    def pooled(request: Any) -> list[float]:
        letters = "".join(map(chr, request.prompt_token_ids))
        return [float(letters.count(letter)) for letter in "abc"] + [0.0] * 29

    monkeypatch.setattr(fake_engine, "_pooled", pooled)


async def ask(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await client.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items")]
)
async def test_scores(client: httpx.AsyncClient, path: str, names: tuple[str, str]) -> None:
    async def scores(first: Any, second: Any) -> list[float]:
        told = await ask(client, path, **dict(zip(names, (first, second), strict=True)))
        assert told["object"] == "list" and told["model"] == MODEL and told["id"].startswith("score-")
        assert [one["index"] for one in told["data"]] == list(range(len(told["data"])))
        return [one["score"] for one in told["data"]]

    [same] = await scores("ab", "ab")
    assert same == pytest.approx(1.0) and same <= 1.0
    assert await scores("a", ["a", "ab", "b"]) == pytest.approx([1.0, math.sqrt(0.5), 0.0])
    assert await scores(["a", "b"], ["ab", "b"]) == pytest.approx([math.sqrt(0.5), 1.0])


async def test_usage_counts_each_text_once(client: httpx.AsyncClient) -> None:
    told = await ask(client, "/score", text_1="aa", text_2=["b", "aa", "ccc", "b"])
    assert told["usage"]["prompt_tokens"] == told["usage"]["total_tokens"] == 6


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_ranks(client: httpx.AsyncClient, path: str) -> None:
    documents = ["b", "ab", {"text": "a"}, "c"]
    told = await ask(client, path, query="a", documents=documents)
    assert told["id"].startswith("rerank-") and told["usage"]["total_tokens"] == 5
    assert [(one["index"], one["document"]["text"]) for one in told["results"]] == [
        (2, "a"),
        (1, "ab"),
        (0, "b"),
        (3, "c"),
    ]
    assert [one["relevance_score"] for one in told["results"]] == pytest.approx([1.0, math.sqrt(0.5), 0.0, 0.0])
    short = await ask(client, path, query="a", documents=documents, top_n=2, return_documents=False)
    assert [(one["index"], "document" in one) for one in short["results"]] == [(2, False), (1, False)]


async def test_pooling(client: httpx.AsyncClient) -> None:
    told = await ask(client, "/pooling", input=["a", "bb"], normalize=False, encoding_format="float")
    assert [(one["index"], one["object"], one["data"][:3]) for one in told["data"]] == [
        (0, "pooling", [1.0, 0.0, 0.0]),
        (1, "pooling", [0.0, 2.0, 0.0]),
    ]
    [coded] = (await ask(client, "/pooling", input="a", encoding_format="base64"))["data"]
    assert struct.unpack("<32f", base64.b64decode(coded["data"]))[:2] == (1.0, 0.0)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/score", {}, "text_1"),
        ("/score", {"text_1": "a"}, "text_1"),
        ("/score", {"text_1": "a", "text_2": "b", "queries": "a", "documents": "b"}, "text_1"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/score", {"text_1": "a", "text_2": []}, "text_1"),
        ("/score", {"text_1": "a", "text_2": ["b"] * 2049}, "text_2"),
        ("/score", {"text_1": 1, "text_2": "b"}, "text_1"),
        ("/rerank", {"query": "a"}, "documents"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ("/rerank", {"query": "a", "documents": [""]}, "documents"),
        ("/pooling", {"input": ""}, "input"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, path: str, body: Any, param: str) -> None:
    told = error(await client.post(path, json={"model": MODEL, **body}))
    assert told["status"] == 400 and str(told["param"]).startswith(param), told


async def test_an_unknown_model(client: httpx.AsyncClient) -> None:
    for path, body in (("/score", {"text_1": "a", "text_2": "b"}), ("/rerank", {"query": "a", "documents": ["b"]})):
        assert error(await client.post(path, json={"model": "another", **body}))["status"] == 404


async def test_in_batches(client: httpx.AsyncClient) -> None:
    from interleaf.server.batch import ENDPOINTS
    from interleaf.server.generation import new_context

    state = client._transport.app.state.server  # type: ignore[attr-defined]
    for url, fields in (
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    ):
        model, respond = ENDPOINTS[url]
        assert (await respond(model(**fields), new_context(state))).model == MODEL
