"""AsyncEngine.encode on a real engine process, and what becomes of pooled hidden states."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from interleaf import LLM, AsyncEngine, PoolingParams, SamplingParams
from interleaf.errors import EngineDeadError, ParameterError, RequestFailedError
from interleaf.frontend.embedding import embedding_of
from interleaf.frontend.supervisor import SupervisorOptions
from tests.engine import faulty_engine
from tests.loader import tiny

OPTIONS: dict[str, Any] = {"kv_cache_memory_bytes": 1 << 24, "threads": 1, "max_num_batched_tokens": 40}
SLOW = SupervisorOptions(engine_module=faulty_engine.MODULE)
PROMPTS: list[Any] = ["The quick brown fox", [5, 6, 7], *[[10 + number] * (3 * number + 1) for number in range(20)]]
PARAMS = [PoolingParams(pooling="mean" if number % 2 else "last", dimensions=16) for number in range(len(PROMPTS))]


@pytest.fixture(autouse=True)
def faulty_engine_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", faulty_engine.ROOT)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedding") / "tiny.gguf"
    tiny.tiny_gguf(path)
    return path


async def one(engine: AsyncEngine, *request: Any) -> list[float]:
    [output] = [output async for output in engine.encode(*request)]
    return output.outputs.embedding


def test_it_gives_what_the_offline_engine_gives_even_if_its_engine_dies(model: Path) -> None:
    with LLM(str(model), **OPTIONS) as llm:
        expected = [output.outputs.embedding for output in llm.embed(PROMPTS, PARAMS, use_tqdm=False)]

    async def test() -> None:
        async with AsyncEngine(model=str(model), supervision=SLOW, **OPTIONS) as engine:
            for kill in (False, True):
                work = [asyncio.ensure_future(one(engine, *both)) for both in zip(PROMPTS, PARAMS, strict=True)]
                if kill:
                    await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                    assert engine.engine_pid is not None and engine.num_unfinished > 0
                    os.kill(engine.engine_pid, signal.SIGKILL)
                assert await asyncio.gather(*work) == expected
            stats = await engine.get_stats()
            assert stats.num_free_blocks == stats.num_blocks and engine.num_unfinished == 0

    asyncio.run(asyncio.wait_for(test(), 60))


def test_an_embedding_that_cannot_come(model: Path) -> None:
    async def test() -> None:
        async with AsyncEngine(model=str(model), supervision=SLOW, **OPTIONS) as engine:
            with pytest.raises(ParameterError, match="dimensions"):
                await one(engine, "x", PoolingParams(dimensions=10**6))
            long = SamplingParams(max_tokens=300, ignore_eos=True)
            beside = asyncio.ensure_future(anext(engine.generate([5], long)))
            waiting = asyncio.ensure_future(one(engine, [7] * 400, PoolingParams(pooling="mean"), "name"))
            while engine.num_unfinished < 2:
                await asyncio.sleep(0.001)
            await engine.abort("name")
            with pytest.raises(RequestFailedError, match="Request name was ended"):
                await waiting
            await beside
        with pytest.raises(EngineDeadError):
            await one(engine, "x")

    asyncio.run(asyncio.wait_for(test(), 60))


def test_embedding_of() -> None:
    assert embedding_of([3.0, 4.0, 12.0], PoolingParams(normalize=False)) == [3.0, 4.0, 12.0]
    assert embedding_of([3.0, 4.0, 12.0], PoolingParams(dimensions=1)) == [1.0]
    assert embedding_of([3e38, 4e38], PoolingParams()) == embedding_of([3.0, 4.0], PoolingParams())
    assert embedding_of([0.0, 0.0], PoolingParams()) == [0.0, 0.0]
