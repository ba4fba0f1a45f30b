"""The server under load: `python -m benchmarks.bench_server [--streams 200] [--requests 2000] [MODEL]`.

Three things, all with random prompts and answers of random lengths:

* speed: all requests as streams over HTTP, against `LLM` on the same requests, in turns; the best round of each;
* the front ends' processor time for 1,000 output tokens a second, from the same rounds;
* load: the same with some of the clients hanging up in mid-stream; errors, blocks that are not free behind it, and
  the memory of each process before and after.

The clients are one process beside the server and cost processor time as well, which is told.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interleaf import LLM, SamplingParams
from tests.server.running import Running, metrics, resident_bytes, running, stream

FRONT_END, ENGINE = "interleaf.server.front_end", "interleaf.engine.process"
PATH = "/v1/completions"
TICKS = os.sysconf("SC_CLK_TCK")
FLAGS = ["--disable-access-log", "--no-enable-prefix-caching", "--seed", "0"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; `patience` is how many events its client waits for, None for all."""

    prompt: list[int]
    max_tokens: int
    patience: int | None

    def body(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "max_tokens": self.max_tokens, "ignore_eos": True, "temperature": 0}


def main() -> None:
    args = _arguments()
    work = _work(args)
    flags = [*FLAGS, "--max-num-seqs", str(args.streams), "--api-server-count", str(args.api_server_count)]
    if args.kv_cache_memory_bytes:
        flags += ["--kv-cache-memory-bytes", args.kv_cache_memory_bytes]
    with tempfile.TemporaryDirectory() as directory, running(args.model, Path(directory), *flags) as server:
        if args.rounds:
            _compare_speed(args, server, work)
        if not args.no_load:
            _load(args, server, work)
        errors = server.messages("ERROR", "CRITICAL")
        status = server.stop()
    print(f"errors in the server's log: {len(errors)}; exit status {status}")
    for message in errors[:5]:
        print("  ", message)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--streams", type=int, default=200, help="at once")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--longest-prompt", type=int, default=64)
    parser.add_argument("--longest-answer", type=int, default=64)
    parser.add_argument("--hang-up", type=float, default=0.2, metavar="SHARE")
    parser.add_argument("--api-server-count", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="of the comparison; 0 leaves it out")
    parser.add_argument("--no-load", action="store_true", help="the comparison alone")
    parser.add_argument("--kv-cache-memory-bytes")
    return parser.parse_args()


def _work(args: argparse.Namespace) -> list[Asked]:
    rng = random.Random(0)
    work = []
    for _ in range(args.requests):
        prompt = [rng.randrange(3, 300) for _ in range(rng.randint(1, args.longest_prompt))]
        length = rng.randint(1, args.longest_answer)
        work.append(Asked(prompt, length, rng.randrange(length) if rng.random() < args.hang_up else None))
    return work


def _compare_speed(args: argparse.Namespace, server: Running, work: list[Asked]) -> None:
    tokens = sum(one.max_tokens for one in work)
    http, offline, front_end, client = [], [], [], []
    options: dict[str, Any] = {"max_num_seqs": args.streams, "enable_prefix_caching": False}
    if args.kv_cache_memory_bytes:
        options["kv_cache_memory_bytes"] = args.kv_cache_memory_bytes
    with LLM(args.model, **options) as llm:
        for _ in range(args.rounds):
            before, own = _front_end_seconds(server), _own_seconds()
            seconds, failed = asyncio.run(_run(server, work, args.streams, patient=True))
            assert not failed, failed[:3]
            http.append(tokens / seconds)
            # A core's share at S tokens a second, for each 1,000 of them: core seconds for 1,000 tokens.
            front_end.append((_front_end_seconds(server) - before) * 1000 / tokens)
            client.append((_own_seconds() - own) / seconds)
            begin = time.monotonic()
            params = [SamplingParams(temperature=0, max_tokens=one.max_tokens, ignore_eos=True) for one in work]
            llm.generate([{"prompt_token_ids": one.prompt} for one in work], params, use_tqdm=False)
            offline.append(tokens / (time.monotonic() - begin))
    print(f"output tokens a second, rounds: HTTP {_listed(http)}, offline {_listed(offline)}")
    print(f"HTTP / offline, best of each: {max(http) / max(offline):.1%}")
    print(f"front ends for 1,000 output tokens a second: {min(front_end):.1%} of a core")
    print(f"the clients took {client[-1]:.0%} of a core")


def _load(args: argparse.Namespace, server: Running, work: list[Asked]) -> None:
    # The first requests of each length make room that is kept; what comes behind must not ask for more.
    asyncio.run(_run(server, work[: args.streams * 2], args.streams))
    before = _memory(server)
    seconds, failed = asyncio.run(_run(server, work, args.streams))
    figures = asyncio.run(_idle(server))
    after = _memory(server)
    gone = sum(one.patience is not None for one in work)
    print(f"load: {len(work)} streams, {args.streams} at once, {gone} hung up, in {seconds:.1f} s")
    print(f"errors: {len(failed)}", *failed[:3])
    print(f"share of blocks in use behind it: {figures['vllm:kv_cache_usage_perc']:g}")
    for name, size in after.items():
        change = size / before[name] - 1
        print(f"memory of {name}: {before[name] >> 20} MiB before, {size >> 20} behind ({change:+.1%})")


async def _run(
    server: Running, work: list[Asked], streams: int, patient: bool = False
) -> tuple[float, list[BaseException]]:
    """Seconds for all of the work, so many streams at a time, and what went wrong."""
    left = iter(work)
    failed: list[BaseException] = []

    async def client() -> None:
        for one in left:
            try:
                limit = None if patient else one.patience
                events = await stream(server.port, PATH, one.body(), limit=limit)
                assert limit is not None or events[-1] == "[DONE]", events[-1:]
                assert not any('"error"' in event for event in events), events
            except (OSError, AssertionError, IndexError, asyncio.IncompleteReadError) as error:
                failed.append(error)

    begin = time.monotonic()
    await asyncio.gather(*(client() for _ in range(streams)))
    return time.monotonic() - begin, failed


async def _idle(server: Running) -> dict[str, float]:
    """Metrics once nothing runs any more."""
    while (figures := await metrics(server.port))["vllm:num_requests_running"]:
        await asyncio.sleep(0.1)
    return figures


def _memory(server: Running) -> dict[str, int]:
    return {
        **{f"front end {number}": resident_bytes(pid) for number, pid in enumerate(_front_ends(server))},
        "engine": resident_bytes(server.engine_pid),
    }


def _front_ends(server: Running) -> list[int]:
    return server.children(FRONT_END) or [server.process.pid]


def _front_end_seconds(server: Running) -> float:
    total = 0
    for pid in _front_ends(server):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def _own_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:,.0f}" for value in values)


if __name__ == "__main__":
    main()
