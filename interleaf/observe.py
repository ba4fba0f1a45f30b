"""Logging, and metrics under vLLM's names.

Metric values are snapshots: plain frozen objects that a caller may keep, print or serve.
"""

from __future__ import annotations

import bisect
import logging
import os
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self, TypeAlias

import msgspec

from interleaf.errors import ConfigError
from interleaf.messages import SchedulerStats
from interleaf.outputs import RequestMetrics

PACKAGE = "interleaf"
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOG_LEVEL_VARIABLE = "INTERLEAF_LOG_LEVEL"
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

LATENCY_BUCKETS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    10,
    20,
    40,
    80,
    160,
    640,
)
"""Upper bounds in seconds."""
TOKEN_LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
"""Upper bounds in seconds."""
REQUEST_LATENCY_BUCKETS = (
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
    7680,
)
"""Upper bounds in seconds."""
STEP_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds in tokens."""
N_BUCKETS = (1, 2, 5, 10, 20)
"""Upper bounds in sequences of a request."""
LENGTH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
"""Upper bounds in tokens."""


Cells: TypeAlias = "memoryview[float]"
"""Numbers (of format "d") that may lie in shared memory."""


def get_logger(name: str) -> logging.Logger:
    """The logger of a module, given its `__name__`."""
    return logging.getLogger(name)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode({key: _encodable(text) for key, text in line.items()}).decode()


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How a program writes this package's log.

    Fields:
        level: None is what INTERLEAF_LOG_LEVEL says.
        json: an object a line in place of text.
    """

    level: str | None = None
    json: bool = False

    @classmethod
    def current(cls) -> Self:
        """Those of this program, for another process to do the same; the defaults in a host with a log of its own."""
        logger = logging.getLogger(PACKAGE)
        if not logger.handlers:
            return cls()
        as_json = any(isinstance(handler.formatter, JsonFormatter) for handler in logger.handlers)
        return cls(logging.getLevelName(logger.level), as_json)


def configure_logging(settings: LogSettings | None = None, default_level: str = "WARNING") -> None:
    """Write this package's log and Python's warnings to stderr.

    For programs (the CLI), not for library use: a library leaves handlers to its host. Calling it
    again changes level and format.

    Args:
        default_level: where neither the settings nor INTERLEAF_LOG_LEVEL name one.

    Raises:
        ConfigError: the variable names no level.
    """
    settings = settings or LogSettings()
    level = settings.level or os.environ.get(LOG_LEVEL_VARIABLE, default_level).upper()
    if level not in LOG_LEVELS:
        raise ConfigError(f"{LOG_LEVEL_VARIABLE} must be one of {', '.join(LOG_LEVELS)}, not {level!r}.")
    logger = logging.getLogger(PACKAGE)
    logger.setLevel(level)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.propagate = False
    formatter = JsonFormatter() if settings.json else logging.Formatter(TEXT_FORMAT, "%H:%M:%S")
    for handler in logger.handlers:
        handler.setFormatter(formatter)
    logging.captureWarnings(True)
    share_log("py.warnings")


def share_log(name: str) -> None:
    """Write another logger's warnings to this package's log."""
    package, other = logging.getLogger(PACKAGE), logging.getLogger(name)
    other.handlers = list(package.handlers)
    other.propagate = False
    other.setLevel(max(logging.WARNING, package.level))


@dataclass(frozen=True, slots=True)
class Metric:
    """Base of the metric kinds: a name and its labels."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """A count that only grows."""

    value: int


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """A value as it is now."""

    value: float


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    """`buckets[bound]` is how many observations were at most `bound`; the last bound is "+Inf"."""

    count: int
    sum: float
    buckets: Mapping[str, int]


class HistogramRecorder:
    """Counts observations into buckets with fixed upper bounds.

    Args:
        bounds: of the buckets; one more takes what is above.
        cells: where the counts are kept, `len(bounds) + 2` of them: the buckets', and the sum of all values.
    """

    def __init__(self, bounds: Sequence[float], cells: Cells) -> None:
        self._bounds = bounds
        self._cells = cells

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value that was seen once or more often."""
        self._cells[bisect.bisect_left(self._bounds, value)] += times
        self._cells[-1] += value * times

    @property
    def sum(self) -> float:
        """Of all values."""
        return self._cells[-1]

    def snapshot(self, name: str, labels: Mapping[str, str]) -> Histogram:
        buckets: dict[str, int] = {}
        total = 0
        for bound, count in zip((*(f"{bound:g}" for bound in self._bounds), "+Inf"), self._cells[:-1], strict=True):
            total += int(count)
            buckets[bound] = total
        return Histogram(name, labels, total, self._cells[-1], buckets)


FINISH_REASONS = ("stop", "length", "abort", "error")
HISTOGRAMS: Mapping[str, tuple[str, Sequence[float]]] = {
    "iteration_tokens": ("vllm:iteration_tokens_total", STEP_BUCKETS),
    "time_to_first_token": ("vllm:time_to_first_token_seconds", LATENCY_BUCKETS),
    "inter_token_latency": ("vllm:inter_token_latency_seconds", TOKEN_LATENCY_BUCKETS),
    "latency": ("vllm:e2e_request_latency_seconds", REQUEST_LATENCY_BUCKETS),
    "queue_time": ("vllm:request_queue_time_seconds", REQUEST_LATENCY_BUCKETS),
    "prefill_time": ("vllm:request_prefill_time_seconds", REQUEST_LATENCY_BUCKETS),
    "decode_time": ("vllm:request_decode_time_seconds", REQUEST_LATENCY_BUCKETS),
    "inference_time": ("vllm:request_inference_time_seconds", REQUEST_LATENCY_BUCKETS),
    "prompt_tokens": ("vllm:request_prompt_tokens", LENGTH_BUCKETS),
    "computed_tokens": ("vllm:request_prefill_kv_computed_tokens", LENGTH_BUCKETS),
    "generation_tokens": ("vllm:request_generation_tokens", LENGTH_BUCKETS),
    "longest_generation": ("vllm:request_max_num_generation_tokens", LENGTH_BUCKETS),
    "time_per_output_token": ("vllm:request_time_per_output_token_seconds", TOKEN_LATENCY_BUCKETS),
    "params_n": ("vllm:request_params_n", N_BUCKETS),
    "params_max_tokens": ("vllm:request_params_max_tokens", LENGTH_BUCKETS),
}
"""Histogram of `RequestStatistics` -> its name for Prometheus, and its upper bounds."""


class RequestStatistics:
    """What requests looked like, gathered where their output is put together. Times in seconds.

    Args:
        cells: `NUM_CELLS` numbers that hold all of it, so that several processes may have theirs in one
            shared memory; None takes own ones.

    Fields:
        iteration_tokens: computed in a step that had news for this front end.
        queue_time: from a request's arrival until it is scheduled.
        prefill_time: from there to its first token.
        decode_time: from there to its last.
        inference_time: both.
        time_to_first_token, latency: since its arrival.
        inter_token_latency: between the messages that bring its tokens.
        time_per_output_token: of one request's tokens behind its first, on average.
        longest_generation: tokens of a request's longest sequence.
        computed_tokens: of a prompt that were in no cache.
    """

    NUM_CELLS = 2 + len(FINISH_REASONS) + sum(len(bounds) + 2 for _, bounds in HISTOGRAMS.values())

    iteration_tokens: HistogramRecorder
    time_to_first_token: HistogramRecorder
    inter_token_latency: HistogramRecorder
    latency: HistogramRecorder
    queue_time: HistogramRecorder
    prefill_time: HistogramRecorder
    decode_time: HistogramRecorder
    inference_time: HistogramRecorder
    prompt_tokens: HistogramRecorder
    computed_tokens: HistogramRecorder
    generation_tokens: HistogramRecorder
    longest_generation: HistogramRecorder
    time_per_output_token: HistogramRecorder
    params_n: HistogramRecorder
    params_max_tokens: HistogramRecorder

    def __init__(self, cells: Cells | None = None) -> None:
        self._cells = memoryview(bytearray(8 * self.NUM_CELLS)).cast("d") if cells is None else cells
        begin = 2 + len(FINISH_REASONS)
        for field, (_, bounds) in HISTOGRAMS.items():
            end = begin + len(bounds) + 2
            setattr(self, field, HistogramRecorder(bounds, self._cells[begin:end]))
            begin = end

    @classmethod
    def total(cls, rows: Iterable[Cells]) -> Self:
        """What several processes have gathered, taken together."""
        return cls(memoryview(array("d", map(sum, zip(*rows, strict=True))).tobytes()).cast("d"))

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens of requests that were taken in."""
        return int(self._cells[0])

    @property
    def num_generation_tokens(self) -> int:
        """Tokens that requests have brought."""
        return int(self._cells[1])

    @property
    def finished(self) -> dict[str, int]:
        """Ended requests by finish reason."""
        return {reason: int(self._cells[2 + place]) for place, reason in enumerate(FINISH_REASONS)}

    def note_arrival(self, num_prompt_tokens: int) -> None:
        """A request was taken in."""
        self._cells[0] += num_prompt_tokens

    def note_abort(self) -> None:
        """A request was given up, and nothing else is to be told of it."""
        self._cells[2 + FINISH_REASONS.index("abort")] += 1

    def note_tokens(self, brought: Iterable[tuple[RequestMetrics, int]], now: float) -> None:
        """Requests have brought tokens in a step: times and number of tokens, at least one, of each."""
        total = 0
        # Most requests had their last tokens from the same step. Those that are told together count as evenly spread.
        last: dict[tuple[float, int], int] = {}
        for times, num_tokens in brought:
            total += num_tokens
            if times.first_token_time:
                since = times.last_token_time, num_tokens
                last[since] = last.get(since, 0) + 1
            else:
                times.first_token_time = now
                self.time_to_first_token.observe(now - times.arrival_time)
            times.last_token_time = now
        self._cells[1] += total
        for (then, num_tokens), count in last.items():
            self.inter_token_latency.observe((now - then) / num_tokens, num_tokens * count)

    def note_end(
        self,
        times: RequestMetrics,
        finish_reason: str,
        *,
        num_prompt_tokens: int,
        num_cached_tokens: int = 0,
        generated: Sequence[int],
        max_tokens: int | None,
    ) -> None:
        """A request has ended; `generated` tells the tokens of each of its sequences."""
        longest = max(generated)
        self._cells[2 + FINISH_REASONS.index(finish_reason)] += 1
        self.latency.observe(times.finished_time - times.arrival_time)
        if times.first_token_time:
            scheduled = times.scheduled_time or times.arrival_time
            self.queue_time.observe(max(scheduled - times.arrival_time, 0.0))
            self.prefill_time.observe(times.first_token_time - scheduled)
            self.decode_time.observe(times.last_token_time - times.first_token_time)
            self.inference_time.observe(times.last_token_time - scheduled)
            if longest > 1:
                self.time_per_output_token.observe((times.last_token_time - times.first_token_time) / (longest - 1))
        self.prompt_tokens.observe(num_prompt_tokens)
        self.computed_tokens.observe(num_prompt_tokens - num_cached_tokens)
        self.generation_tokens.observe(sum(generated))
        self.longest_generation.observe(longest)
        self.params_n.observe(len(generated))
        if max_tokens is not None:
            self.params_max_tokens.observe(max_tokens)

    def snapshot(self, labels: Mapping[str, str]) -> list[Metric]:
        """Counts of finished requests and of their prompts' tokens, and the histograms."""
        successes: list[Metric] = [
            Counter("vllm:request_success", {**labels, "finished_reason": reason}, count)
            for reason, count in self.finished.items()
        ]
        computed = self.computed_tokens.sum
        cached = self.prompt_tokens.sum - computed
        sources = {"local_compute": computed, "local_cache_hit": cached, "external_kv_transfer": 0}
        return [
            *successes,
            Counter("vllm:prompt_tokens_cached", labels, int(cached)),
            *(
                Counter("vllm:prompt_tokens_by_source", {**labels, "source": source}, int(count))
                for source, count in sources.items()
            ),
            *(getattr(self, field).snapshot(name, labels) for field, (name, _) in HISTOGRAMS.items()),
        ]


def scheduler_metrics(stats: SchedulerStats, labels: Mapping[str, str]) -> list[Metric]:
    """The engine's gauges and counters."""
    return [
        Gauge("vllm:num_requests_running", labels, stats.num_running),
        Gauge("vllm:num_requests_waiting", labels, stats.num_waiting),
        Gauge("vllm:num_requests_waiting_by_reason", {**labels, "reason": "capacity"}, stats.num_waiting),
        Gauge("vllm:num_requests_waiting_by_reason", {**labels, "reason": "deferred"}, 0),
        Gauge("vllm:kv_cache_usage_perc", labels, stats.kv_cache_usage),
        Counter("vllm:prefix_cache_queries", labels, stats.prefix_cache_queries),
        Counter("vllm:prefix_cache_hits", labels, stats.prefix_cache_hits),
        Counter("vllm:num_preemptions", labels, stats.num_preemptions),
        Counter("vllm:prompt_tokens", labels, stats.num_prompt_tokens),
        Counter("vllm:generation_tokens", labels, stats.num_generation_tokens),
    ]


def speculation_metrics(stats: SchedulerStats, num_positions: int, labels: Mapping[str, str]) -> list[Metric]:
    """Counters of drafts; of those at each of `num_positions` positions, also where there were none yet."""
    by_position = stats.num_accepted_tokens_per_pos + [0] * (num_positions - len(stats.num_accepted_tokens_per_pos))
    return [
        Counter("vllm:spec_decode_num_drafts", labels, stats.num_drafts),
        Counter("vllm:spec_decode_num_draft_tokens", labels, stats.num_draft_tokens),
        Counter("vllm:spec_decode_num_accepted_tokens", labels, stats.num_accepted_tokens),
        *(
            Counter("vllm:spec_decode_num_accepted_tokens_per_pos", {**labels, "position": str(position)}, count)
            for position, count in enumerate(by_position)
        ),
    ]
