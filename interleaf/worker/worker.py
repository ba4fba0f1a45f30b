"""The worker: a model with its weights and cache on one device, driven by `SchedulerOutput`s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interleaf.config import EngineConfig
from interleaf.errors import InsufficientMemoryError
from interleaf.host_tensor import HostTensor
from interleaf.layers.weights import Weights
from interleaf.logits_processor import LogitsProcessor
from interleaf.messages import SchedulerOutput, StepOutput
from interleaf.models.registry import load_model
from interleaf.ops.cpu import CpuOps
from interleaf.worker.runner import LOGITS_ROWS, Runner


class Worker:
    """Loads the model when made; gives all memory back on `close()`.

    Raises:
        CheckpointError: the tensors do not fit the configuration.
        InsufficientMemoryError: the weights or the cache could not be allocated.

    Args:
        logits_processors: custom ones, beside those that are built in.
    """

    def __init__(
        self,
        config: EngineConfig,
        tensors: Mapping[str, HostTensor],
        logits_processors: Sequence[type[LogitsProcessor[Any]]] = (),
    ) -> None:
        model, cache = config.model, config.cache
        try:
            self._ops = CpuOps(
                config.dtype,
                config.threads,
                max_tokens=config.scheduler.max_num_batched_tokens,
                max_logits=LOGITS_ROWS,
                vocab_size=model.vocab_size,
                quantization=config.quantization,
            )
            loaded = load_model(model, self._ops, Weights(tensors), config.scheduler.max_model_len)
            caches = [
                self._ops.new_cache(cache.num_blocks, cache.block_size, model.num_kv_heads, model.head_dim)
                for _ in range(model.num_layers)
            ]
        except MemoryError:
            raise InsufficientMemoryError(
                "The system refused the memory for the weights and the KV cache: lower --kv-cache-memory-bytes."
            ) from None
        self._runner: Runner | None = Runner(config, self._ops, loaded, caches, logits_processors)

    def execute(self, scheduled: SchedulerOutput) -> StepOutput:
        """Run one step."""
        assert self._runner is not None, "the worker is closed"
        return self._runner.execute(scheduled)

    @property
    def kernel_seconds(self) -> float:
        """Time spent in recorded passes since the start."""
        return self._ops.kernel_nanoseconds * 1e-9

    def close(self) -> None:
        """Give the weights and the cache back; idempotent."""
        self._runner = None
