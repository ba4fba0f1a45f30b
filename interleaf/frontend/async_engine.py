"""AsyncEngine: generation for asyncio programs, by an engine in a process of its own.

`OpenRequests` keeps each unfinished request and what it has brought. So when the engine dies, the
next one is given the requests together with their tokens, and goes on behind them: callers see a
pause, then the same tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from interleaf.config import EngineArgs, EngineConfig, engine_args
from interleaf.engine.remote import Answer, Connection
from interleaf.errors import (
    EngineDeadError,
    InterleafError,
)
from interleaf.frontend.admission import Admission
from interleaf.frontend.beam_search import request_params
from interleaf.frontend.board import Seat
from interleaf.frontend.metrics import EngineMetrics
from interleaf.frontend.open_requests import OpenRequests, restarting
from interleaf.frontend.processor import ProcessedRequest, Processor, Prompt, PromptDict, RequestInput
from interleaf.frontend.supervisor import Supervisor, SupervisorOptions, computes_nothing
from interleaf.frontend.tracing import RequestTracer
from interleaf.messages import (
    FinishReason,
    SchedulerStats,
)
from interleaf.observe import get_logger
from interleaf.outputs import EmbeddingRequestOutput, RequestOutput
from interleaf.params import BeamSearchParams, PoolingParams, RequestParams, SamplingParams
from interleaf.worker.logits.custom import importable, load_custom

if TYPE_CHECKING:
    from interleaf.frontend.tokenizer import Tokenizer

logger = get_logger(__name__)

T = TypeVar("T")

INLINE_CHARACTERS = 4096
INLINE_TOKENS = 16384
"""Prompts up to these sizes are processed in the event loop; larger ones would hold it up, and go to a thread."""
HEALTH_SAMPLE_SECONDS = 0.5
TURN_SECONDS = 0.05
"""Until it is looked again whether another front end is through with its suspects."""


class AsyncEngine:
    """An engine process, and everything that is asked of it by one asyncio program.

    Args:
        args: of the engine; or give them as keywords.
        max_num_queued_reqs: most sequences that may wait for the engine; None is no limit.
        max_num_queued_tokens: most prompt tokens that may wait for the engine; None is no limit.
        served_model_name: what metrics and traces call the model; None is its name in the configuration.
        otlp_traces_endpoint: the collector that is sent a span of OpenTelemetry for each request.
        address: the `address` of an AsyncEngine in another process, to share its engine.
        seat: among the front ends that share it, which count together; None counts alone.
        supervision: when the engine counts as dead.
        options: fields of `interleaf.config.EngineArgs`.

    Raises:
        ConfigError: an option has no such name; or traces are asked for, and cannot be had.

    All methods are for the thread and the event loop in which it was started.
    """

    def __init__(
        self,
        args: EngineArgs | None = None,
        *,
        max_num_queued_reqs: int | None = None,
        max_num_queued_tokens: int | None = None,
        served_model_name: str | None = None,
        otlp_traces_endpoint: str | None = None,
        address: str | None = None,
        seat: Seat | None = None,
        supervision: SupervisorOptions | None = None,
        **options: Any,
    ) -> None:
        args = engine_args(options) if args is None else args
        self._args = replace(args, logits_processors=importable(args.logits_processors))
        self._seat = seat or Seat()
        self._tracer = None if otlp_traces_endpoint is None else RequestTracer(otlp_traces_endpoint)
        admission = Admission(max_num_queued_reqs, max_num_queued_tokens, self._seat)
        self._requests = OpenRequests(admission, self._seat, self._tracer, served_model_name)
        self._attached_to = address
        self._supervision = supervision or SupervisorOptions()
        self._starting = asyncio.Lock()
        self._draining = False
        self._processor: Processor | None = None
        self._supervisor: Supervisor | None = None

    @classmethod
    def from_engine_args(cls, args: EngineArgs, **options: Any) -> Self:
        """The same as `AsyncEngine(args, ...)`, under vLLM's name."""
        return cls(args, **options)

    # ---- life ----

    async def start(self) -> None:
        """Start the engine and wait until it is ready. Done by `generate` where it was not done before.

        Raises:
            ConfigError, CheckpointError, InsufficientMemoryError: the engine cannot start.
            EngineDeadError: it was shut down, or ended while it started.
        """
        async with self._starting:
            if self._requests.dead is not None:
                raise self._requests.dead
            if self._processor is None:
                await self._start()

    async def _start(self) -> None:
        from interleaf.loader.checkpoint import locate

        # Once here, so that front end and engine don't both fetch a model.
        await asyncio.to_thread(locate, self._args.model, self._args.revision)
        self._supervisor = Supervisor(self._args, self._requests, self._supervision, self._attached_to)
        loading = asyncio.create_task(asyncio.to_thread(_load_tokenizer, self._args))
        try:
            await self._supervisor.start()
            tokenizer, generation_config = await loading
        except BaseException:
            await self._supervisor.stop()
            with contextlib.suppress(asyncio.CancelledError, InterleafError):
                await loading
            raise
        custom = load_custom(self._args.logits_processors)
        self._processor = Processor(self.config, tokenizer, generation_config, custom, self._seat.row)
        self._requests.open(self._supervisor, self._processor)

    async def shutdown(self, drain_timeout: float = 0.0) -> None:
        """Take no more requests, let those that run finish within `drain_timeout` seconds, abort the rest, end."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._requests.idle.wait(), drain_timeout)
        self._requests.end_all()
        if self._supervisor is not None:
            await self._supervisor.stop()
        if self._processor is not None:
            await asyncio.to_thread(self._processor.close)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    # ---- generation ----

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: RequestParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        arrival_time: float | None = None,
        deadline: float | None = None,
        wait_for_restart: bool | float = True,
        trace_headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield what a prompt brings, as `sampling_params.output_kind` says.

        Closing the generator, or cancelling the task that reads it, aborts the request within one step.

        Args:
            prompt: as for `LLM.generate`.
            sampling_params: None takes the checkpoint's defaults; with `PoolingParams` the one output has an embedding.
            request_id: the caller's name for it, which outputs bear and `abort` takes.
            priority: lower runs first, where the engine goes by priority.
            cache_salt: requests share cached prefixes only with those of the same salt.
            arrival_time: in seconds of the monotonic clock, for metrics; None is now.
            deadline: seconds from its arrival in which the request must end.
            wait_for_restart: whether to wait while the engine is being started again, or the seconds to do so.
            trace_headers: `traceparent` and `tracestate`, which name the parent of the request's span.

        Raises:
            RequestError: the request is wrong; nothing was queued. Raised when the first output is asked for.
            OverloadedError: too many wait already.
            DeadlineExceededError: the deadline came first.
            RequestFailedError: the engine could not finish this request; others go on.
            EngineRestartingError: the engine is being started again, and this should wait no longer.
            EngineDeadError: the engine is gone for good.
        """
        arrival = time.monotonic() if arrival_time is None else arrival_time
        await self._check_open(wait_for_restart)
        request = RequestInput(
            _with_salt(prompt, cache_salt),
            self.default_sampling_params() if sampling_params is None else sampling_params,
            priority,
            request_id,
        )
        processed = await self._process(request)
        # Processing may have taken its time in a thread.
        await self._check_open(wait_for_restart)
        processed.engine_request.arrival_time = arrival
        stream = self._requests.add(processed, trace_headers, deadline)
        try:
            finished = False
            while not finished:
                output = await stream.next_output()
                finished = output.finished
                yield output
        finally:
            self._requests.end([stream.request.request_id], FinishReason.ABORT)

    async def encode(
        self,
        prompt: Prompt,
        pooling_params: PoolingParams | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> AsyncGenerator[EmbeddingRequestOutput, None]:
        """Yield, once, the embedding of a prompt.

        Args:
            pooling_params: None takes the last token's hidden state, normalized.
            options: and the other arguments, as for `generate`.

        Raises:
            RequestFailedError: the request was aborted, or the engine could not finish it.
            InterleafError: as `generate`.
        """
        params = PoolingParams() if pooling_params is None else pooling_params
        async with contextlib.aclosing(self.generate(prompt, params, request_id, **options)) as outputs:
            async for output in outputs:
                yield EmbeddingRequestOutput.from_output(output)

    async def beam_search(
        self, prompt: Prompt, request_id: str | None, params: BeamSearchParams, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield, once, the likeliest texts behind a prompt, as the `outputs` of one request.

        Args:
            options: and the other arguments, as for `generate`.

        Raises:
            InterleafError: as `generate`.
        """
        await self.start()
        asked = request_params(params, self.config.max_logprobs)
        async with contextlib.aclosing(self.generate(prompt, asked, request_id, **options)) as outputs:
            async for output in outputs:
                yield output

    async def abort(self, request_id: str) -> None:
        """End the requests of this name (of `generate`'s); their readers get a last output that says "abort"."""
        self._requests.end(self._requests.named(request_id), FinishReason.ABORT)

    def default_sampling_params(self) -> SamplingParams:
        """What `generate` uses when it is given no parameters: the checkpoint's generation_config.json."""
        return self.processor.default_sampling_params()

    # ---- facts ----

    @property
    def config(self) -> EngineConfig:
        """The engine's configuration."""
        return _started(self._requests.config)

    @property
    def processor(self) -> Processor:
        """What checks and tokenizes requests."""
        return _started(self._processor)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.processor.tokenizer

    @property
    def metrics(self) -> EngineMetrics:
        """For Prometheus: `metrics.render()`."""
        return _started(self._requests.metrics)

    @property
    def address(self) -> str:
        """Where other processes reach the engine: their AsyncEngine's `address`."""
        return _started(self._supervisor).address

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine; None while there is none, or if another process supervises it."""
        return None if self._supervisor is None else self._supervisor.pid

    @property
    def is_ready(self) -> bool:
        """Whether a request would be computed now."""
        started = self._processor is not None and self._requests.engine_up.is_set()
        return started and not (self._draining or self._requests.sleeping or self.errored)

    @property
    def errored(self) -> bool:
        """Whether the engine is gone for good."""
        return self._requests.dead is not None

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    # ---- utilities ----

    async def check_health(self, timeout: float = 5.0) -> None:
        """Ask the engine whether it gets on.

        Raises:
            EngineRestartingError: it is being started again.
            EngineDeadError: it does not answer, or hangs in a step; it will be replaced. Or it is gone for good.
        """
        if self._requests.dead is not None:
            raise self._requests.dead
        supervisor = _started(self._supervisor)
        connection = supervisor.connection
        if connection is None or not self._requests.engine_up.is_set():
            raise restarting()
        try:
            async with asyncio.timeout(timeout):
                healthy = await _gets_on(connection, timeout)
        except TimeoutError:
            healthy = False
        if not healthy:
            supervisor.suspect()
            raise EngineDeadError(f"The engine has not answered or computed anything for {timeout:g} seconds.")

    async def get_stats(self) -> SchedulerStats:
        """The scheduler's gauges and counters, as of now."""
        stats = await self._call("stats")
        assert isinstance(stats, SchedulerStats)
        self.metrics.engine_told(stats)
        return stats

    async def block_map(self) -> bytes:
        """One byte a KV block: 0 free, 1 free with cached contents, 2 held by one sequence, 3 shared."""
        blocks = await self._call("block_map")
        assert isinstance(blocks, bytes)
        return blocks

    async def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes; False, and nothing done, while requests hold blocks."""
        return bool(await self._call("reset_prefix_cache"))

    async def sleep(self, level: int = 1) -> None:
        """Give back the memory of weights and KV cache until `wake_up`; requests wait meanwhile, and are then
        computed again. The weights come from the checkpoint again, so that all levels are the same."""
        await self._call("sleep")
        self._requests.sleeping = True

    async def wake_up(self) -> None:
        """Load the weights again after `sleep`."""
        await self._call("wake_up")
        self._requests.sleeping = False

    async def is_sleeping(self) -> bool:
        """Whether the engine has given its memory back."""
        self._requests.sleeping = bool(await self._call("is_sleeping"))
        return self._requests.sleeping

    # ---- requests ----

    async def _check_open(self, wait_for_restart: bool | float) -> None:
        """Whether a request may come in; see `generate`."""
        if self._draining:
            raise EngineDeadError("The engine is being shut down and takes no more requests.")
        if self._processor is None:
            await self.start()
        if wait_for_restart is not True and not self._requests.engine_up.is_set():
            try:
                await asyncio.wait_for(self._requests.engine_up.wait(), wait_for_restart)
            except TimeoutError:
                raise restarting() from None
        if self._requests.dead is not None:
            raise self._requests.dead

    async def _process(self, request: RequestInput) -> ProcessedRequest:
        structured = isinstance(request.params, SamplingParams) and request.params.structured_outputs is not None
        if structured or _is_large(request.prompt):
            return await asyncio.to_thread(self.processor.process, request)
        return self.processor.process(request)

    async def _call(self, utility: str) -> Answer:
        """
        Raises:
            EngineError: the utility failed.
            EngineDeadError: the engine is gone, or went away before it answered.
        """
        await self.start()
        await self._requests.engine_up.wait()
        if self._requests.dead is not None:
            raise self._requests.dead
        return await self._requests.connection().call(utility)


def _load_tokenizer(args: EngineArgs) -> tuple[Tokenizer, Mapping[str, Any]]:
    """The tokenizer, and the generation_config.json to go by."""
    from interleaf.frontend.generation_config import generation_config
    from interleaf.frontend.tokenizer import load_tokenizer
    from interleaf.loader.checkpoint import open_checkpoint

    with open_checkpoint(args.model, args.revision) as checkpoint:
        return load_tokenizer(args.tokenizer or checkpoint), generation_config(args, checkpoint.generation_config)


async def _gets_on(connection: Connection, patience: float) -> bool:
    """Whether the engine answers, and is not stuck in a step."""
    pong = await connection.ping()
    if pong.step_seconds < patience:
        return True
    begin = time.monotonic()
    await asyncio.sleep(HEALTH_SAMPLE_SECONDS)
    return not computes_nothing(pong, await connection.ping(), time.monotonic() - begin)


def _is_large(prompt: Prompt) -> bool:
    text = prompt.get("prompt") if isinstance(prompt, Mapping) else prompt
    tokens = prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
    if tokens is not None:
        return isinstance(tokens, list) and len(tokens) > INLINE_TOKENS
    if isinstance(text, list):
        return len(text) > INLINE_TOKENS
    return isinstance(text, str) and len(text) > INLINE_CHARACTERS


def _with_salt(prompt: Prompt, cache_salt: str | None) -> Prompt:
    if cache_salt is None:
        return prompt
    if isinstance(prompt, str):
        return PromptDict(prompt=prompt, cache_salt=cache_salt)
    if isinstance(prompt, Mapping):
        return PromptDict(**{**prompt, "cache_salt": cache_salt})
    return PromptDict(prompt_token_ids=prompt, cache_salt=cache_salt)


def _started(part: T | None) -> T:
    if part is None:
        raise EngineDeadError("The engine has not been started: await start() first.")
    return part


AsyncLLM = AsyncEngine
"""Its name in vLLM."""
