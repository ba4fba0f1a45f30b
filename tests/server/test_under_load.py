"""Many streams at once, of clients that may hang up, and engines that die or stop in the middle of them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loader.tiny import tiny_llama
from tests.server.running import (
    MODEL,
    Running,
    ask,
    ask_json,
    metrics,
    resident_bytes,
    running,
    stream,
    until,
)

PATH = "/v1/completions"
NUM_STREAMS = 64
NUM_REQUESTS = 300
MEMORY_SLACK = 4 << 20
"""Bytes; memory is taken in pieces."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("load")
    model = tiny_llama(directory / "model")
    with running(model, directory, "--kv-cache-memory-bytes", "16M", "--disable-access-log") as server:
        yield server
        assert server.stop() == 0, server.log.read_text()
        told = server.messages("ERROR", "CRITICAL")
        assert all("It is started again" in message for message in told), told


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 90))


async def load(port: int, count: int, rng: random.Random) -> tuple[int, int]:
    """`count` streams, NUM_STREAMS at a time; a fifth hang up. Returns how many hung up, and tokens of the others."""
    left = iter(range(count))
    num_gone = num_tokens = 0

    async def client() -> None:
        nonlocal num_gone, num_tokens
        for number in left:
            prompt = [rng.randrange(3, 300) for _ in range(rng.randint(1, 60))]
            length = rng.randint(1, 60)
            limit = rng.randrange(length) if number % 5 == 0 else None
            body = {
                "model": MODEL,
                "prompt": prompt,
                "max_tokens": length,
                "ignore_eos": True,
                "return_token_ids": True,
            }
            events = await stream(port, PATH, body, limit=limit)
            assert not [event for event in events if '"error"' in event], events
            if limit is None:
                assert events[-1] == "[DONE]"
                num_tokens += length
            else:
                num_gone += 1

    await asyncio.gather(*(client() for _ in range(NUM_STREAMS)))
    return num_gone, num_tokens


async def idle(port: int) -> dict[str, float]:
    """Metrics once nothing runs any more."""
    begin = time.monotonic()
    while (figures := await metrics(port))["vllm:num_requests_running"] or (await ask_json(port, "GET", "/load"))[
        "server_load"
    ]:
        assert time.monotonic() - begin < 10
        await asyncio.sleep(0.05)
    return figures


async def memory_at_rest(pids: list[int]) -> list[int]:
    """The processes' own memory, once none asks for more; the engine has it touched ahead while it is idle."""
    now: list[int] = []
    for _ in range(40):
        before, now = now, [resident_bytes(pid) for pid in pids]
        if before and max(abs(a - b) for a, b in zip(before, now, strict=True)) < MEMORY_SLACK // 16:
            break
        await asyncio.sleep(0.25)
    return now


def test_load_leaves_nothing_behind(server: Running) -> None:
    async def main() -> None:
        rng = random.Random(5)
        # The first requests fill the cache, and make room that is kept; what comes behind must not ask for more.
        await load(server.port, 3 * NUM_REQUESTS, rng)
        before = await idle(server.port)
        pids = [server.process.pid, server.engine_pid]
        memory = await memory_at_rest(pids)
        num_gone, num_tokens = await load(server.port, NUM_REQUESTS, rng)
        after = await idle(server.port)
        assert num_gone == NUM_REQUESTS // 5
        assert after["vllm:kv_cache_usage_perc"] == 0
        assert after["vllm:request_success_total"] - before["vllm:request_success_total"] == NUM_REQUESTS
        assert after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"] >= num_tokens
        for size, now in zip(memory, await memory_at_rest(pids), strict=True):
            assert now < size * 1.05 + MEMORY_SLACK

    run(main())


def completion(number: int) -> dict[str, Any]:
    """Greedy and seeded ones, of several lengths."""
    prompt = [3 + (number * 31 + k * 7) % 370 for k in range(1 + number % 50)]
    sampling = {"temperature": 0.9 * (number % 2), "seed": number, "max_tokens": 200 + number % 40, "ignore_eos": True}
    return {"model": MODEL, "prompt": prompt, **sampling, "logprobs": 1, "return_token_ids": True}


def essence(events: list[str]) -> list[Any]:
    """What must be the same: each event but for its id and time, with pieces joined."""
    assert events[-1] == "[DONE]", events[-1]
    text, reason = "", None
    tokens: list[int] = []
    logprobs: list[float] = []
    for event in events[:-1]:
        [choice] = json.loads(event)["choices"]
        text += choice["text"]
        tokens += choice["token_ids"]
        logprobs += choice["logprobs"]["token_logprobs"]
        reason = choice["finish_reason"]
    return [text, tokens, logprobs, reason]


@pytest.fixture(scope="module")
def expected(server: Running) -> list[Any]:
    """An undisturbed run."""

    async def main() -> list[Any]:
        return await asyncio.gather(*(stream(server.port, PATH, completion(n)) for n in range(100)))

    return [essence(events) for events in asyncio.run(main())]


async def disturbed(server: Running, count: int, number: int) -> tuple[list[asyncio.Task[Any]], list[list[str]]]:
    """Streams, and the engine sent a signal once all of them have begun."""
    events: list[list[str]] = [[] for _ in range(count)]
    tasks = [asyncio.create_task(stream(server.port, PATH, completion(n), events[n])) for n in range(count)]
    await until(lambda: all(len(one) > 2 for one in events))
    os.kill(server.engine_pid, number)
    return tasks, events


def test_a_killed_engine_is_a_pause_in_a_hundred_streams(server: Running, expected: list[Any]) -> None:
    async def main() -> None:
        pid = server.engine_pid
        tasks, events = await disturbed(server, 100, signal.SIGKILL)
        unfinished = [one for one in events if one[-1] != "[DONE]"]
        assert len(unfinished) > 50, "they were in the middle"
        # What was sent before the kill may still be on its way: only what comes from another engine counts.
        pause = await until(lambda: server.children("interleaf.engine.process") not in ([], [pid]))
        seen = [len(one) for one in unfinished]
        pause += await until(
            lambda: all(len(one) > n or one[-1] == "[DONE]" for one, n in zip(unfinished, seen, strict=True))
        )
        assert pause < 5
        assert [essence(await task) for task in tasks] == expected
        assert (await idle(server.port))["interleaf:engine_restarts_total"] == 1

    run(main())


def test_a_stopped_engine_is_unhealthy_and_replaced(server: Running, expected: list[Any]) -> None:
    async def main() -> None:
        pid = server.engine_pid
        begin = time.monotonic()
        tasks, _ = await disturbed(server, 20, signal.SIGSTOP)
        # A signal takes effect when its process next gets the processor.
        await until(lambda: _state(pid) == "T")
        assert (await ask(server.port, "GET", "/health"))[0] == 503
        assert time.monotonic() - begin < 10
        assert [essence(await task) for task in tasks] == expected[:20]
        assert server.engine_pid != pid and (await ask(server.port, "GET", "/health"))[0] == 200

    run(main())


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
