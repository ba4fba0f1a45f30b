"""Beam search over HTTP, with a whole engine behind it, which is killed in the middle as well."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import httpx
import pytest

from interleaf import LLM, AsyncEngine, BeamSearchParams
from interleaf.server.app import create_app
from interleaf.server.options import ServerOptions
from tests.loader import tiny
from tests.server.conftest import error, events

pytestmark = pytest.mark.anyio
OPTIONS: dict[str, Any] = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 22, "max_num_seqs": 16}
ASKED = {"model": "tiny", "max_tokens": 20, "use_beam_search": True, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.tiny_llama(tmp_path_factory.mktemp("beams"), seed=1))


async def test_over_http(model: str) -> None:
    with LLM(model, **OPTIONS) as llm:
        prompt = llm.get_tokenizer().encode("The quick brown fox")
        params = BeamSearchParams(4, 20, ignore_eos=True, length_penalty=2.0)
        [best] = llm.beam_search([prompt], params)
        expected = [one.tokens[len(prompt) :] for one in best.sequences]
    async with AsyncEngine(model=model, **OPTIONS) as engine:
        app = create_app(engine, ServerOptions(served_model_names=("tiny",)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            body = {**ASKED, "prompt": prompt, "length_penalty": 2.0, "return_token_ids": True}

            async def texts(**changes: Any) -> list[list[int]]:
                answer = (await client.post("/v1/completions", json={**body, **changes})).json()
                return [one["token_ids"] for one in answer["choices"]]

            assert await texts(beam_width=4, n=3) == expected[:3]
            assert await texts(n=4) == expected, "the width is n"
            assert await texts(best_of=4) == expected[:1], "or best_of"
            streamed = events(await client.post("/v1/completions", json={**body, "n": 4, "stream": True}))
            assert [one["choices"][0]["token_ids"] for one in streamed if one["choices"]] == expected
            chat = {"messages": [{"role": "user", "content": "hi"}], "beam_width": 3, "n": 2, "logprobs": True}
            answer = (await client.post("/v1/chat/completions", json={**ASKED, **chat})).json()
            sums = [sum(one["logprob"] for one in choice["logprobs"]["content"]) for choice in answer["choices"]]
            assert len(sums) == 2 and sums == sorted(sums, reverse=True)
            assert answer["usage"]["completion_tokens"] == 40
            told = error(await client.post("/v1/completions", json={**body, "beam_width": 17}))
            assert (told["status"], told["param"]) == (400, "beam_width")


async def test_a_search_survives_the_engine_s_death(model: str) -> None:
    params = BeamSearchParams(4, 400, ignore_eos=True)

    async def search(engine: AsyncEngine, number: int) -> list[list[int]]:
        outputs = [output async for output in engine.beam_search([5, 6, 7 + number], f"r{number}", params)]
        [output] = outputs
        return [one.token_ids for one in output.outputs]

    async with AsyncEngine(model=model, **OPTIONS) as engine:
        expected = [await search(engine, number) for number in range(2)]
        searches = [asyncio.create_task(search(engine, number)) for number in range(2)]
        while (await engine.get_stats()).num_running < 8:
            await asyncio.sleep(0.01)
        assert engine.engine_pid is not None
        os.kill(engine.engine_pid, signal.SIGKILL)
        assert await asyncio.gather(*searches) == expected
