"""Throughput against Transformers' `generate` in one run: same weights, same prompts, same lengths, same cores.

    python benchmarks/compare_transformers.py [--num-prompts 64] [--batch-sizes 16 32 64]

Transformers runs each batch size (left-padding is not needed, as all prompts are equally long); its
best one counts. Both compute in bfloat16. Engines take turns, `--rounds` times, so that a change of
the machine's speed hits both; the best round of each counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

from interleaf import LLM
from interleaf.cli.bench import workloads
from interleaf.cli.bench.throughput import measure
from interleaf.config import usable_cores
from interleaf.loader.checkpoint import locate


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a model directory or .gguf file (default: the built-in model)")
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output-json", type=Path)
    args = parser.parse_args()

    shapes = workloads.fixed(args.num_prompts, args.input_len, args.output_len)
    seconds: dict[str, float] = {}
    for round_number in range(args.rounds):
        for name, value in run_round(args, shapes, round_number).items():
            seconds[name] = min(value, seconds.get(name, value))
    tokens = args.num_prompts * (args.input_len + args.output_len)
    speeds = {name: tokens / value for name, value in seconds.items()}
    best = max(speed for name, speed in speeds.items() if name != "interleaf")
    for name, speed in speeds.items():
        print(f"{name:28} {speed:9,.1f} total tokens a second {speed / best:6.2f} x")
    if args.output_json:
        args.output_json.write_text(json.dumps({"total_tokens_per_second": speeds, "cores": usable_cores()}) + "\n")


def run_round(args: argparse.Namespace, shapes: list[workloads.Shape], seed: int) -> dict[str, float]:
    """Engine -> seconds for the whole workload."""
    with LLM(args.model, dtype="bfloat16") as llm:
        tokenizer = llm.get_tokenizer()
        prompts = workloads.random_prompts(shapes, len(tokenizer), tokenizer.all_special_ids, seed)
        results = {"interleaf": measure(llm, shapes, temperature=0.0, seed=seed).seconds}
    del llm
    gc.collect()
    results |= run_transformers(args, prompts)
    return results


def run_transformers(args: argparse.Namespace, prompts: list[list[int]]) -> dict[str, float]:
    import torch

    torch.set_num_threads(usable_cores())
    model = load_transformers(args.model)
    results: dict[str, float] = {}
    for size in args.batch_sizes:
        start = time.monotonic()
        for first in range(0, len(prompts), size):
            batch = torch.tensor(prompts[first : first + size])
            with torch.inference_mode():
                output = model.generate(
                    batch,
                    attention_mask=torch.ones_like(batch),
                    do_sample=False,
                    min_new_tokens=args.output_len,
                    max_new_tokens=args.output_len,
                )
            assert output.shape[1] == args.input_len + args.output_len
        results[f"transformers, batches of {size}"] = time.monotonic() - start
    return results


def load_transformers(name: str | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = locate(name)
    options: dict[str, Any] = {"dtype": torch.bfloat16, "local_files_only": True}
    if path.is_file():
        options |= {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
        path = path.parent
    return AutoModelForCausalLM.from_pretrained(path, **options).eval()


if __name__ == "__main__":
    main()
