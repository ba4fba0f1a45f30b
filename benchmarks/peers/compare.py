"""Engines take turns on each workload, so that a change of the machine's speed hits all of them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.convert import convert
from benchmarks.peers.engines import engine, python_of
from benchmarks.peers.workloads import WORKLOADS, Job
from interleaf import _native
from interleaf.machine import usable_cores
from interleaf.ops.cpu import instruction_level

DRIVERS = Path(__file__).parent / "drivers"
PROBE_BYTES = 1 << 28


class Driver:
    """An engine in a process group of its own, stopped while it is not its turn: some engines spin when idle."""

    def __init__(self, home: Path, name: str, model: str, precision: str) -> None:
        chosen = engine(name)
        cores = usable_cores()
        settings = {key: value.format(last=cores - 1) for key, value in chosen.environment.items()}
        weights = convert(home, model, chosen.weights[precision])
        log = home / "logs" / f"{model}-{precision}-{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        script = DRIVERS / f"drive_{name.replace('.', '_')}.py"
        self.name = name
        self.process = subprocess.Popen(
            [python_of(home, name), script, weights, precision, str(cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env={**os.environ, **settings},
            start_new_session=True,
        )
        self.start_seconds: float = self._answer()["seconds"]
        self._signal(signal.SIGSTOP)

    def run(self, job: Job) -> float:
        """Seconds for a job."""
        assert self.process.stdin
        self._signal(signal.SIGCONT)
        print(json.dumps(job.as_message()), file=self.process.stdin, flush=True)
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        wanted = job.n * sum(job.output_lens)
        assert answer["output_tokens"] == wanted, f"{self.name} made {answer['output_tokens']} tokens of {wanted}"
        return float(answer["seconds"])

    def peak_bytes(self) -> int:
        """Most memory that its processes held, summed."""
        return sum(_peak_bytes(path) for path in Path("/proc").glob("[0-9]*") if _group(path) == self.process.pid)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended: see its log")
        return json.loads(line)

    def _signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)


def compare(
    home: Path,
    model: str,
    precisions: Sequence[str],
    names: Sequence[str],
    workloads: Sequence[str],
    rounds: int,
    output: Path,
) -> None:
    """Measure every engine that offers each precision; print and keep the results."""
    results = read_results(output) if output.exists() else []
    for precision in precisions:
        offering = [name for name in names if precision in engine(name).weights]
        with _started(home, offering, model, precision) as drivers:
            for workload in workloads:
                new = _measure(drivers, workload, rounds)
                new |= {"model": model, "precision": precision, "workload": workload}
                results = [one for one in results if _key(one) != _key(new)] + [new]
                output.write_text(json.dumps(results, indent=1) + "\n")
                print_tables([new])


@contextlib.contextmanager
def _started(home: Path, names: Iterable[str], model: str, precision: str) -> Iterator[list[Driver]]:
    drivers: list[Driver] = []
    try:
        for name in names:
            print(f"starting {name}, {model}, {precision}", file=sys.stderr, flush=True)
            try:
                drivers.append(Driver(home, name, model, precision))
            except RuntimeError as error:
                print(f"left out: {error}", file=sys.stderr, flush=True)
        yield drivers
    finally:
        for driver in drivers:
            driver.close()


def _measure(drivers: list[Driver], workload: str, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {driver.name: [] for driver in drivers}
    runtime = _native.Runtime(usable_cores(), instruction_level())
    probe = []
    tokens = 0
    for number in range(rounds):
        job = WORKLOADS[workload](random.Random(number))
        tokens = job.num_tokens
        for driver in drivers if number % 2 == 0 else reversed(drivers):
            probe.append(runtime.read_probe(PROBE_BYTES))
            seconds[driver.name].append(driver.run(job))
    return {
        "tokens": tokens,
        "seconds": seconds,
        "start_seconds": {driver.name: driver.start_seconds for driver in drivers},
        "peak_bytes": {driver.name: driver.peak_bytes() for driver in drivers},
        "read_gigabytes_per_second": statistics.median(probe),
    }


def _key(result: dict[str, Any]) -> tuple[str, str, str]:
    return result["model"], result["precision"], result["workload"]


def _group(process: Path) -> int:
    try:
        return os.getpgid(int(process.name))
    except OSError:
        return -1


def _peak_bytes(process: Path) -> int:
    try:
        status = (process / "status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def read_results(path: Path) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads(path.read_text())
    return results


def print_tables(results: Iterable[dict[str, Any]]) -> None:
    """Markdown: a row for each engine, with interleaf's speed as a multiple of it (medians)."""
    for result in results:
        medians = {name: statistics.median(seconds) for name, seconds in result["seconds"].items()}
        print(
            f"\n**{result['model']}, {result['precision']}, {result['workload']}** ({result['tokens']:,} tokens; ",
            end="",
        )
        print(f"read probe {result['read_gigabytes_per_second']:.1f} GB/s)\n")
        print("| engine | total tokens/s | interleaf is | spread | start | peak memory |")
        print("|---|---|---|---|---|---|")
        for name, median in medians.items():
            seconds = result["seconds"][name]
            ratio = f"{median / medians['interleaf']:.2f}x" if "interleaf" in medians else ""
            print(
                f"| {name} | {result['tokens'] / median:,.0f} | {ratio} | {min(seconds) / median:.2f}-"
                f"{max(seconds) / median:.2f} | {result['start_seconds'][name]:.1f} s "
                f"| {result['peak_bytes'][name] / 1e6:,.0f} MB |",
                flush=True,
            )
