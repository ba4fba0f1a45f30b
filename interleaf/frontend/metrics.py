"""What Prometheus is shown: the engine's and the requests' numbers under vLLM's names.

Numbers are gathered in plain objects, which costs little per token, and become Prometheus' kinds of
metrics only when somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from interleaf.config import EngineConfig
from interleaf.messages import SchedulerStats
from interleaf.observe import Counter, Gauge, Histogram, RequestStatistics, scheduler_metrics, speculation_metrics
from interleaf.observe import Metric as Snapshot

OLDER_NAMES = {
    "vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc",
    "vllm:prefix_cache_queries": "vllm:gpu_prefix_cache_queries",
    "vllm:prefix_cache_hits": "vllm:gpu_prefix_cache_hits",
    "vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds",
}
"""Name -> the name that dashboards made for earlier versions still read."""

HELP = {
    "vllm:num_requests_running": "Sequences that are being computed.",
    "vllm:num_requests_waiting": "Sequences that wait to be computed.",
    "vllm:num_requests_waiting_by_reason": "Sequences that wait to be computed: for room; nothing else defers any.",
    "vllm:kv_cache_usage_perc": "Share of the KV cache's blocks that live sequences hold; 1 is all.",
    "vllm:prefix_cache_queries": "Tokens that were looked up in the prefix cache.",
    "vllm:prefix_cache_hits": "Tokens that were found in the prefix cache.",
    "vllm:num_preemptions": "Times that a running sequence gave its blocks to others.",
    "vllm:prompt_tokens": "Prompt tokens of requests that were taken in.",
    "vllm:generation_tokens": "Tokens that were generated.",
    "vllm:prompt_tokens_cached": "Prompt tokens of ended requests that were in the prefix cache.",
    "vllm:prompt_tokens_by_source": "Prompt tokens of ended requests: computed, or found in the prefix cache.",
    "vllm:spec_decode_num_drafts": "Times that a sequence's drafts were tried.",
    "vllm:spec_decode_num_draft_tokens": "Tokens of drafts that were tried.",
    "vllm:spec_decode_num_accepted_tokens": "Tokens of drafts that were accepted.",
    "vllm:spec_decode_num_accepted_tokens_per_pos": "Tokens of drafts that were accepted, by their place in the draft.",
    "vllm:request_success": "Requests that have ended, by the reason.",
    "vllm:iteration_tokens_total": "Tokens computed in a step.",
    "vllm:time_to_first_token_seconds": "From a request's arrival to its first token.",
    "vllm:inter_token_latency_seconds": "Between a request's tokens.",
    "vllm:e2e_request_latency_seconds": "From a request's arrival to its end.",
    "vllm:request_queue_time_seconds": "From a request's arrival until it is scheduled.",
    "vllm:request_prefill_time_seconds": "From a request's being scheduled to its first token.",
    "vllm:request_decode_time_seconds": "From a request's first token to its last.",
    "vllm:request_inference_time_seconds": "From a request's being scheduled to its last token.",
    "vllm:request_prompt_tokens": "Prompt tokens of a request.",
    "vllm:request_prefill_kv_computed_tokens": "Prompt tokens of a request that were in no cache.",
    "vllm:engine_sleep_state": "1 for what the engine is: awake, its weights elsewhere, its memory given back.",
    "vllm:num_requests_swapped": "Nothing is ever swapped out: always 0, for dashboards that ask.",
    "vllm:cpu_cache_usage_perc": "There is no second cache to swap to: always 0, for dashboards that ask.",
    "vllm:request_generation_tokens": "Generated tokens of a request.",
    "vllm:request_max_num_generation_tokens": "Generated tokens of a request's longest sequence.",
    "vllm:request_time_per_output_token_seconds": "Time of a request's tokens behind its first, on average.",
    "vllm:request_params_n": "The parameter n of a request.",
    "vllm:request_params_max_tokens": "The parameter max_tokens of a request.",
    "vllm:cache_config_info": "The KV cache's configuration.",
    "interleaf:engine_restarts": "Times that the engine was started again after it had died.",
}


class EngineMetrics(Collector):
    """The metrics of an engine and its front ends, in a registry of their own.

    Args:
        gather: gives the statistics of all requests as of now.
        model_name: what the label of that name says.
    """

    def __init__(self, gather: Callable[[], RequestStatistics], model_name: str) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self.model_name = model_name
        self._gather = gather
        self._config: EngineConfig | None = None
        self._stats = SchedulerStats()

    @property
    def stats(self) -> SchedulerStats:
        """Of the scheduler, as last heard of it."""
        return self._stats

    def engine_started(self, config: EngineConfig, stats: SchedulerStats) -> None:
        """Show this configuration, and these numbers."""
        self._config = config
        self._stats = stats

    def engine_died(self) -> None:
        """Until another is there, the counters are all that there is: they must never fall."""
        self._stats = self._stats.only_counters()

    def engine_told(self, stats: SchedulerStats) -> None:
        """Show these numbers from now on."""
        self._stats = stats

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Prometheus' families, one after the other."""
        labels = {"model_name": self.model_name, "engine": "0"}
        families: dict[str, Metric] = {}
        for snapshot in self._snapshots(labels):
            for name in (snapshot.name, OLDER_NAMES.get(snapshot.name)):
                if name is not None:
                    _add(families, name, HELP[snapshot.name], snapshot)
        yield from families.values()
        if self._config is not None:
            yield _cache_config_info(self._config)

    def _snapshots(self, labels: dict[str, str]) -> Iterable[Snapshot]:
        requests = self._gather()
        yield from scheduler_metrics(
            # The engine counts again what is sent to it again.
            msgspec.structs.replace(
                self._stats,
                num_prompt_tokens=requests.num_prompt_tokens,
                num_generation_tokens=requests.num_generation_tokens,
            ),
            labels,
        )
        if self._config is not None and self._config.speculative is not None:
            yield from speculation_metrics(self._stats, self._config.speculative.num_speculative_tokens, labels)
        yield from requests.snapshot(labels)
        for state, holds in {
            "awake": not self._stats.sleeping,
            "weights_offloaded": False,
            "discard_all": self._stats.sleeping,
        }.items():
            yield Gauge("vllm:engine_sleep_state", {**labels, "sleep_state": state}, float(holds))
        for name in ("vllm:num_requests_swapped", "vllm:cpu_cache_usage_perc"):
            yield Gauge(name, labels, 0.0)
        yield Counter("interleaf:engine_restarts", labels, self._stats.num_restarts)


def _add(families: dict[str, Metric], name: str, help_text: str, snapshot: Snapshot) -> None:
    labels, values = list(snapshot.labels), list(snapshot.labels.values())
    family = families.get(name)
    match snapshot:
        case Counter(value=count):
            counters = family or CounterMetricFamily(name, help_text, labels=labels)
            assert isinstance(counters, CounterMetricFamily)
            counters.add_metric(values, count)
            families[name] = counters
        case Gauge(value=value):
            gauges = family or GaugeMetricFamily(name, help_text, labels=labels)
            assert isinstance(gauges, GaugeMetricFamily)
            gauges.add_metric(values, value)
            families[name] = gauges
        case Histogram():
            histograms = family or HistogramMetricFamily(name, help_text, labels=labels)
            assert isinstance(histograms, HistogramMetricFamily)
            histograms.add_metric(values, [(bound, float(n)) for bound, n in snapshot.buckets.items()], snapshot.sum)
            families[name] = histograms


def _cache_config_info(config: EngineConfig) -> Metric:
    cache = config.cache
    labels = {
        "block_size": str(cache.block_size),
        "num_gpu_blocks": str(cache.num_blocks),
        "num_cpu_blocks": "0",
        "cache_dtype": cache.dtype,
        "enable_prefix_caching": str(cache.enable_prefix_caching),
        "engine": "0",
    }
    family = GaugeMetricFamily("vllm:cache_config_info", HELP["vllm:cache_config_info"], labels=list(labels))
    family.add_metric(list(labels.values()), 1.0)
    return family
