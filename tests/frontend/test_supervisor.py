"""Engines that die, hang and do not start, and what the requests of an AsyncEngine see of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from interleaf import LLM, AsyncEngine, RequestOutput, RequestOutputKind, SamplingParams, StructuredOutputsParams
from interleaf.errors import ConfigError, EngineDeadError, EngineError, EngineRestartingError, RequestFailedError
from interleaf.frontend.supervisor import SupervisorOptions, computes_nothing
from interleaf.messages import Pong
from tests.engine import faulty_engine
from tests.json_schemas import WRITTEN
from tests.loader import tiny

OPTIONS: dict[str, Any] = {"kv_cache_memory_bytes": 1 << 24, "threads": 1}
FAULTY = SupervisorOptions(engine_module=faulty_engine.MODULE)
HASTY = SupervisorOptions(engine_module=faulty_engine.MODULE, hang_timeout=0.5, quiet_time=0.1, backoff=0.01)


@pytest.fixture(autouse=True)
def faulty_engine_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", faulty_engine.ROOT)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("supervisor-model") / "tiny.gguf"
    tiny.tiny_gguf(path)
    return str(path)


def work(count: int) -> list[tuple[list[int], SamplingParams]]:
    """Greedy and seeded requests, some with several sequences, logprobs, prompt logprobs, stop strings, grammars."""
    made = []
    for number in range(count):
        params: dict[str, Any] = {"temperature": 0.0 if number % 2 else 0.9, "seed": number, "ignore_eos": True}
        params |= {"max_tokens": 60 + number % 40, "logprobs": 2, "output_kind": RequestOutputKind(number % 3)}
        if number % 5 == 0:
            params |= {"n": 3, "stop": ["th", "e q"]}
        if number % 7 == 0:
            params |= {"prompt_logprobs": 1}
        if number % 11 == 0:
            params |= {"repetition_penalty": 1.2, "presence_penalty": 0.5}
        if number % 4 == 1:
            structures: list[Any] = [{"regex": "[a-z ]{20,80}(fox|dog)"}, {"json": WRITTEN[0]}]
            params["structured_outputs"] = StructuredOutputsParams(**structures[number % 8 // 4])
        made.append(([3 + (number * 31 + k * 7) % 370 for k in range(1 + number % 50)], SamplingParams(**params)))
    return made


def essence(outputs: list[RequestOutput]) -> Any:
    """What must be the same whatever happened on the way: texts, tokens, logprobs, reasons."""

    def plain(entries: Any) -> Any:
        return [None if one is None else {token: (x.logprob, x.rank) for token, x in one.items()} for one in entries]

    sequences: dict[int, list[Any]] = {}
    prompt_logprobs = None
    for output in outputs:
        if output.prompt_logprobs is not None:
            assert prompt_logprobs is None, "told once"
            prompt_logprobs = plain(output.prompt_logprobs)
        for one in output.outputs:
            text, tokens, logprobs, _ = sequences.get(one.index, ("", [], [], None))
            merged = [*logprobs, *plain(one.logprobs or [])]
            sequences[one.index] = [
                text + one.text,
                tokens + one.token_ids,
                merged,
                (one.finish_reason, one.stop_reason),
            ]
    return sequences, prompt_logprobs, outputs[-1].num_cached_tokens


async def run_one(
    engine: AsyncEngine, prompt: list[int], params: SamplingParams, begun: list[int] | None = None, **options: Any
) -> Any:
    outputs = []
    async for output in engine.generate(prompt, params, **options):
        outputs.append(output)
        if begun is not None:
            begun[0] += 1
    return essence(outputs if params.output_kind is RequestOutputKind.DELTA else outputs[-1:])


@pytest.fixture(scope="module")
def expected(model: str) -> list[Any]:
    """An undisturbed run, in this process."""
    prompts, params = zip(*work(100), strict=True)
    with LLM(model, enable_prefix_caching=False, **OPTIONS) as llm:
        return [essence([output]) for output in llm.generate(list(prompts), list(params), use_tqdm=False)]


def start_all(engine: AsyncEngine, count: int) -> tuple[list[asyncio.Task[Any]], list[int]]:
    begun = [0]
    return [asyncio.create_task(run_one(engine, *one, begun)) for one in work(count)], begun


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> float:
    """Wait; returns how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "it takes too long"
        await asyncio.sleep(0.005)
    return time.monotonic() - begin


def engine_of(model: str, supervision: SupervisorOptions, **options: Any) -> AsyncEngine:
    return AsyncEngine(model=model, supervision=supervision, enable_prefix_caching=False, **{**OPTIONS, **options})


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.mark.parametrize("number_of_kills", [1, 3])
def test_killed_in_the_middle_all_requests_go_on_with_the_same_tokens(
    model: str, expected: list[Any], number_of_kills: int
) -> None:
    async def main() -> None:
        async with engine_of(model, FAULTY) as engine:
            tasks, begun = start_all(engine, 100)
            late: list[asyncio.Task[Any]] = []
            for _ in range(number_of_kills):
                seen = begun[0]
                await until(lambda seen=seen: begun[0] > seen + 200 and engine.is_ready)  # type: ignore[misc]
                pid = engine.engine_pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await until(lambda: not engine.is_ready)
                with pytest.raises(EngineRestartingError):
                    await engine.check_health()
                with pytest.raises(EngineRestartingError):
                    await anext(engine.generate("x", SamplingParams(), wait_for_restart=False))
                late.append(asyncio.create_task(run_one(engine, *work(2)[1], wait_for_restart=20.0)))
                assert await until(lambda: engine.is_ready) < 5.0
                assert engine.engine_pid != pid
            assert await asyncio.gather(*tasks) == expected
            assert await asyncio.gather(*late) == [expected[1]] * number_of_kills
            stats = await engine.get_stats()
            assert stats.num_free_blocks == stats.num_blocks
            assert f'interleaf:engine_restarts_total{{engine="0",model_name="{model}"}} {number_of_kills}.0' in (
                engine.metrics.render().decode()
            )

    run(main())


def test_a_stopped_engine_is_unhealthy_and_replaced(model: str, expected: list[Any]) -> None:
    async def main() -> None:
        async with engine_of(model, FAULTY) as engine:
            await engine.check_health()
            tasks, begun = start_all(engine, 30)
            await until(lambda: begun[0] > 100)
            pid = engine.engine_pid
            assert pid is not None
            begin = time.monotonic()
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.05)
            with pytest.raises(EngineDeadError):
                await engine.check_health(8.0)
            await until(lambda: engine.is_ready and engine.engine_pid != pid)
            assert time.monotonic() - begin < 10.0
            assert await asyncio.gather(*tasks) == expected[:30]
            assert not Path(f"/proc/{pid}").exists()

    run(main())


def test_an_idle_engine_that_stopped_is_replaced_once_somebody_asks(model: str) -> None:
    async def main() -> None:
        async with engine_of(model, HASTY) as engine:
            pid = engine.engine_pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(1.5)
            assert engine.engine_pid == pid, "nobody watches what is idle"
            with pytest.raises(EngineDeadError, match="has not answered"):
                await engine.check_health(0.3)
            await until(lambda: engine.engine_pid not in (None, pid) and engine.is_ready)
            await engine.check_health()

    run(main())


async def probe(engine: AsyncEngine) -> None:
    """Ask for its health all the time, which must not pass for news."""
    while True:
        with contextlib.suppress(EngineError):
            await engine.check_health(10.0)
        await asyncio.sleep(0.02)


def test_a_step_that_computes_nothing_is_a_hang(model: str) -> None:
    async def main() -> None:
        async with engine_of(model, HASTY) as engine:
            innocent = asyncio.create_task(run_one(engine, *work(2)[1]))
            probing = asyncio.create_task(probe(engine))
            with pytest.raises(RequestFailedError, match="given up"):
                await run_one(engine, [faulty_engine.HANGING], SamplingParams(seed=1))
            probing.cancel()
            assert len((await innocent)[0][0][1]) == 61

    run(main())


def test_health_tells_of_a_hang_even_though_the_process_answers(model: str) -> None:
    async def main() -> None:
        async with engine_of(model, FAULTY) as engine:
            hanging = asyncio.create_task(run_one(engine, [faulty_engine.HANGING], SamplingParams(seed=1)))
            await asyncio.sleep(0.5)
            with pytest.raises(EngineDeadError):
                await engine.check_health(0.3)
            hanging.cancel()

    run(main())


@pytest.mark.parametrize(
    "fault", [faulty_engine.DEADLY, faulty_engine.DEADLY_LATER, faulty_engine.FAILING], ids=["now", "later", "bug"]
)
def test_a_request_that_kills_every_engine_is_ended_and_the_others_go_on(
    model: str, expected: list[Any], fault: int
) -> None:
    async def main() -> None:
        async with engine_of(model, FAULTY) as engine:
            tasks, begun = start_all(engine, 40)
            await until(lambda: begun[0] > 50)
            culprit = asyncio.create_task(run_one(engine, [3, fault], SamplingParams(seed=1, ignore_eos=True)))
            with pytest.raises(RequestFailedError, match="given up"):
                await culprit
            assert await asyncio.gather(*tasks) == expected[:40]

    run(main())


def test_what_the_engine_says_when_it_cannot_start_reaches_the_caller(model: str) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="does not want to start"):
            await engine_of(model, FAULTY, seed=faulty_engine.UNLOADABLE_SEED).start()
        with pytest.raises(EngineDeadError, match="status 3"):
            await engine_of(model, FAULTY, seed=faulty_engine.DYING_SEED).start()
        with pytest.raises(ConfigError, match="block_size"):
            await AsyncEngine(model=model, block_size=17).start()

    run(main())


def test_after_too_many_failures_everybody_is_told(model: str, tmp_path: Path) -> None:
    async def main() -> None:
        mortal = tmp_path / "mortal.gguf"
        tiny.tiny_gguf(mortal)
        engine = engine_of(str(mortal), HASTY)
        await engine.start()
        tasks, begun = start_all(engine, 5)
        await until(lambda: begun[0] > 10)
        mortal.unlink()
        assert engine.engine_pid is not None
        os.kill(engine.engine_pid, signal.SIGKILL)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, EngineDeadError) for one in results)
        assert engine.errored and not engine.is_ready and engine.num_unfinished == 0
        for call in (engine.check_health(), engine.get_stats(), anext(engine.generate("x", SamplingParams()))):
            with pytest.raises(EngineDeadError, match="There is no file"):
                await call
        await engine.shutdown()

    run(main())


def test_two_front_ends_share_an_engine_and_both_recover(model: str, expected: list[Any]) -> None:
    async def main() -> None:
        async with engine_of(model, FAULTY) as owner:
            sharer = engine_of(model, FAULTY, address=owner.address)
            await sharer.start()
            assert sharer.engine_pid is None and sharer.config == owner.config
            (mine, begun), (theirs, begun_too) = start_all(owner, 20), start_all(sharer, 20)
            await until(lambda: begun[0] > 50 and begun_too[0] > 50)
            assert owner.engine_pid is not None
            os.kill(owner.engine_pid, signal.SIGKILL)
            assert await asyncio.gather(*mine) == expected[:20]
            assert await asyncio.gather(*theirs) == expected[:20]
            await sharer.shutdown()
            await owner.check_health()

    run(main())


def test_a_busy_step_is_slow_and_not_stuck() -> None:
    assert not computes_nothing(Pong(1, 10.0, 100.0), Pong(2, 11.0, 101.8), 1.0)
    assert not computes_nothing(Pong(1, 10.0, 100.0), Pong(2, 0.5, 100.0), 1.0), "another step"
    assert computes_nothing(Pong(1, 10.0, 100.0), Pong(2, 11.0, 100.01), 1.0)
