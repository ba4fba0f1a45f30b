"""Logging, and metrics under vLLM's names.

Metric values are snapshots: plain frozen objects that a caller may keep, print or serve.
"""

from __future__ import annotations

import bisect
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from interleaf.errors import ConfigError
from interleaf.messages import SchedulerStats

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
LENGTH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
"""Upper bounds in tokens."""


def get_logger(name: str) -> logging.Logger:
    """The logger of a module, given its `__name__`."""
    return logging.getLogger(name)


def configure_logging(default_level: str = "WARNING") -> None:
    """Write this package's log to stderr at the level that INTERLEAF_LOG_LEVEL names.

    For programs (the CLI), not for library use: a library leaves handlers to its host. Calling it
    again changes the level only.

    Raises:
        ConfigError: the variable names no level.
    """
    level = os.environ.get(LOG_LEVEL_VARIABLE, default_level).upper()
    if level not in LOG_LEVELS:
        raise ConfigError(f"{LOG_LEVEL_VARIABLE} must be one of {', '.join(LOG_LEVELS)}, not {level!r}.")
    logger = logging.getLogger("interleaf")
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False


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
    """Counts observations into buckets with fixed upper bounds."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def snapshot(self, name: str, labels: Mapping[str, str]) -> Histogram:
        buckets: dict[str, int] = {}
        total = 0
        for bound, count in zip((*(f"{bound:g}" for bound in self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets[bound] = total
        return Histogram(name, labels, total, self._sum, buckets)


@dataclass(slots=True)
class RequestStatistics:
    """What finished requests looked like, gathered where their output is put together."""

    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0, "error": 0})
    time_to_first_token: HistogramRecorder = field(default_factory=lambda: HistogramRecorder(LATENCY_BUCKETS))
    latency: HistogramRecorder = field(default_factory=lambda: HistogramRecorder(LATENCY_BUCKETS))
    prompt_tokens: HistogramRecorder = field(default_factory=lambda: HistogramRecorder(LENGTH_BUCKETS))
    generation_tokens: HistogramRecorder = field(default_factory=lambda: HistogramRecorder(LENGTH_BUCKETS))

    def snapshot(self, labels: Mapping[str, str]) -> list[Metric]:
        successes: list[Metric] = [
            Counter("vllm:request_success", {**labels, "finished_reason": reason}, count)
            for reason, count in self.finished.items()
        ]
        return [
            *successes,
            self.time_to_first_token.snapshot("vllm:time_to_first_token_seconds", labels),
            self.latency.snapshot("vllm:e2e_request_latency_seconds", labels),
            self.prompt_tokens.snapshot("vllm:request_prompt_tokens", labels),
            self.generation_tokens.snapshot("vllm:request_generation_tokens", labels),
        ]


def scheduler_metrics(stats: SchedulerStats, labels: Mapping[str, str]) -> list[Metric]:
    """The engine's gauges and counters."""
    return [
        Gauge("vllm:num_requests_running", labels, stats.num_running),
        Gauge("vllm:num_requests_waiting", labels, stats.num_waiting),
        Gauge("vllm:kv_cache_usage_perc", labels, stats.kv_cache_usage),
        Counter("vllm:prefix_cache_queries", labels, stats.prefix_cache_queries),
        Counter("vllm:prefix_cache_hits", labels, stats.prefix_cache_hits),
        Counter("vllm:num_preemptions", labels, stats.num_preemptions),
        Counter("vllm:prompt_tokens", labels, stats.num_prompt_tokens),
        Counter("vllm:generation_tokens", labels, stats.num_generation_tokens),
    ]
