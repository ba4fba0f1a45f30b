"""interleaf: LLM inference and serving on a paged KV cache.

The public names are imported when first used, so that `import interleaf` and `interleaf --help`
cost a few milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from interleaf.errors import InterleafError
    from interleaf.frontend.async_engine import AsyncEngine, AsyncLLM
    from interleaf.llm import LLM
    from interleaf.logits_processor import LogitsProcessor
    from interleaf.outputs import (
        BeamSearchOutput,
        BeamSearchSequence,
        CompletionOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        Logprob,
        RequestOutput,
    )
    from interleaf.params import PoolingParams, RequestOutputKind, SamplingParams
    from interleaf.structured_params import GuidedDecodingParams, StructuredOutputsParams

_HOME_OF = {
    "LLM": "interleaf.llm",
    "AsyncEngine": "interleaf.frontend.async_engine",
    "AsyncLLM": "interleaf.frontend.async_engine",
    "LogitsProcessor": "interleaf.logits_processor",
    "SamplingParams": "interleaf.params",
    "StructuredOutputsParams": "interleaf.structured_params",
    "GuidedDecodingParams": "interleaf.structured_params",
    "BeamSearchParams": "interleaf.params",
    "PoolingParams": "interleaf.params",
    "RequestOutputKind": "interleaf.params",
    "BeamSearchOutput": "interleaf.outputs",
    "BeamSearchSequence": "interleaf.outputs",
    "RequestOutput": "interleaf.outputs",
    "CompletionOutput": "interleaf.outputs",
    "EmbeddingOutput": "interleaf.outputs",
    "EmbeddingRequestOutput": "interleaf.outputs",
    "Logprob": "interleaf.outputs",
    "InterleafError": "interleaf.errors",
}

__all__ = [
    "LLM",
    "AsyncEngine",
    "AsyncLLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "CompletionOutput",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "GuidedDecodingParams",
    "InterleafError",
    "LogitsProcessor",
    "Logprob",
    "PoolingParams",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'interleaf' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
