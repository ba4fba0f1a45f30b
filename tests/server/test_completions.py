"""`/v1/completions` on the fake engine, whose tokens are characters."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.fake_engine import MAX_MODEL_LEN
from tests.server.conftest import MODEL, error, events
from tests.server.fake_async_engine import FakeAsyncEngine

pytestmark = pytest.mark.anyio


async def complete(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"model": MODEL, "prompt": "hi", **body})


async def test_a_completion(client: httpx.AsyncClient) -> None:
    response = await complete(client)
    assert response.status_code == 200
    body = response.json()
    assert body["id"].startswith("cmpl-") and body["object"] == "text_completion" and body["model"] == MODEL
    [choice] = body["choices"]
    assert choice == {
        "index": 0,
        "text": "hello there",
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }
    assert body["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 12,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_stream(client: httpx.AsyncClient) -> None:
    chunks = events(await complete(client, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hello there"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 11 + ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


async def test_usage_in_a_stream(client: httpx.AsyncClient) -> None:
    *chunks, last = events(await complete(client, stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 12
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = events(await complete(client, stream=True, stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == list(range(1, 13))


async def test_several_prompts_and_sequences(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    engine.client.script["yo"] = "what"
    body = (await complete(client, prompt=["hi", "yo"], n=2)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == ["hello there"] * 2 + ["what"] * 2
    assert body["usage"]["prompt_tokens"] == 4 and body["usage"]["completion_tokens"] == 34
    texts = ["", "", "", ""]
    for chunk in events(await complete(client, prompt=["hi", "yo"], n=2, stream=True)):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["hello there"] * 2 + ["what"] * 2


@pytest.mark.parametrize("prompt", [[104, 105], [[104, 105]]])
async def test_token_ids(client: httpx.AsyncClient, prompt: Any) -> None:
    assert (await complete(client, prompt=prompt, echo=True)).json()["choices"][0]["text"] == "hihello there"


async def test_echo_and_logprobs(client: httpx.AsyncClient) -> None:
    [choice] = (await complete(client, echo=True, logprobs=1, max_tokens=2)).json()["choices"]
    assert choice["text"] == "hihe"
    told = choice["logprobs"]
    assert told["tokens"] == ["h", "i", "h", "e"] and told["text_offset"] == [0, 1, 2, 3]
    assert told["token_logprobs"] == [None, -2.0, -2.0, -2.0]
    assert told["top_logprobs"] == [None, {"d": -1.0, "i": -2.0}, {"d": -1.0, "h": -2.0}, {"d": -1.0, "e": -2.0}]
    chunks = events(await complete(client, echo=True, logprobs=1, max_tokens=2, stream=True))
    pieces = [chunk["choices"][0] for chunk in chunks]
    assert "".join(piece["text"] for piece in pieces) == "hihe"
    for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
        assert [entry for piece in pieces for entry in piece["logprobs"][name]] == told[name]


async def test_logprobs_without_alternatives(client: httpx.AsyncClient) -> None:
    [choice] = (await complete(client, logprobs=0, max_tokens=2)).json()["choices"]
    assert choice["logprobs"]["top_logprobs"] == [None, None]
    [choice] = (await complete(client, logprobs=0, max_tokens=1, return_tokens_as_token_ids=True)).json()["choices"]
    assert choice["logprobs"]["tokens"] == ["token_id:104"]


async def test_no_tokens_at_all(client: httpx.AsyncClient) -> None:
    body = (await complete(client, max_tokens=0, echo=True, logprobs=1)).json()
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]["tokens"]) == ("hi", "length", ["h", "i"])
    assert body["usage"]["completion_tokens"] == 0


async def test_best_of(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    body = (await complete(client, best_of=3)).json()
    assert len(body["choices"]) == 1 and body["choices"][0]["index"] == 0 and body["choices"][0]["logprobs"] is None
    assert engine.client.requests[-1].params.n == 3
    assert body["usage"]["completion_tokens"] == 36


async def test_token_ids_are_returned(client: httpx.AsyncClient) -> None:
    [choice] = (await complete(client, return_token_ids=True, max_tokens=2)).json()["choices"]
    assert choice["prompt_token_ids"] == [104, 105] and choice["token_ids"] == [104, 101]
    chunks = events(await complete(client, return_token_ids=True, max_tokens=2, stream=True))
    assert chunks[0]["choices"][0]["prompt_token_ids"] == [104, 105]
    assert "prompt_token_ids" not in chunks[1]["choices"][0]


async def test_prompt_logprobs(client: httpx.AsyncClient) -> None:
    [choice] = (await complete(client, prompt_logprobs=1, max_tokens=1)).json()["choices"]
    first, second = choice["prompt_logprobs"]
    assert first is None
    assert second["105"] == {"logprob": -2.0, "rank": 2, "decoded_token": "i"}


async def test_stop_strings(client: httpx.AsyncClient) -> None:
    [choice] = (await complete(client, stop=["lo", " th"])).json()["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("hel", "stop", "lo")
    chunks = events(await complete(client, stop="lo", stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hel"
    assert chunks[-1]["choices"][0]["stop_reason"] == "lo"


async def test_fields_arrive(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "seed": 11,
        "stop_token_ids": [5],
        "ignore_eos": True,
        "min_tokens": 2,
        "max_tokens": 3,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "allowed_token_ids": [104, 101, 108],
        "bad_words": ["x"],
        "truncate_prompt_tokens": 2,
        "speculative": False,
        "logprobs": 2,
        "prompt_logprobs": 1,
    }
    assert (await complete(client, **fields, logit_bias={"104": 5}, cache_salt="s", request_id="r")).status_code == 200
    params = engine.client.requests[-1].params
    assert {name: getattr(params, name) for name in fields} == fields
    assert params.logit_bias == {104: 5.0}
    assert engine.calls[-1] == ("generate", {"id": "cmpl-r", "priority": 0, "salt": "s", "deadline": None})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [999]}, "prompt_token_ids"),
        ({"prompt": ["a"] * 3000}, "prompt"),
        ({"prompt": ["a"] * 2000, "n": 100}, "n"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": "1"}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"stream_options": {}}, "stream_options"),
        ({"priority": 1}, "priority"),
        ({"use_beam_search": True, "beam_width": 2, "n": 3}, "n"),
        ({"use_beam_search": True, "beam_width": 0}, "beam_width"),
        ({"use_beam_search": True, "n": 100}, "beam_width"),
        ({"use_beam_search": True, "length_penalty": 11.0}, "length_penalty"),
        ({"use_beam_search": True, "early_stopping": "soon"}, "early_stopping"),
        ({"beam_width": 4}, "beam_width"),
        ({"allowed_token_ids": [500]}, "allowed_token_ids"),
        ({"request_id": "a b"}, "request_id"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    told = error(await complete(client, **body))
    assert (told["status"], told["type"], told["param"]) == (400, "invalid_request_error", param), told


async def test_a_prompt_that_is_too_long(client: httpx.AsyncClient) -> None:
    told = error(await complete(client, prompt="x" * 100))
    assert (told["status"], told["code"]) == (400, "context_length_exceeded")


async def test_more_tokens_than_fit_behind_the_prompt(client: httpx.AsyncClient) -> None:
    room = MAX_MODEL_LEN - 2
    assert (await complete(client, prompt="hi", max_tokens=room)).status_code == 200
    told = error(await complete(client, prompt="hi", max_tokens=room + 1))
    assert (told["status"], told["param"]) == (400, "max_tokens") and "is too large" in told["message"]
    told = error(await complete(client, prompt=["h", "hi"], max_tokens=room + 1, stream=True))
    assert (told["status"], told["param"]) == (400, "max_tokens")
    for cut in (1, -1):
        assert (await complete(client, prompt="hi", max_tokens=room + 1, truncate_prompt_tokens=cut)).status_code == 200
    told = error(await complete(client, prompt="hi", max_tokens=MAX_MODEL_LEN, truncate_prompt_tokens=-1))
    assert (told["status"], told["param"]) == (400, "max_tokens")
    messages = [{"role": "user", "content": "hi"}]
    for path, body, field in (
        ("/v1/chat/completions", {"messages": messages}, "max_tokens"),
        ("/v1/chat/completions", {"messages": messages}, "max_completion_tokens"),
        ("/v1/responses", {"input": messages}, "max_output_tokens"),
    ):
        told = error(await client.post(path, json={**body, field: MAX_MODEL_LEN}))
        assert (told["status"], told["param"]) == (400, field), told


async def test_an_unknown_model(client: httpx.AsyncClient) -> None:
    told = error(await complete(client, model="nope"))
    assert (told["status"], told["param"], told["code"]) == (404, "model", "model_not_found")
    assert (await complete(client, model="alias")).json()["model"] == "alias"


async def test_one_bad_prompt_ends_them_all(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    told = error(await complete(client, prompt=["hi", "x" * 100]))
    assert told["status"] == 400
    assert not engine.client.has_unfinished()
