"""Share of a step that is spent outside of native code, and where: `python benchmarks/bench_step.py`.

A step is timed from one `Worker.execute` to the next, less what native code took in between (as it measures it
itself). Steps that the worker does as one have the mean of their times. Two kinds are told apart: decode steps, in
which each sequence computes one token, and mixed ones, which also compute a part of a prompt. Printed are medians over
the steps of a run, for several batch sizes and quantizations, of an `LLM` in this process and of the engine's process
behind an `AsyncEngine`.

With `--parts`, a stopwatch on the functions in `PARTS` tells where the time goes; it costs some time itself, so that
the shares are printed without it.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interleaf import LLM, SamplingParams
from interleaf.engine import process
from interleaf.frontend.async_engine import AsyncEngine
from interleaf.frontend.supervisor import SupervisorOptions
from interleaf.messages import SchedulerOutput, StepOutput
from interleaf.worker.worker import Worker

MODULE = "benchmarks.bench_step"
RECORD_VARIABLE = "BENCH_STEP_RECORD"
"""Environment variable of an engine's process: the file to write its steps to."""
PARTS_VARIABLE = "BENCH_STEP_PARTS"
PARTS = {
    "receive": ["interleaf.engine.process:EngineLoop.receive"],
    "schedule": ["interleaf.engine.core:EngineCore.schedule"],
    "prepare": [
        "interleaf.worker.runner:Runner._apply",
        "interleaf.worker.step:Step.lay_out",
        "interleaf.worker.step:Step.samples",
    ],
    "start and stop": [
        "interleaf.ops.cpu:CpuGraph.run",
        "interleaf.ops.cpu:CpuDecoding.run",
        "interleaf.ops.cpu:CpuOps.sample",
    ],
    "sample": ["interleaf.worker.runner:Runner._decode", "interleaf.worker.runner:Runner._sample"],
    "execute": ["interleaf.worker.runner:Runner.execute", "interleaf.engine.core:EngineCore.execute"],
    "update": ["interleaf.engine.core:EngineCore.update"],
    "step": ["interleaf.engine.core:EngineCore.step"],
    "output": ["interleaf.frontend.output:OutputProcessor.process"],
    "send": ["interleaf.engine.process:EngineLoop.record", "interleaf.engine.process:EngineLoop.send"],
}
"""Time in these functions, and not in others of them that they call."""
REST = "rest"
CHUNK = 64
"""Prompt tokens a step in mixed steps."""


@dataclass(slots=True)
class Step:
    """One step. All times in seconds; `parts` are shares of what was outside of native code."""

    num_sequences: int
    num_tokens: int
    wall: float
    native: float
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def outside(self) -> float:
        return self.wall - self.native


class Stopwatch:
    """Where time goes among the functions that it watches."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*PARTS, REST), 0.0)
        self._stack = [REST]
        self._last = time.perf_counter()

    def watch(self) -> None:
        """Wrap all functions of `PARTS`."""
        for part, places in PARTS.items():
            for place in places:
                module, _, name = place.partition(":")
                owner, method = name.split(".")
                target = getattr(importlib.import_module(module), owner)
                setattr(target, method, self._wrapped(part, getattr(target, method)))

    def turn(self) -> None:
        """Book the time until now."""
        now = time.perf_counter()
        self.seconds[self._stack[-1]] += now - self._last
        self._last = now

    def _wrapped(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.turn()
            self._stack.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.turn()
                self._stack.pop()

        return watched


class Recorder:
    """Notes each step of the engines of this process.

    Args:
        stopwatch: that watches already; None for steps without parts.
    """

    def __init__(self, stopwatch: Stopwatch | None = None) -> None:
        self.steps: list[Step] = []
        self._stopwatch = stopwatch
        self._begin: tuple[float, float, dict[str, float], SchedulerOutput] | None = None
        self._num_steps = 1
        inner = Worker.execute

        def execute(worker: Worker, scheduled: SchedulerOutput) -> StepOutput:
            self._note(worker, scheduled)
            output = inner(worker, scheduled)
            self._num_steps = output.num_decode_steps
            return output

        Worker.execute = execute  # type: ignore[method-assign]

    def _note(self, worker: Worker, scheduled: SchedulerOutput) -> None:
        now, native, seconds = time.perf_counter(), worker.kernel_seconds, {}
        if self._stopwatch is not None:
            self._stopwatch.turn()
            seconds = dict(self._stopwatch.seconds)
        if self._begin is not None:
            begin, native_before, seconds_before, step = self._begin
            steps = self._num_steps
            parts = {part: (seconds[part] - seconds_before[part]) / steps for part in seconds}
            wall, in_native = (now - begin) / steps, (native - native_before) / steps
            if parts:
                parts["start and stop"] -= in_native
            num_sequences, num_tokens = len(step.num_scheduled_tokens), step.total_num_scheduled_tokens
            self.steps += [Step(num_sequences, num_tokens, wall, in_native, parts)] * steps
        self._begin = now, native, seconds, scheduled


def prompts_of(batch_size: int, mixed: bool, num_tokens: int) -> tuple[list[dict[str, list[int]]], list[int]]:
    """Prompts that run side by side, and how long each runs; with `mixed`, a long prompt is computed beside them."""
    rng = random.Random(batch_size)
    prompts = [{"prompt_token_ids": rng.choices(range(1000, 40000), k=16)} for _ in range(batch_size)]
    lengths = [num_tokens] * batch_size
    if mixed:
        prompts.append({"prompt_token_ids": rng.choices(range(1000, 40000), k=24 * CHUNK)})
        lengths.append(1)
    return prompts, lengths


def params_of(lengths: list[int], temperature: float) -> list[SamplingParams]:
    return [
        SamplingParams(temperature=temperature, seed=seed, ignore_eos=True, max_tokens=count)
        for seed, count in enumerate(lengths)
    ]


def options(args: argparse.Namespace, quantization: str) -> dict[str, Any]:
    return {
        "model": args.model,
        "quantization": None if quantization == "bf16" else quantization,
        "enable_prefix_caching": False,
        "long_prefill_token_threshold": CHUNK,
        "max_model_len": 2048,
    }


def offline(args: argparse.Namespace, quantization: str, recorder: Recorder) -> dict[str, list[Step]]:
    """Steps of an `LLM`, by what was run."""
    found = {}
    with LLM(**options(args, quantization)) as llm:
        for name, prompts, lengths in workloads(args):
            recorder.steps.clear()
            llm.generate(prompts, params_of(lengths, args.temperature), use_tqdm=False)
            found[name] = kind_of_steps(name, recorder.steps)
    return found


async def served(args: argparse.Namespace, quantization: str, parts: bool) -> dict[str, list[Step]]:
    """Steps of an engine's process, by what was run."""
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "steps.json"
        os.environ |= {RECORD_VARIABLE: str(record), PARTS_VARIABLE: "1" if parts else ""}
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
        found = {}
        async with AsyncEngine(
            supervision=SupervisorOptions(engine_module=MODULE), **options(args, quantization)
        ) as engine:
            for _, prompts, lengths in workloads(args):
                params = params_of(lengths, args.temperature)
                await asyncio.gather(*(last_output(engine, *one) for one in zip(prompts, params, strict=True)))
        steps = [Step(**one) for one in json.loads(record.read_text())]
        for name, _, _ in workloads(args):
            found[name] = kind_of_steps(name, steps)
    return found


async def last_output(engine: AsyncEngine, prompt: Any, params: SamplingParams) -> None:
    async for _ in engine.generate(prompt, params):
        pass


def workloads(args: argparse.Namespace) -> list[tuple[str, Any, list[int]]]:
    return [
        (f"{kind} {batch_size}", *prompts_of(batch_size, kind == "mixed", args.tokens))
        for kind in ("decode", "mixed")
        for batch_size in args.batch_sizes
    ]


def kind_of_steps(name: str, steps: list[Step]) -> list[Step]:
    """Those of the workload of that name."""
    kind, batch_size = name.split()
    extra = CHUNK if kind == "mixed" else 0
    count = int(batch_size)
    return [s for s in steps if s.num_tokens == count + extra and s.num_sequences == count + (extra > 0)]


def report(place: str, quantization: str, found: dict[str, list[Step]]) -> None:
    for name, steps in found.items():
        wall = statistics.median(step.wall for step in steps)
        outside = statistics.median(step.outside for step in steps)
        line = f"{place:8} {quantization:5} {name:10} step {1e3 * wall:7.2f} ms, outside {1e6 * outside:6.0f} us"
        if steps[0].parts:
            medians = {part: statistics.median(step.parts[part] for step in steps) for part in steps[0].parts}
            line += " = " + ", ".join(f"{part} {1e6 * value:.0f}" for part, value in medians.items() if value > 5e-7)
        else:
            line += f", {outside / wall:6.1%}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--quantizations", nargs="+", default=["bf16", "int8", "int4"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--places", nargs="+", default=["offline", "served"], choices=["offline", "served"])
    parser.add_argument("--tokens", type=int, default=64, help="that each sequence gets")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--parts", action="store_true", help="tell where the time goes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is None:
        # One process for each, as functions are wrapped once and for all.
        for place in args.places:
            for quantization in args.quantizations:
                subprocess.run(
                    [sys.executable, "-m", MODULE, *sys.argv[1:], "--one", f"{place} {quantization}"], check=True
                )
        return
    place, quantization = args.one.split()
    if place == "offline":
        report(place, quantization, offline(args, quantization, recorder_of(args.parts)))
    else:
        report(place, quantization, asyncio.run(served(args, quantization, args.parts)))


def recorder_of(parts: bool) -> Recorder:
    stopwatch = Stopwatch() if parts else None
    if stopwatch is not None:
        stopwatch.watch()
    return Recorder(stopwatch)


def serve_recorded(path: str) -> int:
    """Be the engine's process, and write down its steps at its end."""
    recorder = recorder_of(bool(os.environ.get(PARTS_VARIABLE)))
    status = process.main()
    fields = Step.__slots__
    Path(path).write_text(json.dumps([{name: getattr(step, name) for name in fields} for step in recorder.steps]))
    return status


if __name__ == "__main__":
    if RECORD_VARIABLE in os.environ:
        sys.exit(serve_recorded(os.environ[RECORD_VARIABLE]))
    main()
