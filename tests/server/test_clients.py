"""`interleaf serve` with a tiny model, as the official clients see it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import openai
import pydantic
import pytest

from tests.loader.tiny import tiny_llama

KEY = "secret"
MODEL = "tiny"
HI: Any = [{"role": "user", "content": "The quick brown fox"}]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that runs while this file's tests do, and must end well."""
    directory = tmp_path_factory.mktemp("server")
    model = tiny_llama(directory / "model")
    log = directory / "log"
    flags = ["--port", "0", "--api-key", KEY, "--served-model-name", MODEL, "--log-format", "json"]
    flags += ["--kv-cache-memory-bytes", "16M", "--max-num-queued-reqs", "50"]
    command = [sys.executable, "-m", "interleaf.entrypoints.openai.api_server", "--model", str(model), *flags]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file)
    try:
        yield _address(log, process)
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
        assert not [line for line in log.read_text().splitlines() if json.loads(line)["level"] in ("ERROR", "CRITICAL")]
    finally:
        process.kill()
        process.wait()


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            message = json.loads(line)["message"]
            if " is served at " in message:
                return str(message.rpartition(" ")[2])
        time.sleep(0.05)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as client:
        yield client


def free_blocks(url: str) -> float:
    page = httpx.get(url + "/metrics", headers={"x-api-key": KEY}).text
    [line] = [line for line in page.splitlines() if line.startswith("vllm:kv_cache_usage_perc{")]
    return 1 - float(line.rpartition(" ")[2])


def test_completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="The quick", max_tokens=8, temperature=0, logprobs=2, n=2)
    assert len(whole.choices) == 2 and whole.choices[0].text == whole.choices[1].text
    assert whole.usage is not None and whole.usage.completion_tokens == 16
    stream = client.completions.create(
        model=MODEL,
        prompt="The quick",
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert last.usage is not None and last.usage.completion_tokens == 8
    told = whole.choices[0].logprobs
    assert told is not None and told.token_logprobs is not None and len(told.token_logprobs) == 8
    assert "".join(told.tokens or []) == whole.choices[0].text or "\ufffd" in "".join(told.tokens or [])


def test_echo_gives_the_prompts_logprobs(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="The quick brown", max_tokens=0, echo=True, logprobs=1)
    told = whole.choices[0].logprobs
    assert whole.choices[0].text == "The quick brown" and told is not None
    assert told.token_logprobs is not None and told.token_logprobs[0] is None and told.text_offset is not None
    assert "".join(told.tokens or []) == "The quick brown" and told.text_offset[0] == 0


def test_chat(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=HI, max_completion_tokens=8, seed=3, logprobs=True, top_logprobs=3
    )
    [choice] = whole.choices
    assert choice.message.role == "assistant" and choice.logprobs is not None
    assert len(choice.logprobs.content or []) == 8 and len((choice.logprobs.content or [])[0].top_logprobs) == 3
    assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
    stream = client.chat.completions.create(model=MODEL, messages=HI, max_completion_tokens=8, seed=3, stream=True)
    first, *chunks = list(stream)
    assert first.choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason == "length"
    eos: Any = {"logit_bias": {"2": 100}, "max_completion_tokens": 8}
    with client.chat.completions.stream(model=MODEL, messages=HI, **eos) as events:
        assert {"chunk"} <= {event.type for event in events}
        assert events.get_final_completion().choices[0].finish_reason == "stop"


class GetWeather(pydantic.BaseModel):
    city: Literal["Paris", "Rome"]
    days: list[bool] = pydantic.Field(max_length=2)


class Now(pydantic.BaseModel):
    pass


def test_forced_calls(client: openai.OpenAI) -> None:
    """The model writes at random; the grammar holds it to calls that parse, in every form of the API."""
    tools: Any = [openai.pydantic_function_tool(GetWeather), openai.pydantic_function_tool(Now)]
    asked: Any = {"model": MODEL, "messages": HI, "tools": tools, "max_completion_tokens": 200, "seed": 5, "n": 2}
    asked["parallel_tool_calls"] = False
    for choice, reason in (
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "GetWeather"}}, "stop"),
    ):
        whole = client.chat.completions.parse(**asked, tool_choice=choice)
        calls = [[call.function for call in one.message.tool_calls or []] for one in whole.choices]
        assert all(isinstance(one.parsed_arguments, GetWeather | Now) for [one] in calls)
        assert [one.finish_reason for one in whole.choices] == [reason] * 2
        with client.chat.completions.stream(**asked, tool_choice=choice) as stream:
            final = stream.get_final_completion()
        for one, streamed in zip(whole.choices, final.choices, strict=True):
            [call], [other] = one.message.tool_calls or [], streamed.message.tool_calls or []
            assert (call.function.name, call.function.arguments) == (other.function.name, other.function.arguments)
            assert one.finish_reason == streamed.finish_reason
    flat: Any = [{"type": "function", **tool["function"]} for tool in tools]
    response = client.responses.parse(model=MODEL, input="hi", tools=flat, tool_choice="required")
    assert {item.type for item in response.output} == {"function_call"}


def test_prefixes_are_cached(client: openai.OpenAI) -> None:
    prompt = list(range(100, 200))
    cached = []
    for _ in range(2):
        usage = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 96]


def test_responses(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="The dog", max_output_tokens=8, temperature=0)
    assert first.status == "incomplete" and first.output_text
    assert client.responses.retrieve(first.id) == first
    with client.responses.stream(model=MODEL, input="The dog", max_output_tokens=8, temperature=0) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete"
    second = client.responses.create(
        model=MODEL, input="and", previous_response_id=first.id, max_output_tokens=2, temperature=0
    )
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert len(client.responses.input_items.list(first.id).data) == 1
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_embeddings(client: openai.OpenAI) -> None:
    """The client asks for base64 unless it is told otherwise, and gives numbers either way."""
    inputs = ["The quick brown fox", "The dog", "The quick brown fox" * 20]
    whole = client.embeddings.create(model=MODEL, input=inputs)
    assert [one.index for one in whole.data] == [0, 1, 2] and whole.usage.total_tokens == whole.usage.prompt_tokens
    assert all(abs(sum(value**2 for value in one.embedding) - 1) < 1e-5 for one in whole.data)
    for text, one in zip(inputs, whole.data, strict=True):
        alone = client.embeddings.create(model=MODEL, input=text, encoding_format="float")
        assert alone.data[0].embedding == pytest.approx(one.embedding, abs=1e-7)
    mean: Any = {"pooling": "mean"}
    [cut] = client.embeddings.create(model=MODEL, input=[[5, 6, 7]], dimensions=8, extra_body=mean).data
    assert len(cut.embedding) == 8 and cut.embedding != whole.data[0].embedding[:8]
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input="x", dimensions=10**6)
    assert refused.value.param == "dimensions"


@pytest.mark.anyio
async def test_the_async_client(url: str) -> None:
    asked: Any = {"model": MODEL, "temperature": 0}
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as client:
        whole = await client.chat.completions.create(messages=HI, max_completion_tokens=6, **asked)
        stream = await client.chat.completions.create(messages=HI, max_completion_tokens=6, stream=True, **asked)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == whole.choices[0].message.content and whole.service_tier == "default"
        written = await client.completions.create(prompt="The", max_tokens=4, **asked)
        pieces = await client.completions.create(prompt="The", max_tokens=4, stream=True, **asked)
        assert "".join([chunk.choices[0].text async for chunk in pieces]) == written.choices[0].text
        async with client.responses.stream(input="The dog", max_output_tokens=4, **asked) as events:
            assert [event.type async for event in events][-1] == "response.incomplete"
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert len((await client.embeddings.create(model=MODEL, input="x")).data) == 1
        requests = [client.completions.create(prompt="The", max_tokens=4, **asked) for _ in range(20)]
        assert {one.choices[0].text for one in await asyncio.gather(*requests)} == {written.choices[0].text}


def test_every_documented_field_is_taken(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=HI,
        frequency_penalty=0.1,
        logit_bias={"5": 1},
        logprobs=True,
        max_completion_tokens=3,
        metadata={"a": "b"},
        modalities=["text"],
        n=2,
        parallel_tool_calls=True,
        prediction={"type": "content", "content": "x"},
        presence_penalty=0.1,
        prompt_cache_key="k",
        reasoning_effort="low",
        response_format={"type": "text"},
        safety_identifier="s",
        seed=1,
        service_tier="auto",
        stop=["zzz"],
        store=True,
        temperature=0.5,
        top_logprobs=2,
        top_p=0.9,
        user="u",
        verbosity="low",
        extra_headers={"X-Request-Id": "mine"},
        extra_body={"a field that nobody knows": 1},
    )
    whole = raw.parse()
    assert raw.headers["x-request-id"] == "mine" and whole.id == "chatcmpl-mine" and len(whole.choices) == 2
    assert whole.choices[0].logprobs is not None
    assert all(one.bytes is not None for one in whole.choices[0].logprobs.content or [])
    with client.completions.with_streaming_response.create(model=MODEL, prompt="x", max_tokens=3) as response:
        assert response.status_code == 200 and json.loads(response.read())["object"] == "text_completion"


def test_responses_in_the_background(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": "The dog", "background": True, "extra_body": {"ignore_eos": True}}
    made = client.responses.create(max_output_tokens=8, **asked)
    kinds = [event.type for event in client.responses.retrieve(made.id, stream=True)]
    assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete"
    begun = client.responses.create(max_output_tokens=450, **asked)
    ended = client.responses.cancel(begun.id)
    assert ended.status in ("cancelled", "incomplete") and client.responses.retrieve(begun.id).status == ended.status
    counted = client.responses.input_tokens.count(model=MODEL, input="The dog")
    done = client.responses.retrieve(made.id)
    assert done.usage is not None and counted.input_tokens == done.usage.input_tokens


def test_more_tokens_than_fit_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="is too large") as refused:
        client.completions.create(model=MODEL, prompt="x", max_tokens=10**6)
    assert refused.value.param == "max_tokens"


def test_batches(client: openai.OpenAI) -> None:
    line = {"method": "POST", "url": "/v1/completions", "body": {"prompt": "The", "max_tokens": 2, "ignore_eos": True}}
    lines = "".join(json.dumps({"custom_id": str(number), **line}) + "\n" for number in range(20))
    file = client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    deadline = time.monotonic() + 20
    while batch.status != "completed":
        assert time.monotonic() < deadline and batch.status not in ("failed", "expired"), batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert batch.request_counts is not None and batch.request_counts.completed == 20
    assert batch.output_file_id is not None
    assert len(client.files.content(batch.output_file_id).text.splitlines()) == 20
    assert batch.usage is not None and batch.usage.output_tokens == 40
    assert client.files.list().data and client.batches.list().data
    assert client.files.retrieve(file.id).filename == "in.jsonl"
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)
    assert client.files.delete(file.id).deleted


def test_models_and_errors(client: openai.OpenAI, url: str) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="nope", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=MODEL, prompt=[5] * 600)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unknown_token:
        client.completions.create(model=MODEL, prompt=[400])
    assert unknown_token.value.type == "invalid_request_error"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.RateLimitError) as overload:
        client.completions.create(model=MODEL, prompt=[[5]] * 400, max_tokens=50)
    assert overload.value.response.headers["retry-after"]


def test_anthropic(url: str) -> None:
    asked: Any = {"max_tokens": 8, "messages": HI, "system": "Be.", "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        whole = client.messages.create(model=MODEL, **asked)
        assert whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 8
        with client.messages.stream(model=MODEL, **asked) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == whole.content[0].text == final.content[0].text  # type: ignore[union-attr]
        count = client.messages.count_tokens(model=MODEL, messages=HI, system="Be.")
        assert count.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="nope", max_tokens=8, messages=HI)


def test_a_client_that_goes_away_frees_its_blocks(client: openai.OpenAI, url: str) -> None:
    for _ in range(3):
        stream = client.chat.completions.create(
            model=MODEL, messages=HI, max_completion_tokens=400, n=8, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    deadline = time.monotonic() + 5
    while free_blocks(url) < 1.0:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_operations(url: str) -> None:
    with httpx.Client(base_url=url, headers={"x-api-key": KEY}) as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        assert client.get("/is_sleeping").json() == {"is_sleeping": False}
        assert client.post("/reset_prefix_cache").status_code == 200
        assert client.get("/docs").status_code == 200
        schema = client.get("/openapi.json").json()
        assert "/v1/chat/completions" in schema["paths"]
        body = {"messages": [{"role": "user", "content": "x" * 100_000}]}
        assert client.post("/tokenize", json=body).json()["count"] > 10_000


PERSON: Any = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def is_person(text: str) -> bool:
    found = json.loads(text)
    return set(found) == {"name", "age"} and len(found["name"]) <= 8 and 0 <= found["age"] <= 99


def test_structured_output(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    compact = {"structured_outputs": {"json": PERSON, "disable_any_whitespace": True}}
    for number in range(2):
        chat = client.chat.completions.create(model=MODEL, messages=HI, seed=number, n=2, extra_body=compact)
        assert all(is_person(choice.message.content or "") for choice in chat.choices)
        stream = client.chat.completions.create(
            model=MODEL, messages=HI, seed=number, stream=True, response_format=form, max_tokens=400
        )
        pieces = [piece.choices[0] for piece in stream]
        if pieces[-1].finish_reason == "stop":
            assert is_person("".join(piece.delta.content or "" for piece in pieces))
        text: Any = {"format": {"type": "json_schema", "name": "person", "schema": PERSON}}
        response = client.responses.create(model=MODEL, input="x", text=text, max_output_tokens=400)
        assert response.status == "incomplete" or is_person(response.output_text)
    completion = client.completions.create(model=MODEL, prompt="x", extra_body={"guided_choice": ["red", "green"]})
    assert completion.choices[0].text in ("red", "green") and completion.choices[0].finish_reason == "stop"


def test_structured_output_that_cannot_be(client: openai.OpenAI) -> None:
    for body, reason in (
        ({"guided_json": {"type": "object", "not": {}}}, "not"),
        ({"guided_regex": "("}, "unclosed"),
        ({"guided_grammar": "start: nothing"}, "nothing"),
        ({"structured_outputs": {"choice": []}}, "choice"),
        ({"guided_json": {"allOf": [{"pattern": f"^(a|b)*a(a|b){{{i}}}$"} for i in range(1, 30)]}}, "too l"),
    ):
        with pytest.raises(openai.BadRequestError, match=reason):
            client.completions.create(model=MODEL, prompt="x", extra_body=body)


def test_kept_chats(client: openai.OpenAI) -> None:
    kept = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=4, store=True, metadata={"k": "v"})
    chats = client.chat.completions
    assert chats.retrieve(kept.id).choices == kept.choices
    assert [one.id for one in chats.list(metadata={"k": "v"}, limit=1)] == [kept.id]
    assert [(one.id, one.content) for one in chats.messages.list(kept.id)] == [(f"{kept.id}-0", HI[0]["content"])]
    assert chats.update(kept.id, metadata={"k": "w"}).metadata == {"k": "w"}
    assert chats.delete(kept.id).deleted
    with pytest.raises(openai.NotFoundError):
        chats.retrieve(kept.id)
