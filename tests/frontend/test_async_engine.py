"""AsyncEngine on a real engine process: the same tokens as LLM, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import interleaf
from interleaf import LLM, AsyncEngine, RequestOutputKind, SamplingParams
from interleaf.config import EngineArgs
from interleaf.errors import (
    ConfigError,
    DeadlineExceededError,
    EngineDeadError,
    OverloadedError,
    ParameterError,
    PromptTooLongError,
    RequestError,
)
from interleaf.frontend.supervisor import SupervisorOptions
from tests.engine import faulty_engine
from tests.loader import tiny

OPTIONS: dict[str, Any] = {"kv_cache_memory_bytes": 1 << 24, "threads": 1}
SLOW = SupervisorOptions(engine_module=faulty_engine.MODULE)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True, output_kind=RequestOutputKind.DELTA)


@pytest.fixture(autouse=True)
def faulty_engine_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", faulty_engine.ROOT)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("async-model") / "tiny.gguf"
    tiny.tiny_gguf(path)
    return str(path)


def run(test: Callable[[AsyncEngine], Coroutine[Any, Any, None]], model: str, **options: Any) -> None:
    """Run a test with an engine."""

    async def main() -> None:
        async with AsyncEngine(model=model, **{**OPTIONS, **options}) as engine:
            await test(engine)
            assert engine.num_unfinished == 0
            stats = await engine.get_stats()
            assert stats.num_running == stats.num_waiting == 0
            assert stats.num_free_blocks == stats.num_blocks

    asyncio.run(asyncio.wait_for(main(), 60))


async def last(engine: AsyncEngine, prompt: Any, params: SamplingParams | None = None, **options: Any) -> Any:
    async for output in engine.generate(prompt, params, **options):
        found = output
    return found


PROMPTS: list[Any] = [
    "The quick brown fox",
    [5, 6, 7],
    {"prompt": "A dog"},
    {"prompt_token_ids": [9, 8, 7], "cache_salt": "s"},
]


def test_it_gives_what_the_offline_engine_gives(model: str) -> None:
    params = [
        SamplingParams(temperature=0.7, seed=number, max_tokens=30, logprobs=2, stop=["qu"], n=1 + number % 2)
        for number in range(len(PROMPTS))
    ]
    with LLM(model, **OPTIONS) as llm:
        expected = llm.generate(PROMPTS, params, use_tqdm=False)

    async def test(engine: AsyncEngine) -> None:
        outputs = await asyncio.gather(*[last(engine, *one) for one in zip(PROMPTS, params, strict=True)])
        for ours, theirs in zip(outputs, expected, strict=True):
            assert ours.outputs == theirs.outputs
            assert (ours.prompt, ours.prompt_token_ids) == (theirs.prompt, theirs.prompt_token_ids)

    run(test, model)


def test_the_kinds_of_output(model: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        found: dict[RequestOutputKind, list[Any]] = {}
        for kind in RequestOutputKind:
            params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, logprobs=0, output_kind=kind)
            found[kind] = [output async for output in engine.generate("The dog", params, "name")]
            assert [output.finished for output in found[kind]] == [False] * (len(found[kind]) - 1) + [True]
            assert all(output.request_id == "name" for output in found[kind])
        [final] = found[RequestOutputKind.FINAL_ONLY]
        assert final.outputs == found[RequestOutputKind.CUMULATIVE][-1].outputs
        deltas = [output.outputs[0] for output in found[RequestOutputKind.DELTA]]
        assert len(deltas) > 1
        assert "".join(delta.text for delta in deltas) == final.outputs[0].text
        assert [token for delta in deltas for token in delta.token_ids] == final.outputs[0].token_ids

    run(test, model, supervision=SLOW)


def test_a_slow_reader_gets_everything_in_few_outputs(model: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        expected = (await last(engine, "x", SamplingParams(temperature=0, max_tokens=400, ignore_eos=True))).outputs[0]
        tokens, count = [], 0
        async for output in engine.generate("x", LONG):
            count += 1
            tokens += output.outputs[0].token_ids
            await asyncio.sleep(0.3)
        assert tokens == expected.token_ids
        assert count < 100

    run(test, model)


def test_wrong_requests_are_refused_before_anything_is_queued(model: str) -> None:
    bad: list[tuple[Any, SamplingParams, type[Exception]]] = [
        ("", SamplingParams(), RequestError),
        ([10**6], SamplingParams(), RequestError),
        ([3] * 10_000, SamplingParams(), PromptTooLongError),
        ("word " * 20_000, SamplingParams(), PromptTooLongError),
        ([3] * 20_000, SamplingParams(), PromptTooLongError),
        ("x", SamplingParams(logprobs=1000), ParameterError),
        (5, SamplingParams(), RequestError),
        ({"text": "x"}, SamplingParams(), RequestError),
    ]

    async def test(engine: AsyncEngine) -> None:
        for prompt, params, kind in bad:
            with pytest.raises(kind):
                await last(engine, prompt, params)
            assert engine.num_unfinished == 0
        assert (await engine.get_stats()).num_steps == 0

    run(test, model)


async def wait_for_free_blocks(engine: AsyncEngine) -> None:
    begin = time.monotonic()
    while (stats := await engine.get_stats()).num_free_blocks < stats.num_blocks:
        assert time.monotonic() - begin < 1.0, "400 slow steps take longer"


@pytest.mark.parametrize("how", ["close", "cancel", "abort"])
def test_whoever_loses_interest_frees_the_blocks(model: str, how: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        generator = engine.generate("The dog", LONG, "mine")
        await anext(generator)
        if how == "close":
            await generator.aclose()
        elif how == "cancel":
            task = asyncio.ensure_future(_exhaust(generator))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await engine.abort("another")
            await engine.abort("mine")
            outputs = await _exhaust(generator)
            assert outputs[-1].finished and outputs[-1].outputs[0].finish_reason == "abort"
        assert engine.num_unfinished == 0
        await wait_for_free_blocks(engine)

    run(test, model, supervision=SLOW)


async def _exhaust(generator: Any) -> list[Any]:
    return [output async for output in generator]


def test_half_of_many_readers_hang_up(model: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        async def impatient(number: int) -> None:
            async for _ in engine.generate([3 + number], LONG):
                if number % 3:
                    break

        await asyncio.gather(*[impatient(number) for number in range(60)])
        await wait_for_free_blocks(engine)

    run(test, model)


def test_a_deadline_ends_the_request(model: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        with pytest.raises(DeadlineExceededError, match=r"0\.2 seconds"):
            await last(engine, "x", LONG, deadline=0.2)
        await wait_for_free_blocks(engine)
        assert (await last(engine, "x", SamplingParams(max_tokens=1), deadline=10)).finished
        assert b'request_success_total{engine="0",finished_reason="abort"' in engine.metrics.render()

    run(test, model, supervision=SLOW)


def test_too_many_requests_are_refused(model: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        results = await asyncio.gather(*[last(engine, [3 + i], LONG) for i in range(10)], return_exceptions=True)
        refused = [one for one in results if isinstance(one, OverloadedError)]
        assert len(refused) == 10 - 2 - 3
        assert all(one.retry_after >= 1.0 for one in refused)
        assert (await last(engine, "x", LONG)).finished

    run(test, model, max_num_seqs=2, max_num_queued_reqs=3)


def test_too_many_tokens_are_refused(model: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        prompts = [[3 + i] * 100 for i in range(5)]
        results = await asyncio.gather(*[last(engine, one, LONG) for one in prompts], return_exceptions=True)
        assert [isinstance(one, OverloadedError) for one in results] == [False, False, True, True, True]
        assert (await last(engine, [3] * 300, SamplingParams(max_tokens=1))).finished, "alone, any length is taken"

    run(test, model, max_num_queued_tokens=250)


def test_sleeping_and_waking(model: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        expected = (await last(engine, "The dog", LONG.clone())).outputs
        await engine.sleep()
        assert await engine.is_sleeping() and not engine.is_ready
        task = asyncio.create_task(_exhaust(engine.generate("The dog", LONG)))
        await asyncio.sleep(0.3)
        assert not task.done()
        await engine.check_health()
        await engine.wake_up()
        assert engine.is_ready and not await engine.is_sleeping()
        assert (await task)[-1].outputs[0].finish_reason == expected[0].finish_reason

    run(test, model)


def test_metrics_bear_the_served_name(model: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        shown = engine.metrics.render().decode()
        assert 'vllm:num_requests_running{engine="0",model_name="my name"}' in shown and model not in shown

    run(test, model, served_model_name="my name")


def test_facts_and_utilities(model: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        assert engine.is_ready and not engine.errored
        assert engine.config.model_name == model
        assert engine.tokenizer.decode(engine.tokenizer.encode("A dog")) == "A dog"
        assert engine.default_sampling_params() == engine.processor.default_sampling_params()
        await last(engine, [3] * 40, SamplingParams(max_tokens=2))
        blocks = await engine.block_map()
        assert len(blocks) == engine.config.cache.num_blocks and set(blocks) == {0, 1}
        assert await engine.reset_prefix_cache()
        assert set(await engine.block_map()) == {0}
        await engine.check_health()

    run(test, model)


def test_shutdown_drains_then_aborts_and_refuses(model: str) -> None:
    async def main() -> None:
        engine = AsyncEngine.from_engine_args(EngineArgs(model=model, **OPTIONS), supervision=SLOW)
        short = asyncio.create_task(last(engine, "x", SamplingParams(max_tokens=5, ignore_eos=True)))
        long = asyncio.create_task(last(engine, "x", SamplingParams(max_tokens=450, ignore_eos=True)))
        while engine.num_unfinished < 2:
            await asyncio.sleep(0.01)
        ending = asyncio.create_task(engine.shutdown(1.0))
        await asyncio.sleep(0.05)
        with pytest.raises(EngineDeadError, match="shut down"):
            await last(engine, "x")
        await ending
        assert (await short).outputs[0].finish_reason == "length"
        assert (await long).outputs[0].finish_reason == "abort"
        assert engine.errored and not engine.is_ready and engine.engine_pid is None
        directory = Path(engine.address.removeprefix("ipc://")).parent
        assert not directory.exists()
        await engine.shutdown()
        for call in (engine.start(), engine.check_health(), engine.get_stats()):
            with pytest.raises(EngineDeadError):
                await call

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_option_without_such_a_name_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="max_seqs"):
        AsyncEngine(max_seqs=3)
    assert interleaf.AsyncLLM is AsyncEngine


def test_before_the_start_there_are_no_facts() -> None:
    engine = AsyncEngine()
    with pytest.raises(EngineDeadError, match="start"):
        _ = engine.config


def test_the_socket_is_for_this_user_only(model: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        directory = Path(engine.address.removeprefix("ipc://")).parent
        assert directory.stat().st_mode & 0o777 == 0o700

    run(test, model)


def test_idle_it_uses_no_processor(model: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        await last(engine, "x", LONG)
        await asyncio.sleep(0.3)
        before = time.process_time()
        await asyncio.sleep(2.0)
        assert time.process_time() - before < 0.01

    run(test, model)


def test_the_engine_ends_with_a_killed_program(model: str) -> None:
    program = (
        "import asyncio, sys, time\n"
        "from interleaf import AsyncEngine, SamplingParams\n"
        "async def main():\n"
        "    engine = AsyncEngine(model=sys.argv[1], kv_cache_memory_bytes=1 << 24)\n"
        "    async for _ in engine.generate('x', SamplingParams(max_tokens=450, ignore_eos=True)):\n"
        "        print(engine.engine_pid, engine.address, flush=True)\n"
        "        time.sleep(100)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, model], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, address = parent.stdout.readline().split()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    begin = time.monotonic()
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() - begin < 5
        time.sleep(0.01)
    assert not os.path.exists(os.path.dirname(address.removeprefix("ipc://")))


def test_the_api_process_loads_no_numerics(model: str) -> None:
    program = (
        "import sys; from interleaf import AsyncEngine; AsyncEngine()\n"
        "heavy = {'torch', 'transformers', 'interleaf._native', 'interleaf.worker.worker'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
