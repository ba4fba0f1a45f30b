"""How a frontend reaches an engine. In-process: a few calls further down."""

from __future__ import annotations

import logging

from interleaf.config import EngineArgs, EngineConfig, draft_quantization, resolve, weight_memory
from interleaf.engine.core import EngineCore, StepTimes
from interleaf.errors import EngineDeadError, InterleafError
from interleaf.loader.checkpoint import Checkpoint, open_checkpoint
from interleaf.machine import free_memory
from interleaf.messages import EngineOutputs, EngineRequest, SchedulerStats, Vocabulary
from interleaf.models.registry import check_architecture
from interleaf.speculative_config import parse_speculative_config
from interleaf.worker.logits.custom import load_custom
from interleaf.worker.worker import Worker

logger = logging.getLogger(__name__)


def open_draft(args: EngineArgs) -> Checkpoint | None:
    """The draft model that the flags name, if they do.

    Raises:
        ConfigError, CheckpointError: it cannot be used.
    """
    speculative = parse_speculative_config(args.speculative_config)
    if speculative is None or speculative.model is None:
        return None
    return open_checkpoint(speculative.model, speculative.revision)


def resolve_config(args: EngineArgs, checkpoint: Checkpoint, draft: Checkpoint | None = None) -> EngineConfig:
    """The configuration of an engine that is about to load a checkpoint, and a draft model's.

    Raises:
        ConfigError, CheckpointError, InsufficientMemoryError: it cannot start.
    """
    weight_bytes = weight_memory(args.dtype, args.quantization, checkpoint.weight_bytes)
    if draft is not None:
        weight_bytes += weight_memory(args.dtype, draft_quantization(args), draft.weight_bytes)
    draft_hf_config = None if draft is None else draft.hf_config
    config = resolve(args, checkpoint.name, checkpoint.hf_config, weight_bytes, free_memory(), draft_hf_config)
    for model in (config.model, config.draft_model):
        if model is not None:
            check_architecture(model.architecture)
    return config


RUN_SECONDS = 0.1
"""Of decode steps that are done as one: nothing comes meanwhile, but an interrupt may."""


class InProcessClient:
    """An engine in this process, stepped by the caller.

    Raises:
        ConfigError, CheckpointError, InsufficientMemoryError: it cannot start.
    """

    def __init__(self, args: EngineArgs, checkpoint: Checkpoint) -> None:
        draft = open_draft(args)
        self.config = resolve_config(args, checkpoint, draft)
        worker = Worker(
            self.config,
            checkpoint.tensors,
            load_custom(args.logits_processors),
            {} if draft is None else draft.tensors,
        )
        if draft is not None:
            draft.close()
        self._core: EngineCore | None = EngineCore(self.config, worker, RUN_SECONDS)

    @property
    def core(self) -> EngineCore:
        if self._core is None:
            raise EngineDeadError("The engine is closed: make a new LLM to generate more.")
        return self._core

    def learn(self, vocabulary: Vocabulary) -> None:
        """Tell the model's tokens, before the first request with a grammar."""
        self.core.grammars.learn(vocabulary)

    def add_request(self, request: EngineRequest) -> None:
        self.core.add_request(request)

    def abort(self, request_ids: list[str]) -> None:
        self.core.abort(request_ids)

    def abort_sequences(self, sequence_ids: list[str]) -> None:
        self.core.abort_sequences(sequence_ids)

    def step(self) -> EngineOutputs:
        """One step.

        Raises:
            EngineDeadError: the step failed by a fault of ours; the engine is closed.
        """
        try:
            return self.core.step()
        except InterleafError:
            raise
        except Exception as fault:
            logger.exception("a step failed; the engine stops")
            self.close()
            raise EngineDeadError("The engine failed in a step and has stopped: make a new LLM.") from fault

    def has_unfinished(self) -> bool:
        return self._core is not None and self._core.has_unfinished()

    def reset_prefix_cache(self) -> bool:
        return self.core.reset_prefix_cache()

    def stats(self) -> SchedulerStats:
        return self.core.stats()

    def step_times(self) -> StepTimes:
        return self.core.step_times()

    def close(self) -> None:
        """Free all memory; idempotent."""
        if self._core is not None:
            self._core.close()
            self._core = None
