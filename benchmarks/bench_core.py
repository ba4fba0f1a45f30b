"""Cost of the scheduler, without a model: `python benchmarks/bench_core.py [--requests 256 1000 10000]`.

A fake worker gives each due sequence a token at once, so the time of `schedule` and `update` is
all that is measured. For each number of requests it prints two phases, in ms a step:

* fill: the prompts are admitted and computed (64 tokens each, of which 32 are common to all);
* decode: all of them run, one token a sequence and step.
"""

from __future__ import annotations

import argparse
import statistics
import time

from interleaf.config import CacheConfig, SchedulerConfig
from interleaf.core.scheduler import Scheduler
from interleaf.messages import EngineRequest, SchedulerOutput, StepOutput
from interleaf.params import SamplingParams

BLOCK_SIZE = 16
COMMON_TOKENS = 32
PROMPT_TOKENS = 64
DECODE_STEPS = 100


class FakeWorker:
    """Samples a token for each sequence whose tokens are all computed."""

    def __init__(self) -> None:
        self._left: dict[str, int] = {}

    def execute(self, output: SchedulerOutput) -> StepOutput:
        for new in output.new_requests:
            self._left[new.sequence_id] = len(new.token_ids) - new.num_computed_tokens
        sampled = {}
        for sequence_id, num_tokens in output.num_scheduled_tokens.items():
            self._left[sequence_id] -= num_tokens
            if self._left[sequence_id] == 0:
                sampled[sequence_id] = [output.step & 1023]
                self._left[sequence_id] = 1
        return StepOutput(output.step, sampled)


def timed_step(scheduler: Scheduler, worker: FakeWorker) -> tuple[float, int]:
    """Seconds spent in the scheduler in one step, and the sequences that got a token."""
    start = time.perf_counter()
    output = scheduler.schedule()
    scheduled = time.perf_counter()
    step_output = worker.execute(output)
    executed = time.perf_counter()
    news = scheduler.update(output, step_output)
    return time.perf_counter() - executed + scheduled - start, len(news)


def bench(num_requests: int) -> None:
    blocks = num_requests * -(-(PROMPT_TOKENS + 4 * DECODE_STEPS) // BLOCK_SIZE)
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=num_requests, max_num_batched_tokens=2048 + num_requests, max_model_len=4096),
        CacheConfig(BLOCK_SIZE, blocks, True),
    )
    worker = FakeWorker()
    params = SamplingParams(seed=0, max_tokens=None, ignore_eos=True)
    for number in range(num_requests):
        prompt = [*range(COMMON_TOKENS), *range(number, number + PROMPT_TOKENS - COMMON_TOKENS)]
        scheduler.add_request(EngineRequest(str(number), prompt, params))
    fill = []
    while True:
        seconds, num_tokens = timed_step(scheduler, worker)
        fill.append(seconds)
        if num_tokens == num_requests:
            break
    decode = [timed_step(scheduler, worker)[0] for _ in range(DECODE_STEPS)]
    assert scheduler.stats().num_preemptions == 0
    print(
        f"{num_requests:6} requests: fill {1e3 * statistics.mean(fill):7.3f} ms/step ({len(fill)} steps), "
        f"decode median {1e3 * statistics.median(decode):7.3f}, worst {1e3 * max(decode):7.3f} ms/step"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[256, 1000, 10000])
    for num_requests in parser.parse_args().requests:
        bench(num_requests)


if __name__ == "__main__":
    main()
