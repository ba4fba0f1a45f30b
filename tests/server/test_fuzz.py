"""Bodies that were damaged at random: whatever comes, no answer is a 5xx, and the server goes on.

INTERLEAF_FUZZ_BODIES sets how many (200).
"""

from __future__ import annotations

import copy
import json
import os
import random
from typing import Any

import httpx
import pytest

from tests.server.conftest import MODEL, MakeClient

pytestmark = pytest.mark.anyio

NUM_BODIES = int(os.environ.get("INTERLEAF_FUZZ_BODIES", "200"))

COMMON: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "n": 2,
    "seed": 1,
    "stop": ["x"],
    "stop_token_ids": [3],
    "logit_bias": {"5": 1},
    "stream": False,
    "min_tokens": 1,
    "bad_words": ["q"],
    "allowed_token_ids": [100, 101],
    "prompt_logprobs": 1,
    "truncate_prompt_tokens": 5,
    "speculative": True,
    "priority": 0,
    "cache_salt": "s",
    "return_token_ids": True,
    "response_format": {"type": "text"},
    "stream_options": None,
}
MESSAGES = [
    {"role": "system", "content": [{"type": "text", "text": "be"}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "user", "content": "hi"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {**COMMON, "prompt": ["hi", "yo"], "echo": True, "logprobs": 2, "best_of": 3}),
    ("/v1/chat/completions", {**COMMON, "messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "tools": TOOLS}),
    ("/v1/responses", {"input": MESSAGES[::2], "instructions": "x", "max_output_tokens": 3, "metadata": {"a": "b"}}),
    (
        "/v1/embeddings",
        {"input": ["hi", "yo"], "dimensions": 2, "pooling": "mean", "encoding_format": "base64", "normalize": False},
    ),
    ("/v1/messages", {"messages": MESSAGES[2:], "max_tokens": 3, "system": "x", "tools": [{"name": "f"}]}),
    ("/v1/messages/count_tokens", {"messages": MESSAGES[2:]}),
    ("/tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"a": 1}}),
    ("/tokenize", {"prompt": "x", "return_token_strs": True}),
    ("/detokenize", {"tokens": [5, 6]}),
    ("/v1/batches", {"input_file_id": "file-0", "endpoint": "/v1/completions", "completion_window": "24h"}),
]
WILD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**70),
    10**400,
    0.5,
    -1e300,
    "",
    "x",
    "\x00",
    "\u2028\U0001f600",
    "x" * 300,
    [],
    [[]],
    [None],
    [0] * 70,
    ["x"] * 70,
    {},
    {"": None},
    {"type": "text"},
    {"role": "user", "content": "x"},
    {"$ref": "#"},
]


def damaged(body: Any, rng: random.Random) -> Any:
    """The value with one place in it changed, removed or doubled."""
    if not isinstance(body, (dict, list)) or not body or rng.random() < 0.2:
        return copy.deepcopy(rng.choice(WILD))
    places = list(body) if isinstance(body, dict) else list(range(len(body)))
    place = rng.choice(places)
    if rng.random() < 0.1:
        del body[place]
    elif isinstance(body, dict) and rng.random() < 0.1:
        body[str(rng.choice(WILD))[:50]] = body[place]
    else:
        body[place] = damaged(body[place], rng)
    return body


@pytest.fixture(params=range(4))
def rng(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.param)


async def test_damaged_bodies(make_client: MakeClient, rng: random.Random) -> None:
    async with make_client() as client:
        for _ in range(NUM_BODIES // 4):
            path, body = copy.deepcopy(rng.choice(BODIES))
            body["stream"] = rng.random() < 0.3
            for _ in range(rng.choice([1, 1, 2, 4])):
                body = damaged(body, rng)
            raw = json.dumps(body).encode()
            if rng.random() < 0.1:
                cut = rng.randrange(len(raw))
                raw = raw[:cut] + bytes([rng.randrange(256)]) + raw[cut + 1 :]
            response = await client.post(path, content=raw, headers={"Content-Type": "application/json"})
            assert response.status_code < 500, (path, raw, response.text)
            check_form(path, response, raw)
        assert (await client.post("/v1/completions", json={"prompt": "hi"})).status_code == 200


def check_form(path: str, response: httpx.Response, raw: bytes) -> None:
    """A refusal has an error's body, and a stream no error in it."""
    if response.status_code >= 400:
        assert response.json()["error"]["message"], (path, raw, response.text)
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert '"internal_error"' not in response.text, (path, raw, response.text)
