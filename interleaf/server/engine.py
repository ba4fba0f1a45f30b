"""What the server needs of an engine; `interleaf.frontend.async_engine.AsyncEngine` has it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Protocol

from interleaf.config import EngineConfig
from interleaf.messages import SchedulerStats
from interleaf.outputs import RequestOutput
from interleaf.params import RequestParams, SamplingParams

if TYPE_CHECKING:
    from interleaf.frontend.processor import Processor, Prompt
    from interleaf.frontend.tokenizer import Tokenizer


class MetricsPage(Protocol):
    """The engine's metrics."""

    def render(self) -> bytes:
        """All of them in Prometheus' text format."""


class Engine(Protocol):
    """An engine that runs already."""

    @property
    def config(self) -> EngineConfig: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def processor(self) -> Processor: ...

    @property
    def metrics(self) -> MetricsPage: ...

    @property
    def is_ready(self) -> bool: ...

    def default_sampling_params(self) -> SamplingParams: ...

    def generate(
        self,
        prompt: Prompt,
        sampling_params: RequestParams,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        deadline: float | None = None,
        wait_for_restart: bool | float = True,
        trace_headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]: ...

    async def check_health(self, timeout: float) -> None: ...

    async def get_stats(self) -> SchedulerStats: ...

    async def block_map(self) -> bytes: ...

    async def reset_prefix_cache(self) -> bool: ...

    async def sleep(self, level: int) -> None: ...

    async def wake_up(self) -> None: ...

    async def is_sleeping(self) -> bool: ...
