"""`--api-server-count`: any front end answers for all of them, and each may die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.loader.tiny import tiny_llama
from tests.server.running import MODEL, Running, ask, ask_json, metrics, running, stream, until

FRONT_END = "interleaf.server.front_end"
COUNT = 2
ROUNDS = 12
"""Connections enough for each front end to get some."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("front-ends")
    model = tiny_llama(directory / "model")
    with running(model, directory, "--kv-cache-memory-bytes", "16M", "--api-server-count", str(COUNT)) as server:
        yield server
        children = [*server.children(FRONT_END), server.engine_pid]
        assert server.stop() == 0, server.log.read_text()
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


def times_slept(pid: int) -> int:
    """How often a process has waited for something; one that nobody asks does not."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def completion(number: int, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": f"The quick {number}", "seed": number, "temperature": 0.9 * (number % 2)}
    return {**body, "ignore_eos": True, **fields}


def test_any_front_end_tells_what_all_have_done(server: Running) -> None:
    async def main() -> None:
        before = await metrics(server.port)
        work = [ask_json(server.port, "POST", "/v1/completions", completion(n, max_tokens=5)) for n in range(ROUNDS)]
        answers = await asyncio.gather(*work)
        assert {answer["usage"]["completion_tokens"] for answer in answers} == {5}
        slept = [times_slept(pid) for pid in server.children(FRONT_END)]
        for _ in range(ROUNDS):
            after = await metrics(server.port)
            told = {name: after[name] - before[name] for name in after}
            assert told["vllm:generation_tokens_total"] == 5 * ROUNDS
            assert told["vllm:request_success_total"] == ROUNDS
            assert told["vllm:e2e_request_latency_seconds_count"] == ROUNDS
            assert (await ask_json(server.port, "GET", "/load"))["server_load"] == 0
            assert (await ask(server.port, "GET", "/health"))[0] == (await ask(server.port, "GET", "/ready"))[0] == 200
        assert all(times_slept(pid) > n for pid, n in zip(server.children(FRONT_END), slept, strict=True)), "all asked"

    run(main())


def test_what_one_front_end_does_in_the_background_all_know(server: Running) -> None:
    async def main() -> None:
        body = {"model": MODEL, "input": "The dog", "max_output_tokens": 400, "background": True, "ignore_eos": True}
        made = [await ask_json(server.port, "POST", "/v1/responses", body) for _ in range(ROUNDS)]
        for number, response in enumerate(made):
            path = f"/v1/responses/{response['id']}"
            assert (await ask_json(server.port, "GET", path))["status"] != "failed"
            if number % 2:
                await ask_json(server.port, "POST", path + "/cancel")
        for number, response in enumerate(made):
            told = await ask_json(server.port, "GET", f"/v1/responses/{response['id']}")
            while told["status"] in ("queued", "in_progress"):
                await asyncio.sleep(0.05)
                told = await ask_json(server.port, "GET", f"/v1/responses/{response['id']}")
            assert told["status"] == "incomplete" or (number % 2 and told["status"] == "cancelled"), told

    run(main())


def test_batches_are_known_to_all(server: Running) -> None:
    line = {"method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "max_tokens": 9, "ignore_eos": True}}
    lines = "".join(json.dumps({"custom_id": str(number), **line}) + "\n" for number in range(8))

    def post(path: str, **content: Any) -> Any:
        answer = httpx.post(server.url + path, timeout=20, **content)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(path: str) -> Any:
        return httpx.get(server.url + path, timeout=20).raise_for_status()

    for _ in range(ROUNDS // 3):
        kept = post("/v1/files", files={"file": lines.encode()}, data={"purpose": "batch"})
        fields = {"input_file_id": kept["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        path = f"/v1/batches/{post('/v1/batches', json=fields)['id']}"
        while (batch := get(path).json())["status"] != "completed":
            assert batch["status"] in ("validating", "in_progress", "finalizing"), batch
        assert batch["request_counts"] == {"total": 8, "completed": 8, "failed": 0}
        assert len(get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()) == 8
        assert httpx.post(server.url + path + "/cancel").status_code == 409


@pytest.mark.parametrize("victim", ["engine", "front end"])
def test_streams_survive_a_death(server: Running, victim: str) -> None:
    """That of the engine all of them; that of a front end those of the others."""
    work = [completion(number, max_tokens=400, return_token_ids=True) for number in range(40)]

    async def main() -> None:
        expected = await asyncio.gather(*(stream(server.port, "/v1/completions", body) for body in work))
        events: list[list[str]] = [[] for _ in work]
        tasks = [
            asyncio.create_task(stream(server.port, "/v1/completions", body, one))
            for body, one in zip(work, events, strict=True)
        ]
        await until(lambda: all(len(one) > 2 for one in events))
        before = await metrics(server.port)
        pids = server.children(FRONT_END)
        os.kill(server.engine_pid if victim == "engine" else pids[0], signal.SIGKILL)
        answers = await asyncio.gather(*tasks)
        whole = [told(answer) == told(one) for answer, one in zip(answers, expected, strict=True)]
        assert all(whole) if victim == "engine" else sum(whole) == sum(answer[-1] == "[DONE]" for answer in answers)
        assert any(whole)
        await until(lambda: len(server.children(FRONT_END)) == COUNT)
        for _ in range(ROUNDS):
            after = await metrics(server.port)
            names = [name for name in before if ":" in name and name.endswith(("_total", "_count"))]
            assert not {name: (before[name], after[name]) for name in names if after[name] < before[name]}
            assert after["interleaf:engine_restarts_total"] == 1
            assert (await ask_json(server.port, "GET", "/load"))["server_load"] == 0

    run(main())


def told(events: list[str]) -> list[int]:
    """The tokens of a stream."""
    chunks = [json.loads(event) for event in events if event.startswith("{")]
    return [token for chunk in chunks for choice in chunk.get("choices", ()) for token in choice["token_ids"] or ()]
