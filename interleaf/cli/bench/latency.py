"""`interleaf bench latency`: one batch at a time, token by token."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interleaf.cli.bench import report, workloads
from interleaf.cli.flags import add_engine_flags, engine_options
from interleaf.params import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from interleaf.llm import LLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, default, least, text in (
        ("--batch-size", 1, 1, "requests at once"),
        ("--input-len", 128, 1, "tokens in a prompt"),
        ("--output-len", 64, 1, "tokens in an answer"),
        ("--iterations", 5, 1, "batches that are measured"),
        ("--warm-up", 1, 0, "batches before them that are not"),
    ):
        parser.add_argument(
            name, type=_at_least(least), default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument("--seed", type=int, default=0, help="of prompts (default: 0)")
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the result there as well")
    add_engine_flags(parser)


def _at_least(least: int) -> Any:
    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return integer


def run(args: argparse.Namespace) -> int:
    from interleaf.llm import LLM

    with LLM(**engine_options(args)) as llm:
        shapes = workloads.fitting(
            workloads.fixed(args.batch_size, args.input_len, args.output_len), llm.config.scheduler.max_model_len
        )
        times = Times()
        for iteration in range(args.warm_up + args.iterations):
            # Prompts that were not seen before: the prefix cache must not help.
            measure(llm, shapes, args.seed + iteration, times if iteration >= args.warm_up else Times())
        environment = report.environment(llm)
    workload = {"batch_size": args.batch_size, "input_len": args.input_len, "output_len": args.output_len}
    figures = times.figures()
    report.print_table(f"Latency of {environment['model']}", _rows(figures, workload))
    if args.output_json:
        report.write_json(args.output_json, {"environment": environment, **workload, **figures})
    return 0


@dataclass(slots=True)
class Times:
    """In seconds: to each request's first token, between its further tokens, and of each whole batch."""

    first_token: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, dict[str, float]]:
        return {
            "time_to_first_token": report.summary(self.first_token),
            "time_per_token": report.summary(self.per_token),
            "batch_time": report.summary(self.batch),
        }


def measure(llm: LLM, shapes: list[workloads.Shape], seed: int, times: Times) -> None:
    """Run one batch and add its times."""
    tokenizer = llm.get_tokenizer()
    avoid = {*tokenizer.all_special_ids, tokenizer.eos_token_id or 0}
    vocab_size = min(llm.config.model.vocab_size, len(tokenizer))
    prompts = workloads.random_prompts(shapes, vocab_size, avoid, seed)
    params = [SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=one.output_tokens) for one in shapes]
    start = time.monotonic()
    request_ids = llm.enqueue(prompts, params, output_kind=RequestOutputKind.DELTA)
    last: dict[str, float] = {}
    while llm.has_unfinished():
        news = llm.step()
        now = time.monotonic()
        for request_id in news.request_outputs:
            if request_id in last:
                times.per_token.append(now - last[request_id])
            else:
                times.first_token.append(now - start)
            last[request_id] = now
    times.batch.append(time.monotonic() - start)
    for request_id in request_ids:
        llm.collect(request_id)


def _rows(figures: Mapping[str, Mapping[str, float]], workload: Mapping[str, int]) -> dict[str, str]:
    rows = {name.replace("_", " "): str(value) for name, value in workload.items()}
    for name, summary in figures.items():
        for measure_name, value in summary.items():
            rows[f"{name.replace('_', ' ')}, {measure_name.removesuffix('_ms')}"] = f"{value:.2f} ms"
    per_token = figures["time_per_token"]["mean_ms"]
    if per_token:
        rows["tokens a second"] = f"{1000.0 * workload['batch_size'] / per_token:.1f}"
    return rows
