"""A whole model on the reference ops and on the native ones: the same worker code, two platforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interleaf.config import EngineArgs, EngineConfig, resolve
from interleaf.engine.core import EngineCore
from interleaf.layers.weights import Weights
from interleaf.loader.checkpoint import open_checkpoint
from interleaf.messages import EngineRequest, SchedulerOutput, StepOutput
from interleaf.models.registry import load_model
from interleaf.ops.cpu import CpuOps
from interleaf.ops.reference import ReferenceOps
from interleaf.params import SamplingParams
from interleaf.worker.model_input import LOGITS_ROWS
from interleaf.worker.runner import Runner
from tests.loader import tiny


class OpsExecutor:
    """A runner on given ops, as the engine core wants it."""

    kernel_seconds = 0.0

    def __init__(self, config: EngineConfig, path: Path, reference: bool) -> None:
        scheduler, model = config.scheduler, config.model
        ops = (
            ReferenceOps(config.dtype)
            if reference
            else CpuOps(config.dtype, 2, scheduler.max_num_batched_tokens, LOGITS_ROWS, model.vocab_size)
        )
        with open_checkpoint(str(path)) as checkpoint:
            loaded = load_model(model, ops, Weights(checkpoint.tensors), scheduler.max_model_len)
        cache = config.cache
        caches = ops.new_caches(
            model.num_layers, cache.num_blocks, cache.block_size, model.num_kv_heads, model.head_dim
        )
        self.runner = Runner(config, ops, loaded, caches)

    def execute(self, scheduled: SchedulerOutput) -> StepOutput:
        return self.runner.execute(scheduled)

    def close(self) -> None:
        pass


def new_core(path: Path, reference: bool) -> EngineCore:
    with open_checkpoint(str(path)) as checkpoint:
        args = EngineArgs(dtype="float32", max_num_batched_tokens=40, max_num_seqs=8, max_model_len=128)
        config = resolve(args, "tiny", checkpoint.hf_config, 0, 1 << 23)
    return EngineCore(config, OpsExecutor(config, path, reference))


def outputs(path: Path, reference: bool) -> dict[tuple[str, int], tuple[list[int], list[float]]]:
    core = new_core(path, reference)
    rng = np.random.default_rng(0)
    for i, length in enumerate((1, 16, 33, 70)):
        params = SamplingParams(
            n=1 + i % 3,
            temperature=0.0 if i == 1 else 0.8,
            top_k=20,
            seed=i,
            max_tokens=10,
            ignore_eos=True,
            logprobs=0,
        )
        core.add_request(EngineRequest(f"r{i}", rng.integers(3, 384, length).tolist(), params))
    found: dict[tuple[str, int], tuple[list[int], list[float]]] = {}
    while core.has_unfinished():
        for output in core.step().outputs:
            tokens, logprobs = found.setdefault((output.request_id, output.index), ([], []))
            tokens += output.new_token_ids
            logprobs += [entry.logprobs[0] for entry in output.logprobs or ()]
    return found


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_qwen2, tiny.tiny_qwen3])
def test_native_and_reference_agree(make: object, tmp_path: Path) -> None:
    path = make(tmp_path / "model")  # type: ignore[operator]
    native, reference = outputs(path, False), outputs(path, True)
    assert native.keys() == reference.keys()
    for key, (tokens, logprobs) in native.items():
        assert tokens == reference[key][0]
        np.testing.assert_allclose(logprobs, reference[key][1], atol=1e-4)


def test_native_and_reference_pool_the_same(tmp_path: Path) -> None:
    path = tiny.tiny_qwen3(tmp_path / "model")
    pooled: list[dict[str, list[float]]] = []
    for reference in (False, True):
        core, rng = new_core(path, reference), np.random.default_rng(0)
        for i, length in enumerate((1, 16, 33, 100)):
            prompt = rng.integers(3, 384, length).tolist()
            for pooling in ("last", "mean"):
                params = SamplingParams(seed=0, max_tokens=None)
                core.add_request(EngineRequest(f"{pooling}{i}", prompt, params, pooling=pooling))
        found: dict[str, list[float]] = {}
        while core.has_unfinished():
            for output in core.step().outputs:
                assert output.embedding is not None and output.finished
                found[output.request_id] = output.embedding
        pooled.append(found)
    native, reference_pooled = pooled
    assert len(native) == 8 and native["last0"] == native["mean0"]
    for name, values in native.items():
        np.testing.assert_allclose(values, reference_pooled[name], atol=1e-4)
