"""The server under load: `python -m benchmarks.bench_server [--streams 200] [--requests 2000] [MODEL]`.

Random prompts, answers of random lengths, so many at once:

* speed: over HTTP as streams, over HTTP as whole answers, and with `LLM`, all with the same requests, in turns;
  medians, and what share of `LLM`'s they are;
* the front ends' processor time for 1,000 output tokens a second, from the same rounds;
* load: streams of which some of the clients hang up; errors, blocks that are not free behind it, and the memory of each
  process before and after.

The clients (`load_client.py`) are a process on the same machine; what they take of a core is told. The exit status is 1
if there was an error, if blocks were not free, or if memory had grown by more than 5 %. `--no-load` is the comparison
alone, `--rounds 0` the load alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load_client import Asked, measure
from interleaf import LLM, SamplingParams
from tests.server.running import Running, metrics, resident_bytes, running

FRONT_END = "interleaf.server.front_end"
TICKS = os.sysconf("SC_CLK_TCK")
FLAGS = ["--disable-access-log", "--no-enable-prefix-caching", "--seed", "0"]
MEMORY_MAY_GROW = 0.05
STREAMED, WHOLE, OFFLINE = "streamed", "whole", "offline"


@dataclass(frozen=True, slots=True)
class Round:
    """All of the compared requests, done once in one way."""

    tokens: int
    seconds: float
    client_seconds: float = 0.0  # of processor time, as is the next
    front_end_seconds: float = 0.0
    events: int = 0

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


def main() -> int:
    args = _arguments()
    work = _work(args)
    flags = [*FLAGS, "--max-num-seqs", str(args.streams), "--api-server-count", str(args.api_server_count)]
    if args.kv_cache_memory_bytes:
        flags += ["--kv-cache-memory-bytes", args.kv_cache_memory_bytes]
    if args.quantization:
        flags += ["--quantization", args.quantization]
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as directory, running(args.model, Path(directory), *flags) as server:
        if args.rounds:
            patient = [Asked(one.prompt, one.tokens) for one in work[: args.compared]]
            faults += _compare_speed(args, server, patient)
        if not args.no_load:
            faults += _load(args, server, work[: args.requests])
        faults += server.messages("ERROR", "CRITICAL")
        status = server.stop()
    print(f"faults: {len(faults)}; the server's exit status: {status}")
    for fault in faults[:5]:
        print("  ", fault[:300])
    return int(bool(faults or status))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--streams", type=int, default=200, help="at once")
    parser.add_argument("--requests", type=int, default=2000, help="of the load")
    parser.add_argument("--compared", type=int, default=300, help="requests of a round of the comparison")
    parser.add_argument("--longest-prompt", type=int, default=64)
    parser.add_argument("--longest-answer", type=int, default=64)
    parser.add_argument("--hang-up", type=float, default=0.2, metavar="SHARE")
    parser.add_argument("--api-server-count", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="of the comparison; 0 leaves it out")
    parser.add_argument("--no-load", action="store_true", help="the comparison alone")
    parser.add_argument("--kv-cache-memory-bytes")
    parser.add_argument("--quantization")
    return parser.parse_args()


def _work(args: argparse.Namespace) -> list[Asked]:
    rng = random.Random(0)
    work = []
    for _ in range(max(args.requests, args.compared)):
        prompt = [rng.randrange(3, 300) for _ in range(rng.randint(1, args.longest_prompt))]
        length = rng.randint(1, args.longest_answer)
        work.append(Asked(prompt, length, rng.randrange(length) if rng.random() < args.hang_up else None))
    return work


def _compare_speed(args: argparse.Namespace, server: Running, work: list[Asked]) -> list[str]:
    """Every way in turns, there and back; returns what went wrong."""
    options: dict[str, Any] = {"max_num_seqs": args.streams, "enable_prefix_caching": False}
    if args.kv_cache_memory_bytes:
        options["kv_cache_memory_bytes"] = args.kv_cache_memory_bytes
    if args.quantization:
        options["quantization"] = args.quantization
    rounds: dict[str, list[Round]] = {STREAMED: [], WHOLE: [], OFFLINE: []}
    faults: list[str] = []
    with LLM(args.model, **options) as llm:
        for number in range(args.rounds):
            for way in list(rounds)[:: -1 if number % 2 else 1]:
                if way == OFFLINE:
                    rounds[way].append(_offline(llm, work))
                else:
                    rounds[way].append(_served(server, work, args.streams, way == STREAMED, faults))
    print(f"{len(work)} requests, {args.streams} at once, {sum(one.tokens for one in work)} output tokens a round")
    if not faults:
        _print_comparison(rounds)
    return faults


def _offline(llm: LLM, work: list[Asked]) -> Round:
    params = [SamplingParams(temperature=0, max_tokens=one.tokens, ignore_eos=True) for one in work]
    begin = time.monotonic()
    llm.generate([{"prompt_token_ids": one.prompt} for one in work], params, use_tqdm=False)
    return Round(sum(one.tokens for one in work), time.monotonic() - begin)


def _served(server: Running, work: list[Asked], at_once: int, streamed: bool, faults: list[str]) -> Round:
    before = _front_end_seconds(server)
    report = measure(server.port, work, at_once, streamed)
    faults += report.faults
    return Round(
        report.tokens, report.seconds, report.processor_seconds, _front_end_seconds(server) - before, report.events
    )


def _print_comparison(rounds: dict[str, list[Round]]) -> None:
    offline = statistics.median(one.speed for one in rounds[OFFLINE])
    for way, several in rounds.items():
        median = statistics.median(one.speed for one in several)
        speeds = ", ".join(f"{one.speed:,.0f}" for one in several)
        print(f"{way:8} {speeds} output tokens a second; median {median:,.0f}, {median / offline:.1%} of offline")
    for way in (STREAMED, WHOLE):
        tokens = sum(one.tokens for one in rounds[way])
        seconds = sum(one.seconds for one in rounds[way])
        front_end = sum(one.front_end_seconds for one in rounds[way])
        client = sum(one.client_seconds for one in rounds[way])
        # A core's share at S tokens a second, for each 1,000 of them: core seconds for 1,000 tokens.
        print(
            f"{way}: front ends {front_end * 1000 / tokens:.1%} of a core for 1,000 output tokens a second;"
            f" clients {client * 1e6 / tokens:.1f} us a token, {client / seconds:.1%} of a core;"
            f" {sum(one.events for one in rounds[way])} events for {tokens} tokens"
        )


def _load(args: argparse.Namespace, server: Running, work: list[Asked]) -> list[str]:
    """Returns what went wrong."""
    # The first time makes room that is kept; the second must not ask for more.
    faults = measure(server.port, work, args.streams, streamed=True).faults
    asyncio.run(_idle(server))
    before = _memory_at_rest(server)
    report = measure(server.port, work, args.streams, streamed=True)
    used = asyncio.run(_idle(server))["vllm:kv_cache_usage_perc"]
    after = _memory_at_rest(server)
    faults += report.faults
    print(f"load: {len(work)} streams, {args.streams} at once, {report.hung_up} hung up, in {report.seconds:.1f} s")
    print(f"errors: {len(faults)}; share of blocks in use behind it: {used:g}")
    if used:
        faults.append("blocks are not free behind the load")
    for name, size in after.items():
        change = size / before[name] - 1
        print(f"memory of {name}: {before[name] >> 20} MiB before, {size >> 20} behind ({change:+.1%})")
        if change > MEMORY_MAY_GROW:
            faults.append(f"memory of {name} has grown by {change:.1%}")
    return faults


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


def _memory_at_rest(server: Running) -> dict[str, int]:
    """The same once it stands still: an idle engine has pages of its cache brought in ahead of their use."""
    now, size = _memory(server), {"engine": -1}
    while now["engine"] != size["engine"]:
        size = now
        time.sleep(1)
        now = _memory(server)
    return now


def _front_ends(server: Running) -> list[int]:
    return server.children(FRONT_END) or [server.process.pid]


def _front_end_seconds(server: Running) -> float:
    total = 0
    for pid in _front_ends(server):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


if __name__ == "__main__":
    sys.exit(main())
