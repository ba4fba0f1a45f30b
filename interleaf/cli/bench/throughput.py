"""`interleaf bench throughput`: many requests, all at once or as a trace times them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interleaf.cli.bench import report, workloads
from interleaf.cli.flags import add_engine_flags, engine_options
from interleaf.params import SamplingParams

if TYPE_CHECKING:
    from interleaf.llm import LLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", choices=["fixed", "sharegpt", "trace"], default="fixed")
    parser.add_argument("--num-prompts", type=int, default=64, help="of a trace: at most (default: 64)")
    parser.add_argument("--input-len", type=int, help="tokens in a prompt of the fixed workload (default: 128)")
    parser.add_argument("--output-len", type=int, help="tokens in an answer of the fixed workload (default: 64)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="CSV or .jsonl with lengths, one request a row")
    parser.add_argument("--realtime", action="store_true", help="send the trace's requests when it says")
    parser.add_argument("--temperature", type=float, default=0.0, help="of sampling (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, prompts and sampling (default: 0)")
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the result there as well")
    parser.set_defaults(usage_error=parser.error)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    _check_usage(args)
    shapes = _shapes(args)
    from interleaf.llm import LLM

    with LLM(**engine_options(args)) as llm:
        fitting = workloads.fitting(shapes, llm.config.scheduler.max_model_len)
        measured = measure(llm, fitting, args.temperature, args.seed, args.realtime)
        environment = report.environment(llm)
    figures = measured.figures()
    workload = {"workload": args.workload, "requests": len(fitting), "left_out": len(shapes) - len(fitting)}
    report.print_table(f"Throughput of {environment['model']}, workload {args.workload}", _rows(figures, workload))
    if args.output_json:
        report.write_json(args.output_json, {"environment": environment, **workload, **figures})
    return 0


def _check_usage(args: argparse.Namespace) -> None:
    if args.num_prompts < 1:
        args.usage_error("--num-prompts must be at least 1")
    for name, value in (("input", args.input_len), ("output", args.output_len)):
        if value is not None and (args.workload != "fixed" or value < 1):
            args.usage_error(f"--{name}-len is for the fixed workload, and at least 1")
    if (args.workload == "trace") != (args.trace is not None):
        args.usage_error("--workload trace and --trace FILE need each other")
    if args.realtime and args.trace is None:
        args.usage_error("--realtime needs --trace")


def _shapes(args: argparse.Namespace) -> list[workloads.Shape]:
    if args.workload == "sharegpt":
        return workloads.sharegpt(args.num_prompts, args.seed)
    if args.workload == "trace":
        return workloads.trace(args.trace, args.num_prompts)
    return workloads.fixed(args.num_prompts, args.input_len or 128, args.output_len or 64)


@dataclass(slots=True)
class Measurement:
    """What one run of a workload took.

    Fields:
        held_slots, used_slots: token slots in the blocks that requests hold, and those of them that
            hold a token; both summed over steps.
        engine_times: seconds in the engine's steps, by part.
    """

    block_size: int
    seconds: float = 0.0
    idle_seconds: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    num_steps: int = 0
    held_slots: int = 0
    used_slots: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    engine_times: Mapping[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """Derived figures, by the names that they have in the JSON file."""
        busy = self.seconds - self.idle_seconds
        times = {**self.engine_times, "frontend": max(0.0, busy - sum(self.engine_times.values()))}
        return {
            "seconds": self.seconds,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "total_tokens_per_second": (self.input_tokens + self.output_tokens) / self.seconds,
            "output_tokens_per_second": self.output_tokens / self.seconds,
            "steps": self.num_steps,
            "milliseconds_per_step": 1000.0 * busy / max(self.num_steps, 1),
            "kv_waste": 1.0 - self.used_slots / self.held_slots if self.held_slots else 0.0,
            "preemptions": self.preemptions,
            "prefix_hit_rate": self.prefix_hits / self.prefix_queries if self.prefix_queries else 0.0,
            "draft_tokens": self.draft_tokens,
            "draft_acceptance_rate": self.accepted_tokens / self.draft_tokens if self.draft_tokens else 0.0,
            "time_shares": {name: seconds / sum(times.values()) for name, seconds in times.items()},
        }


def measure(
    llm: LLM, shapes: list[workloads.Shape], temperature: float, seed: int, realtime: bool = False
) -> Measurement:
    """Run a workload to its end."""
    tokenizer = llm.get_tokenizer()
    avoid = {*tokenizer.all_special_ids, tokenizer.eos_token_id or 0}
    vocab_size = min(llm.config.model.vocab_size, len(tokenizer))
    prompts = workloads.random_prompts(shapes, vocab_size, avoid, seed)
    params = [SamplingParams(temperature=temperature, ignore_eos=True, max_tokens=one.output_tokens) for one in shapes]
    arrivals = [shape.arrival if realtime else 0.0 for shape in shapes]
    before, times_before = llm.client.stats(), _engine_times(llm)
    result = Measurement(llm.config.cache.block_size)
    request_ids = _serve(llm, prompts, params, arrivals, result)
    after = llm.client.stats()
    outputs = [output for request_id in request_ids for output in llm.collect(request_id)]
    result.input_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    result.output_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    result.preemptions = after.num_preemptions - before.num_preemptions
    result.prefix_queries = after.prefix_cache_queries - before.prefix_cache_queries
    result.prefix_hits = after.prefix_cache_hits - before.prefix_cache_hits
    result.draft_tokens = after.num_draft_tokens - before.num_draft_tokens
    result.accepted_tokens = after.num_accepted_tokens - before.num_accepted_tokens
    result.engine_times = {name: value - times_before[name] for name, value in _engine_times(llm).items()}
    return result


def _serve(
    llm: LLM, prompts: list[list[int]], params: list[SamplingParams], arrivals: list[float], result: Measurement
) -> list[str]:
    """Send requests when they are due, and step until all are done; returns their ids."""
    order = sorted(range(len(prompts)), key=arrivals.__getitem__)
    request_ids: list[str] = []
    start = time.monotonic()
    while len(request_ids) < len(order) or llm.has_unfinished():
        now = time.monotonic() - start
        due = [index for index in order[len(request_ids) :] if arrivals[index] <= now]
        if due:
            request_ids += llm.enqueue([prompts[index] for index in due], [params[index] for index in due])
        if not llm.has_unfinished():
            wait = arrivals[order[len(request_ids)]] - now
            time.sleep(wait)
            result.idle_seconds += wait
            continue
        llm.step()
        result.num_steps += 1
        _note_blocks(llm, result)
    result.seconds = time.monotonic() - start
    return request_ids


def _note_blocks(llm: LLM, result: Measurement) -> None:
    stats = llm.client.stats()
    result.held_slots += (stats.num_blocks - stats.num_free_blocks) * result.block_size
    result.used_slots += stats.num_used_token_slots


def _engine_times(llm: LLM) -> dict[str, float]:
    """Seconds since the engine started, by what they went to."""
    times = llm.client.step_times()
    return {
        "scheduling": times.schedule + times.update,
        "batch bookkeeping": times.execute - times.kernels,
        "kernels": times.kernels,
    }


def _rows(figures: Mapping[str, Any], workload: Mapping[str, Any]) -> dict[str, str]:
    rows = {
        "requests": f"{workload['requests']:,}",
        "tokens in / out": f"{figures['input_tokens']:,} / {figures['output_tokens']:,}",
        "time": f"{figures['seconds']:.2f} s",
        "total tokens a second": f"{figures['total_tokens_per_second']:,.1f}",
        "output tokens a second": f"{figures['output_tokens_per_second']:,.1f}",
        "steps": f"{figures['steps']:,}",
        "time of a step": f"{figures['milliseconds_per_step']:.2f} ms",
        "KV waste": f"{figures['kv_waste']:.2%}",
        "preemptions": f"{figures['preemptions']:,}",
        "prefix cache hits": f"{figures['prefix_hit_rate']:.1%}",
    }
    if figures["draft_tokens"]:
        accepted = f"{figures['draft_acceptance_rate']:.1%} of {figures['draft_tokens']:,}"
        rows |= {"draft tokens accepted": accepted}
    if workload["left_out"]:
        rows["left out (longer than the context)"] = f"{workload['left_out']:,}"
    return rows | {f"time in {name}": f"{share:.1%}" for name, share in figures["time_shares"].items()}
