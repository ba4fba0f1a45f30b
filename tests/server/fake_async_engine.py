"""The fake engine behind the interface that the server needs: one token a sequence and turn of the event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from interleaf.config import EngineConfig
from interleaf.errors import EngineDeadError
from interleaf.frontend.output import OutputProcessor
from interleaf.frontend.processor import Processor, Prompt, RequestInput
from interleaf.messages import SchedulerStats
from interleaf.outputs import RequestOutput
from interleaf.params import RequestParams, SamplingParams
from tests.fake_engine import FakeClient, FakeTokenizer, engine_config


class ServerTokenizer(FakeTokenizer):
    chat_templates = {"default": "fake", "other": "o!"}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        return [chr(token) for token in ids]


class FakeMetrics:
    def render(self) -> bytes:
        return b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 0.0\n"


class FakeAsyncEngine:
    """See `interleaf.server.engine.Engine`.

    Attributes:
        pause: seconds between steps.
        failure: raised by the next requests, before or (`fail_after` tokens) while they run.
        trace_headers: of the last request.
        aborted: external ids of requests whose stream was closed before its end.
        healthy: False makes health checks fail.
    """

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.client = FakeClient(config or engine_config())
        self.tokenizer: Any = ServerTokenizer()
        self.processor = Processor(self.client.config, self.tokenizer, {})
        self.metrics = FakeMetrics()
        self.is_ready = True
        self.healthy = True
        self.pause = 0.0
        self.failure: Exception | None = None
        self.fail_after = 0
        self.trace_headers: Mapping[str, str] | None = None
        self.aborted: list[str] = []
        self.calls: list[tuple[str, Any]] = []
        self._asleep = False
        self._outputs = OutputProcessor(self.tokenizer)
        self._queues: dict[str, asyncio.Queue[RequestOutput]] = {}
        self._names = itertools.count()

    async def start(self) -> None:
        self.calls.append(("start", None))

    async def shutdown(self, drain_timeout: float) -> None:
        self.calls.append(("shutdown", drain_timeout))
        self.failure, self.fail_after = EngineDeadError("The engine was shut down."), 1

    @property
    def config(self) -> EngineConfig:
        return self.client.config

    def default_sampling_params(self) -> SamplingParams:
        return self.processor.default_sampling_params()

    async def generate(
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
    ) -> AsyncGenerator[RequestOutput, None]:
        if self.failure is not None and not self.fail_after:
            raise self.failure
        self.calls.append(
            ("generate", {"id": request_id, "priority": priority, "salt": cache_salt, "deadline": deadline})
        )
        self.trace_headers = trace_headers
        processed = self.processor.process(RequestInput(prompt, sampling_params, priority, request_id))
        name = processed.engine_request.request_id
        self._outputs.add(processed)
        self._queues[name] = asyncio.Queue()
        self.client.add_request(processed.engine_request)
        finished = False
        try:
            for count in itertools.count(1):
                await asyncio.sleep(self.pause)
                while self._queues[name].empty():
                    self._step()
                output = self._queues[name].get_nowait()
                finished = output.finished
                yield output
                if finished:
                    return
                if self.failure is not None and count >= self.fail_after:
                    raise self.failure
        finally:
            del self._queues[name]
            if not finished:
                self.client.abort([name])
                self._outputs.forget(name)
                self.aborted.append(request_id or "")

    def _step(self) -> None:
        news = self._outputs.process(self.client.step())
        if news.abort_sequence_ids:
            self.client.abort_sequences(news.abort_sequence_ids)
        for name, output in news.request_outputs.items():
            if name in self._queues:
                self._queues[name].put_nowait(output)

    async def check_health(self, timeout: float) -> None:
        if not self.healthy:
            raise EngineDeadError("The engine hangs.")

    async def get_stats(self) -> SchedulerStats:
        return self.client.stats()

    async def block_map(self) -> bytes:
        return bytes([0, 1, 2, 3])

    async def reset_prefix_cache(self) -> bool:
        return self.client.reset_prefix_cache()

    async def sleep(self, level: int) -> None:
        self._asleep = True

    async def wake_up(self) -> None:
        self._asleep = False

    async def is_sleeping(self) -> bool:
        return self._asleep
