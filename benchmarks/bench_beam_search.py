"""Beam search against `width` separate requests for each prompt, alternately; and the blocks that are held.

"side by side" are all requests at once, "one by one" the prompts `width` times, each time one request of each. The
prefix cache is off, then on; it is empty before each measurement.

    python benchmarks/bench_beam_search.py --width 4 --prompts 1 --input-len 64 512 2048 --output-len 48
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from interleaf import LLM, BeamSearchParams, SamplingParams


def run(llm: LLM, request_ids: list[str]) -> tuple[float, int]:
    """Seconds until all have ended, and the most blocks that were held."""
    begin, peak = time.perf_counter(), 0
    while llm.has_unfinished():
        llm.step()
        stats = llm.client.stats()
        peak = max(peak, stats.num_blocks - stats.num_free_blocks)
    seconds = time.perf_counter() - begin
    for request_id in request_ids:
        llm.collect(request_id)
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--input-len", type=int, nargs="+", default=[128])
    for name, default in (("width", 4), ("prompts", 8), ("output-len", 64), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    for caching in (False, True):
        with LLM(args.model, enable_prefix_caching=caching) as llm:
            for input_len in args.input_len:
                print(f"prefix cache {'on' if caching else 'off'}, {input_len} tokens in")
                compare(llm, args, input_len)


def compare(llm: LLM, args: argparse.Namespace, input_len: int) -> None:
    """Measure all three ways in turns, and print their medians."""
    beam = BeamSearchParams(args.width, args.output_len, ignore_eos=True).sampling_params(None)
    single: dict[str, Any] = {"max_tokens": args.output_len, "ignore_eos": True, "temperature": 1.0}
    found: dict[str, list[float]] = {"beams": [], "one by one": [], "side by side": []}
    peaks = dict.fromkeys(found, 0)
    prompts = [[100 + 7 * i + j % 1000 for j in range(input_len)] for i in range(args.prompts)]
    for _ in range(args.rounds):
        for name, all_seconds in found.items():
            llm.reset_prefix_cache()
            total = 0.0
            for batch in batches_of(name, prompts, args.width, beam, single):
                seconds, peak = run(llm, llm.enqueue([one for one, _ in batch], [params for _, params in batch]))
                total += seconds
                peaks[name] = max(peak, peaks[name])
            all_seconds.append(total)
    tokens = args.prompts * args.width * args.output_len
    beams = statistics.median(found["beams"])
    for name, all_seconds in found.items():
        median = statistics.median(all_seconds)
        print(
            f"{name:14s} {median:7.2f} s  {tokens / median:8.0f} tokens/s  {median / beams:6.2f} times beam search's "
            f"time  at most {peaks[name]} blocks"
        )


def batches_of(
    name: str, prompts: list[list[int]], width: int, beam: SamplingParams, single: dict[str, Any]
) -> list[list[tuple[list[int], SamplingParams]]]:
    """What is computed together, batch after batch."""
    if name == "beams":
        return [[(one, beam) for one in prompts]]
    rounds = [[(one, SamplingParams(seed=seed, **single)) for one in prompts] for seed in range(width)]
    return rounds if name == "one by one" else [[request for batch in rounds for request in batch]]


if __name__ == "__main__":
    main()
