"""Peak memory against weights and KV budget: `python benchmarks/bench_memory.py`.

For each quantization a model is loaded and made to fill its KV cache several times over, once by an `LLM` in a process
of its own and once by an engine's process behind an `AsyncEngine`. Printed are, in MB, what the weights and the cache
may take, and by how much each process went beyond that at its highest: in memory of its own (anonymous pages), and in
all that is resident, which counts pages of the checkpoint's file too, while they are mapped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from interleaf import LLM, SamplingParams
from interleaf.config import engine_args, weight_memory
from interleaf.frontend.async_engine import AsyncEngine
from interleaf.loader.checkpoint import open_checkpoint

MB = 1 << 20
SAMPLE_SECONDS = 0.005


class Watch:
    """Follows the highest memory of a process, in bytes."""

    def __init__(self, pid: int) -> None:
        self.own = self.resident = 0
        self._status = Path(f"/proc/{pid}/status")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, int]:
        self._stopping.set()
        self._thread.join()
        return {"own": self.own, "resident": self.resident}

    def _follow(self) -> None:
        while not self._stopping.wait(SAMPLE_SECONDS):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
            self.own = max(self.own, found.get("RssAnon", 0))
            self.resident = max(self.resident, found.get("VmHWM", 0))


def prompts_of(args: argparse.Namespace) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": [(7 * i + j) % 40000 + 3 for j in range(256)]} for i in range(args.requests)]


def params_of(args: argparse.Namespace) -> SamplingParams:
    return SamplingParams(temperature=1.0, seed=1, max_tokens=args.tokens, ignore_eos=True, logprobs=1)


def options(args: argparse.Namespace, quantization: str) -> dict[str, Any]:
    chosen = None if quantization == "bf16" else quantization
    return {"model": args.model, "quantization": chosen, "kv_cache_memory_bytes": args.kv_cache_megabytes * MB}


def offline(args: argparse.Namespace, quantization: str) -> dict[str, dict[str, int]]:
    watch = Watch(os.getpid())
    with LLM(**options(args, quantization)) as llm:
        llm.generate(prompts_of(args), params_of(args), use_tqdm=False)
        return {"offline": watch.stop()}


async def served(args: argparse.Namespace, quantization: str) -> dict[str, dict[str, int]]:
    front = Watch(os.getpid())
    engine = AsyncEngine(**options(args, quantization))
    starting = asyncio.create_task(engine.start())
    while engine.engine_pid is None:
        await asyncio.sleep(0.001)
    back = Watch(engine.engine_pid)
    await starting
    await asyncio.gather(*(last_output(engine, prompt, params_of(args)) for prompt in prompts_of(args)))
    found = {"engine's process": back.stop(), "front end": front.stop()}
    await engine.shutdown()
    return found


async def last_output(engine: AsyncEngine, prompt: Any, params: SamplingParams) -> None:
    async for _ in engine.generate(prompt, params):
        pass


def weight_bytes(args: argparse.Namespace, quantization: str) -> int:
    """What the engine itself reckons with."""
    given = engine_args(options(args, quantization))
    with open_checkpoint(given.model) as checkpoint:
        return weight_memory(given.dtype, given.quantization, checkpoint.weight_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--quantizations", nargs="+", default=["bf16", "int8", "int4", "gguf"])
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--kv-cache-megabytes", type=int, default=256)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        place, quantization = args.one.split()
        run = offline(args, quantization) if place == "offline" else asyncio.run(served(args, quantization))
        print(json.dumps(run))
        return
    for quantization in args.quantizations:
        for place in ("offline", "served"):
            one = [sys.executable, "-m", "benchmarks.bench_memory", *sys.argv[1:], "--one", f"{place} {quantization}"]
            report = json.loads(subprocess.run(one, check=True, capture_output=True, text=True).stdout)
            for name, peak in report.items():
                allowed = 0 if name == "front end" else args.kv_cache_megabytes * MB + weight_bytes(args, quantization)
                beyond = {kind: (value - allowed) / MB for kind, value in peak.items()}
                print(
                    f"{quantization:5} {name:16} weights and cache {allowed / MB:5.0f} MB, "
                    f"own {beyond['own']:+5.0f} MB, resident {beyond['resident']:+5.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
