"""The worker: a model with its weights and cache on one device, driven by `SchedulerOutput`s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from interleaf.config import EngineConfig
from interleaf.errors import InsufficientMemoryError
from interleaf.host_tensor import HostTensor
from interleaf.layers.weights import Weights
from interleaf.logits_processor import LogitsProcessor
from interleaf.messages import SchedulerOutput, StepOutput
from interleaf.model_config import ModelConfig
from interleaf.models.registry import CausalModel, load_model
from interleaf.observe import get_logger
from interleaf.ops import LayerCache
from interleaf.ops.cpu import CpuOps
from interleaf.worker.model_input import LOGITS_ROWS
from interleaf.worker.runner import Runner
from interleaf.worker.spec_decode.draft_model import DraftModel, num_spare_blocks
from interleaf.worker.spec_decode.speculator import make_speculator

logger = get_logger(__name__)


class Worker:
    """Loads the model when made; gives all memory back on `close()`.

    Raises:
        CheckpointError: the tensors do not fit the configuration.
        InsufficientMemoryError: the weights or the cache could not be allocated.

    Args:
        logits_processors: custom ones, beside those that are built in.
        draft_tensors: of the draft model, if the configuration has one.
        neighbour: id of a process that is left a core while it computes; 0 is none.
    """

    def __init__(
        self,
        config: EngineConfig,
        tensors: Mapping[str, HostTensor],
        logits_processors: Sequence[type[LogitsProcessor[Any]]] = (),
        draft_tensors: Mapping[str, HostTensor] = MappingProxyType({}),
        neighbour: int = 0,
    ) -> None:
        self._all_ops = [
            CpuOps(
                config.dtype,
                config.threads,
                max_tokens=config.scheduler.max_num_batched_tokens,
                max_logits=LOGITS_ROWS,
                vocab_size=config.model.vocab_size,
                quantization=config.quantization,
                kv_cache_dtype=config.cache.dtype,
            )
        ]
        self._all_ops[0].runtime.give_way_to(neighbour)
        try:
            loaded, caches = self._load(config, config.model, tensors, config.cache.num_stored_blocks)
            speculator = make_speculator(config, lambda: self._load_draft(config, draft_tensors))
        except MemoryError:
            raise InsufficientMemoryError(
                "The system refused the memory for the weights and the KV cache: lower --kv-cache-memory-bytes."
            ) from None
        self._runner: Runner | None = Runner(config, self._all_ops[0], loaded, caches, logits_processors, speculator)

    def _load(
        self, config: EngineConfig, model: ModelConfig, tensors: Mapping[str, HostTensor], num_blocks: int
    ) -> tuple[CausalModel, list[LayerCache]]:
        """A model and its layers' storage, on the ops made last."""
        ops = self._all_ops[-1]
        loaded = load_model(model, ops, Weights(tensors), config.scheduler.max_model_len)
        if not loaded.recordable:
            logger.warning("%s cannot be recorded: each step runs op by op, which is slower.", model.architecture)
        places = config.cache.layout.places if model is config.model else [(0, i) for i in range(model.num_layers)]
        count = 1 + max(place for _, place in places)
        stores = ops.new_caches(count, num_blocks, config.cache.block_size, model.num_kv_heads, model.head_dim)
        return loaded, [ops.in_group(stores[place], group) for group, place in places]

    def _load_draft(self, config: EngineConfig, tensors: Mapping[str, HostTensor]) -> DraftModel:
        assert config.draft_model is not None and config.speculative is not None
        self._all_ops.append(self._all_ops[0].for_another_model(config.speculative.quantization))
        num_blocks = config.cache.num_blocks + num_spare_blocks(config)
        return DraftModel(self._all_ops[-1], *self._load(config, config.draft_model, tensors, num_blocks))

    def execute(self, scheduled: SchedulerOutput) -> StepOutput:
        """Run one step."""
        assert self._runner is not None, "the worker is closed"
        return self._runner.execute(scheduled)

    @property
    def kernel_seconds(self) -> float:
        """Time spent in recorded passes since the start."""
        return sum(ops.kernel_nanoseconds for ops in self._all_ops) * 1e-9

    def close(self) -> None:
        """Give the weights and the cache back; idempotent."""
        self._runner = None
