"""Every feature beside every other, in every way an engine can run: the same bits as alone and plain, with ==.

A request is a point in {structured, free} x {n} x {logprobs} x {greedy, sampled} x {penalties}, or a beam search. An
engine is a point in {no drafts, drafts of each kind} x {room, preemption, small steps}; each serves everything twice,
cold and with cached prefixes. Over HTTP, tool calls are streamed and not, beside the others, through an engine's death.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from interleaf import LLM, SamplingParams, StructuredOutputsParams
from interleaf.frontend.async_engine import AsyncEngine
from interleaf.params import BeamSettings, RequestOutputKind
from tests.loader import tiny
from tests.server.running import MODEL, Running, ask_json, metrics, running, stream, until
from tests.test_same_bits import block_bytes, essence, run

CACHE_BYTES = 1 << 24

pytestmark = pytest.mark.usefixtures("drafts_at_any_cost")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "sizes": {"type": "array", "items": {"enum": [1, 22]}}},
    "required": ["name", "sizes"],
    "additionalProperties": False,
}
PREFIX = [20 + i % 9 for i in range(37)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen3(tmp_path_factory.mktemp("matrix"), num_hidden_layers=2)


def requests() -> list[tuple[list[int], SamplingParams]]:
    """All combinations of what a request can ask for, on prompts that begin alike."""
    axes: list[list[dict[str, Any]]] = [
        [{}, {"structured_outputs": StructuredOutputsParams(json=SCHEMA)}],
        [{}, {"n": 3}],
        [{}, {"logprobs": 2}],
        [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.95}],
        [{}, {"repetition_penalty": 1.2, "min_tokens": 5, "bad_words": ["q"]}],
    ]
    points = [{key: value for part in parts for key, value in part.items()} for parts in itertools.product(*axes)]
    points += [{"beam": BeamSettings(4), "n": n, **logprobs} for n in (1, 4) for logprobs in axes[2]]
    work = []
    for i, point in enumerate(points):
        free = "structured_outputs" not in point
        params = SamplingParams(seed=i, max_tokens=22 + i % 9, ignore_eos=free and "beam" not in point, **point)
        work.append((PREFIX[: 20 + i % 18] + [30 + i] * (i % 5), params))
    return work


@pytest.fixture(scope="module")
def expected(model: Path) -> list[Any]:
    """Each alone, without drafts, cache or company."""
    work = requests()
    for _, params in work:
        params.speculative = False
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, enable_prefix_caching=False) as llm:
        return [run(llm, [request])[0] for request in work]


DRAFTS: dict[str, dict[str, Any]] = {
    "none": {},
    "ngram": {"speculative_config": {"method": "ngram", "prompt_lookup_min": 1, "num_speculative_tokens": 3}},
    "suffix": {"speculative_config": {"method": "suffix"}},
    "draft model": {"speculative_config": {"method": "draft_model", "num_speculative_tokens": 2}},
}
PRESSURE: dict[str, dict[str, Any]] = {
    "room": {},
    "preemption": {"max_model_len": 128},
    "small steps": {"max_num_batched_tokens": 24, "max_num_seqs": 6},
}


def options(model: Path, drafts: str, pressure: str) -> dict[str, Any]:
    chosen = {"kv_cache_memory_bytes": CACHE_BYTES, **PRESSURE[pressure]}
    if pressure == "preemption":
        chosen["kv_cache_memory_bytes"] = (40 if drafts == "draft model" else 20) * block_bytes(model)
    if drafts != "none":
        config = {**DRAFTS[drafts]["speculative_config"], "disable_by_batch_size": 1000}
        chosen["speculative_config"] = config | ({"model": str(model)} if drafts == "draft model" else {})
    return chosen


@pytest.mark.parametrize("pressure", PRESSURE)
@pytest.mark.parametrize("drafts", DRAFTS)
def test_offline(model: Path, expected: list[Any], drafts: str, pressure: str) -> None:
    with LLM(model, **options(model, drafts, pressure)) as llm:
        assert run(llm, requests()) == expected
        assert run(llm, requests()) == expected, "with cached prefixes"
        stats = llm.client.stats()
        assert stats.prefix_cache_hits > 0
        assert (stats.num_preemptions > 5) == (pressure == "preemption")
        assert (stats.num_accepted_tokens > 20) == (drafts != "none")
        assert stats.num_free_blocks == stats.num_blocks


def test_structured_texts_are_what_they_should_be(model: Path, expected: list[Any]) -> None:
    """So that the matrix is not one of equal nonsense."""
    params = SamplingParams(
        temperature=0.9, seed=1, n=8, max_tokens=120, structured_outputs=StructuredOutputsParams(json=SCHEMA)
    )
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, speculative_config={"method": "suffix"}) as llm:
        [output] = llm.generate([PREFIX], params, use_tqdm=False)
    ended = [one.text for one in output.outputs if one.finish_reason == "stop"]
    assert ended
    for text in ended:
        jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize("drafts", ["none", "ngram"])
def test_streams_through_an_engines_death(model: Path, expected: list[Any], drafts: str) -> None:
    async def one(engine: AsyncEngine, index: int, begun: list[int]) -> list[Any]:
        prompt, params = requests()[index]
        params.output_kind = RequestOutputKind.FINAL_ONLY if params.beam else RequestOutputKind.CUMULATIVE
        last = None
        async for output in engine.generate({"prompt_token_ids": prompt}, params):
            last = output
            begun[0] += 1
        assert last is not None
        return essence(last)

    async def main() -> None:
        async with AsyncEngine(model=str(model), **options(model, drafts, "small steps")) as engine:
            begun = [0]
            tasks = [asyncio.create_task(one(engine, index, begun)) for index in range(len(expected))]
            await until(lambda: begun[0] > 150)
            assert engine.engine_pid is not None
            os.kill(engine.engine_pid, signal.SIGKILL)
            assert await asyncio.gather(*tasks) == expected

    asyncio.run(asyncio.wait_for(main(), 60))


# ---- over HTTP, with tools ----

TOOLS = [{"type": "function", "function": {"name": "store", "parameters": SCHEMA}}]


def bodies() -> list[dict[str, Any]]:
    """Tool calls with everything that goes with them."""
    axes: list[list[dict[str, Any]]] = [
        [{"tool_choice": "required"}, {"tool_choice": {"type": "function", "function": {"name": "store"}}}],
        [{}, {"n": 2}],
        [{}, {"logprobs": True, "top_logprobs": 2}],
    ]
    points = [{key: value for part in parts for key, value in part.items()} for parts in itertools.product(*axes)]
    content = "Store it, whatever it may be, and say where."
    return [
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "tools": TOOLS,
            "max_tokens": 120,
            "temperature": 0.8,
            "seed": i,
            **point,
        }
        for i, point in enumerate(points)
    ]


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("served")
    template = directory / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %} {{ tools | tojson }}")
    config = json.dumps({"method": "ngram", "prompt_lookup_min": 1, "disable_by_batch_size": 1000})
    flags = ["--kv-cache-memory-bytes", "16M", "--speculative-config", config, "--chat-template", str(template)]
    flags += ["--tool-call-parser", "hermes"]
    with running(model, directory, *flags) as server:
        yield server


def whole(answer: dict[str, Any]) -> list[Any]:
    """Of each choice: calls, finish reason, tokens' logprobs."""
    return [
        [
            [[call["function"]["name"], call["function"]["arguments"]] for call in choice["message"]["tool_calls"]],
            choice["finish_reason"],
            [one["logprob"] for one in (choice.get("logprobs") or {}).get("content") or []],
        ]
        for choice in answer["choices"]
    ]


def joined(events: list[str], n: int) -> list[Any]:
    """The same of a stream."""
    assert events[-1] == "[DONE]"
    found: list[Any] = [[[], None, []] for _ in range(n)]
    for event in map(json.loads, events[:-1]):
        for choice in event["choices"]:
            calls, _, logprobs = found[choice["index"]]
            for piece in choice["delta"].get("tool_calls") or []:
                if piece["index"] == len(calls):
                    calls.append([piece["function"]["name"], ""])
                calls[piece["index"]][1] += piece["function"].get("arguments") or ""
            logprobs += [one["logprob"] for one in (choice.get("logprobs") or {}).get("content") or []]
            found[choice["index"]][1] = choice["finish_reason"] or found[choice["index"]][1]
    return found


def test_tool_calls_streamed_and_not_through_an_engines_death(server: Running) -> None:
    async def main() -> None:
        path = "/v1/chat/completions"
        alone = [whole(await ask_json(server.port, "POST", path, body)) for body in bodies()]
        complete = [calls for choices in alone for calls, reason, _ in choices if reason != "length"]
        assert complete
        for calls in complete:
            for name, arguments in calls:
                assert name == "store"
                jsonschema.validate(json.loads(arguments), SCHEMA)
        together = await asyncio.gather(*(ask_json(server.port, "POST", path, body) for body in bodies()))
        assert [whole(answer) for answer in together] == alone
        assert (await metrics(server.port))["vllm:prefix_cache_hits_total"] > 0
        events: list[list[Any]] = [[] for _ in bodies()]
        streams = [
            asyncio.create_task(stream(server.port, path, body, into))
            for body, into in zip(bodies(), events, strict=True)
        ]
        await until(lambda: sum(map(len, events)) > 40)
        os.kill(server.engine_pid, signal.SIGKILL)
        await asyncio.gather(*streams)
        assert [joined(one, body.get("n", 1)) for one, body in zip(events, bodies(), strict=True)] == alone

    asyncio.run(asyncio.wait_for(main(), 90))
