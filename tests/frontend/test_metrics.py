"""What Prometheus reads: names, labels, sums, and counters that never fall."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from interleaf.frontend.metrics import HELP, OLDER_NAMES, EngineMetrics
from interleaf.messages import SchedulerStats
from interleaf.observe import RequestStatistics
from interleaf.outputs import RequestMetrics
from interleaf.speculative_config import SpeculativeConfig
from tests.fake_engine import engine_config

SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
LABELS = {"model_name": "served", "engine": "0"}


def samples(metrics: EngineMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, further labels) -> value, read as Prometheus does."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            further = tuple(sorted((key, value) for key, value in sample.labels.items() if key not in LABELS))
            if sample.name.startswith("vllm:") and sample.name != "vllm:cache_config_info":
                assert {key: sample.labels[key] for key in LABELS} == LABELS
            found[sample.name, further] = sample.value
    return found


def test_every_name_of_vllm_is_there() -> None:
    metrics = EngineMetrics(RequestStatistics, "served")
    config = replace(engine_config(), speculative=SpeculativeConfig("ngram", 3))
    metrics.engine_started(config, SchedulerStats())
    text = metrics.render().decode()
    for name in [*HELP, *OLDER_NAMES.values()]:
        assert f"# HELP {name}" in text, name
    assert "process_resident_memory_bytes" in text


DASHBOARD_SERIES = """
e2e_request_latency_seconds_bucket e2e_request_latency_seconds_count e2e_request_latency_seconds_sum
generation_tokens_total prompt_tokens_total num_preemptions_total request_success_total
inter_token_latency_seconds_bucket inter_token_latency_seconds_count inter_token_latency_seconds_sum
time_per_output_token_seconds_bucket time_per_output_token_seconds_count time_per_output_token_seconds_sum
request_time_per_output_token_seconds_bucket iteration_tokens_total_bucket
time_to_first_token_seconds_bucket time_to_first_token_seconds_count time_to_first_token_seconds_sum
num_requests_running num_requests_waiting num_requests_swapped num_requests_waiting_by_reason
gpu_cache_usage_perc kv_cache_usage_perc cpu_cache_usage_perc cache_config_info
gpu_prefix_cache_hits_total gpu_prefix_cache_queries_total prefix_cache_hits_total prefix_cache_queries_total
request_prompt_tokens_bucket request_generation_tokens_bucket request_max_num_generation_tokens_sum
request_queue_time_seconds_sum request_prefill_time_seconds_sum request_decode_time_seconds_sum
request_inference_time_seconds_bucket request_params_n_bucket request_params_max_tokens_bucket
request_prefill_kv_computed_tokens_bucket prompt_tokens_cached_total prompt_tokens_by_source_total
spec_decode_num_drafts_total spec_decode_num_draft_tokens_total spec_decode_num_accepted_tokens_total
spec_decode_num_accepted_tokens_per_pos_total engine_sleep_state
"""
"""What the dashboards that vLLM comes with ask for, and its release notes tell of."""


def test_every_series_that_dashboards_ask_for_is_there() -> None:
    metrics = EngineMetrics(RequestStatistics, "served")
    metrics.engine_started(replace(engine_config(), speculative=SpeculativeConfig("ngram", 3)), SchedulerStats())
    found = {name for name, _ in samples(metrics)}
    assert {f"vllm:{name}" for name in DASHBOARD_SERIES.split()} <= found


def test_where_prompt_tokens_came_from() -> None:
    statistics = RequestStatistics()
    times = RequestMetrics(arrival_time=1.0, finished_time=2.0)
    for cached in (0, 16):
        statistics.note_end(
            times, "stop", num_prompt_tokens=20, num_cached_tokens=cached, generated=[1], max_tokens=None
        )
    found = samples(EngineMetrics(lambda: statistics, "served"))
    assert found["vllm:prompt_tokens_cached_total", ()] == 16
    for source, count in {"local_compute": 24, "local_cache_hit": 16, "external_kv_transfer": 0}.items():
        assert found["vllm:prompt_tokens_by_source_total", (("source", source),)] == count


def test_requests_that_bring_tokens_in_the_same_step_count_each() -> None:
    statistics = RequestStatistics()
    times = [RequestMetrics(arrival_time=100.0 - i) for i in range(3)]
    statistics.note_tokens([(times[0], 1), (times[1], 1)], 101.0)
    statistics.note_tokens([(one, 2) for one in times], 101.5)
    found = samples(EngineMetrics(lambda: statistics, "served"))
    assert found["vllm:generation_tokens_total", ()] == 8
    for name, count, total in (("time_to_first_token", 3, 1.0 + 2.0 + 3.5), ("inter_token_latency", 4, 1.0)):
        assert found[f"vllm:{name}_seconds_count", ()] == count
        assert found[f"vllm:{name}_seconds_sum", ()] == total


def test_what_requests_did_is_summed_up() -> None:
    statistics = RequestStatistics()
    metrics = EngineMetrics(lambda: statistics, "served")
    times = RequestMetrics(arrival_time=100.0, scheduled_time=100.25, finished_time=103.0)
    statistics.note_tokens([(times, 1)], 101.0)
    statistics.note_tokens([(times, 2)], 101.5)
    statistics.note_tokens([(times, 1)], 102.5)
    statistics.note_end(times, "stop", num_prompt_tokens=7, num_cached_tokens=5, generated=[1, 3], max_tokens=16)
    found = samples(metrics)
    sums = {
        "time_to_first_token_seconds": 1.0,
        "inter_token_latency_seconds": 1.5,
        "time_per_output_token_seconds": 1.5,
        "e2e_request_latency_seconds": 3.0,
        "request_queue_time_seconds": 0.25,
        "request_prefill_time_seconds": 0.75,
        "request_decode_time_seconds": 1.5,
        "request_inference_time_seconds": 2.25,
        "request_prompt_tokens": 7.0,
        "request_prefill_kv_computed_tokens": 2.0,
        "request_generation_tokens": 4.0,
        "request_max_num_generation_tokens": 3.0,
        "request_time_per_output_token_seconds": 0.75,
        "request_params_n": 2.0,
        "request_params_max_tokens": 16.0,
    }
    for name, expected in sums.items():
        assert found[f"vllm:{name}_sum", ()] == expected, name
    assert found["vllm:inter_token_latency_seconds_count", ()] == 3
    assert found["vllm:inter_token_latency_seconds_bucket", (("le", "0.5"),)] == 2
    assert found["vllm:inter_token_latency_seconds_bucket", (("le", "+Inf"),)] == 3
    assert found["vllm:request_success_total", (("finished_reason", "stop"),)] == 1
    assert found["vllm:generation_tokens_total", ()] == 4


def test_a_request_that_never_ran_has_no_times_of_computing() -> None:
    statistics = RequestStatistics()
    times = RequestMetrics(arrival_time=100.0, finished_time=103.0)
    statistics.note_end(times, "abort", num_prompt_tokens=7, generated=[0], max_tokens=None)
    found = samples(EngineMetrics(lambda: statistics, "served"))
    assert found["vllm:e2e_request_latency_seconds_count", ()] == 1
    assert found["vllm:request_prefill_time_seconds_count", ()] == 0


def test_counters_go_on_where_a_dead_engine_left_them_and_gauges_do_not() -> None:
    metrics = EngineMetrics(RequestStatistics, "served")
    metrics.engine_started(engine_config(), SchedulerStats())
    stats = SchedulerStats(num_running=2, num_blocks=4, num_free_blocks=1, prefix_cache_hits=5, num_preemptions=1)
    metrics.engine_told(stats)
    found = samples(metrics)
    assert found["vllm:num_requests_running", ()] == 2
    assert found["vllm:kv_cache_usage_perc", ()] == found["vllm:gpu_cache_usage_perc", ()] == 0.75
    metrics.engine_died()
    found = samples(metrics)
    assert found["vllm:num_requests_running", ()] == 0 and found["vllm:kv_cache_usage_perc", ()] == 0
    assert found["vllm:prefix_cache_hits_total", ()] == 5
    before = stats.only_counters()
    before.num_restarts += 1
    metrics.engine_started(engine_config(), SchedulerStats(num_running=1, prefix_cache_hits=3).behind(before))
    found = samples(metrics)
    assert found["vllm:num_requests_running", ()] == 1
    assert found["vllm:prefix_cache_hits_total", ()] == found["vllm:gpu_prefix_cache_hits_total", ()] == 8
    assert found["vllm:num_preemptions_total", ()] == 1
    assert found["interleaf:engine_restarts_total", ()] == 1


def test_drafts_are_counted_by_position_and_only_where_there_are_any() -> None:
    metrics = EngineMetrics(RequestStatistics, "served")
    metrics.engine_started(engine_config(), SchedulerStats())
    assert "spec_decode" not in metrics.render().decode()
    config = replace(engine_config(), speculative=SpeculativeConfig("ngram", 3))
    drafts = SchedulerStats(num_drafts=4, num_draft_tokens=9, num_accepted_tokens=5, num_accepted_tokens_per_pos=[3, 2])
    for deaths in (1, 2):
        metrics.engine_started(config, SchedulerStats())
        metrics.engine_told(drafts if deaths == 1 else drafts.behind(drafts.only_counters()))
        found = samples(metrics)
        assert found["vllm:spec_decode_num_drafts_total", ()] == 4 * deaths
        assert found["vllm:spec_decode_num_draft_tokens_total", ()] == 9 * deaths
        assert found["vllm:spec_decode_num_accepted_tokens_total", ()] == 5 * deaths
        for position, count in (("0", 3), ("1", 2), ("2", 0)):
            name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
            assert found[name, (("position", position),)] == count * deaths
        metrics.engine_died()


def test_sleep_shows() -> None:
    metrics = EngineMetrics(RequestStatistics, "served")
    for sleeping in (False, True):
        metrics.engine_told(SchedulerStats(sleeping=sleeping))
        found = samples(metrics)
        states = {state: found["vllm:engine_sleep_state", (("sleep_state", state),)] for state in SLEEP_STATES}
        assert states == {"awake": not sleeping, "weights_offloaded": 0, "discard_all": sleeping}


def test_two_engines_do_not_share_a_registry() -> None:
    one, two = EngineMetrics(RequestStatistics, "served"), EngineMetrics(RequestStatistics, "served")
    one.engine_told(SchedulerStats(num_running=3))
    assert samples(one)["vllm:num_requests_running", ()] == 3
    assert samples(two)["vllm:num_requests_running", ()] == 0
