"""Custom logits processors: where they come from, what they see, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interleaf import LLM, AsyncEngine, LogitsProcessor, SamplingParams
from interleaf.errors import ConfigError, ParameterError, RequestFailedError
from interleaf.logits_processor import SequenceStart
from interleaf.outputs import RequestOutput
from interleaf.params import BeamSettings
from interleaf.worker.logits.custom import importable, load_custom
from tests.loader import tiny

MODULE = '''
import numpy as np
from interleaf import LogitsProcessor


class Countdown(LogitsProcessor):
    """Writes the ids start, start - 1, ...: what is due depends on the output's length alone."""

    @classmethod
    def validate_params(cls, params):
        start = (params.extra_args or {}).get("countdown")
        if start is not None and (not isinstance(start, int) or start < 0):
            raise ValueError("countdown must be a token id")

    def start(self, sequence):
        start = (sequence.params.extra_args or {}).get("countdown")
        return None if start is None else start - len(sequence.output_token_ids)

    def advance(self, due, token):
        assert token == due
        return due - 1

    def apply(self, logits, held):
        rows = [i for i, _ in held]
        due = [due for _, due in held]
        kept = logits[rows, due]
        logits[rows] = -np.inf
        logits[rows, due] = kept
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_llama(tmp_path_factory.mktemp("custom"))


@pytest.fixture
def countdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "countdown_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    yield "countdown_module:Countdown"
    sys.modules.pop("countdown_module", None)


def params(**options: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, "detokenize": False, **options})


def essence(outputs: list[RequestOutput]) -> list[Any]:
    return [[(one.token_ids, one.cumulative_logprob, one.finish_reason) for one in out.outputs] for out in outputs]


def test_by_name_beside_requests_that_do_not_use_it(model: Path, countdown: str) -> None:
    prompts = [[5, 6, 7], [8, 9], [10]]
    asked = [params(extra_args={"countdown": 100}, n=2, temperature=1.0, logprobs=0), params(), params(temperature=0.7)]
    with LLM(model, dtype="float32", kv_cache_memory_bytes=1 << 20) as plain:
        expected = plain.generate(prompts, asked, use_tqdm=False)
    with LLM(model, dtype="float32", kv_cache_memory_bytes=1 << 20, logits_processors=[countdown]) as llm:
        found = llm.generate(prompts, asked, use_tqdm=False)
        with pytest.raises(ParameterError, match="Countdown refuses the request: countdown must be a token id"):
            llm.generate([[5]], params(extra_args={"countdown": -1}), use_tqdm=False)
    assert [one.token_ids for one in found[0].outputs] == [list(range(100, 88, -1))] * 2
    assert essence(found[1:]) == essence(expected[1:])


def test_states_survive_preemption(model: Path, countdown: str) -> None:
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": 64, "logits_processors": [countdown]}
    asked = [params(extra_args={"countdown": 380 - i}, max_tokens=40, logprobs=0) for i in range(6)]
    prompts = [[20 + i] * 10 for i in range(6)]
    found = []
    for cache in (1 << 20, 1 << 16):
        with LLM(model, kv_cache_memory_bytes=cache, **options) as llm:
            found.append(essence(llm.generate(prompts, asked, use_tqdm=False)))
            preempted = llm.client.stats().num_preemptions
        assert (preempted > 0) == (cache == 1 << 16)
    assert found[0] == found[1]
    assert found[0][2][0][0] == list(range(378, 338, -1))


class Fragile(LogitsProcessor[str]):
    """Fails on those who ask for it, each in its own way."""

    def start(self, sequence: SequenceStart) -> str | None:
        how = (sequence.params.extra_args or {}).get("how")
        if how == "start":
            raise RuntimeError("start")
        return how

    def advance(self, state: str, token: int) -> str:
        if state == "advance":
            raise RuntimeError("advance")
        return state

    def apply(self, logits: np.ndarray, held: Sequence[tuple[int, str]]) -> None:
        for i, how in held:
            logits[i, 3:] += np.arange(logits.shape[1] - 3, dtype=np.float32) / 100
            if how == "apply":
                raise RuntimeError("apply")
            if how == "nan":
                logits[i, 7] = np.nan
            if how == "nothing":
                logits[i] = -np.inf


def test_a_failure_ends_the_request_that_met_it_and_no_other(model: Path) -> None:
    ways = ["fine", None, "start", "apply", "fine", "nan", "advance", "nothing", "fine"]
    asked = [params(extra_args={"how": way}, n=1 + (way == "fine"), seed=3, temperature=0.5) for way in ways]
    prompts = [[20 + i] * 3 for i in range(len(ways))]
    with LLM(model, dtype="float32", kv_cache_memory_bytes=1 << 20, logits_processors=[Fragile]) as llm:
        found = llm.generate(prompts, asked, use_tqdm=False)
        good = [i for i, way in enumerate(ways) if way in ("fine", None)]
        alone = [llm.generate([prompts[i]], asked[i], use_tqdm=False)[0] for i in good]
        free = llm.client.stats()
    assert essence([found[i] for i in good]) == essence(alone)
    for way, output in zip(ways, found, strict=True):
        if way not in ("fine", None):
            assert [(one.finish_reason, one.token_ids) for one in output.outputs] == [("error", [])]
    assert free.num_free_blocks == free.num_blocks


def test_a_failure_in_one_beam_ends_the_search(model: Path) -> None:
    ways = ["fine", "apply", "advance"]
    asked = [params(extra_args={"how": way}, n=2, beam=BeamSettings(3)) for way in ways]
    with LLM(model, dtype="float32", kv_cache_memory_bytes=1 << 20, logits_processors=[Fragile]) as llm:
        found = llm.generate([[20], [21], [22]], asked, use_tqdm=False)
        stats = llm.client.stats()
    reasons = [[one.finish_reason for one in output.outputs] for output in found]
    assert reasons == [["length"] * 2, ["error"] * 2, ["error"] * 2]
    assert stats.num_free_blocks == stats.num_blocks


def test_in_the_engine_s_process(model: Path, countdown: str) -> None:
    async def use() -> tuple[list[int], str]:
        options: dict[str, Any] = {"model": str(model), "dtype": "float32", "kv_cache_memory_bytes": 1 << 20}
        fragile = "tests.worker.test_custom_logits_processors:Fragile"
        async with AsyncEngine(logits_processors=[countdown, fragile], **options) as engine:
            asked = params(extra_args={"countdown": 50})
            outputs = [output async for output in engine.generate([5, 6], asked)]
            with pytest.raises(ParameterError):
                await anext(engine.generate([5], params(extra_args={"countdown": "x"})))
            with pytest.raises(RequestFailedError, match="The logits processor Fragile failed on this request") as info:
                async for _ in engine.generate([5], params(extra_args={"how": "apply"})):
                    pass
            return outputs[-1].outputs[0].token_ids, str(info.value)

    tokens, _ = asyncio.run(use())
    assert tokens == list(range(50, 38, -1))


def test_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, countdown: str) -> None:
    information = tmp_path / "some_plugin-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: some-plugin\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[interleaf.logits_processors]\ncountdown = {countdown}\n")
    [found] = load_custom(())
    assert found.__name__ == "Countdown"
    assert load_custom([countdown, Fragile, found]) == [found, Fragile]


def test_names_that_cannot_be_used(countdown: str) -> None:
    class Local(Fragile):
        pass

    assert importable([countdown, Fragile]) == (countdown, f"{__name__}:Fragile")
    with pytest.raises(ConfigError, match="Local cannot be imported by the engine's process"):
        importable([Local])
    for name, message in [
        ("countdown_module.Countdown", "module:Class"),
        ("countdown_module:Missing", "cannot be imported"),
        ("no_such_module:Countdown", "PYTHONPATH"),
        ("countdown_module:np", "no logits processor"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_custom([name])
    with pytest.raises(ConfigError, match="no logits processor"):
        load_custom([dict])
