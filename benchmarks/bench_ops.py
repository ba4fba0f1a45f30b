"""Times single ops of the native library, in the shapes of real models, beside a probe of the machine's limits.

    python benchmarks/bench_ops.py linear --rows 1 16 64 --threads 2
    python benchmarks/bench_ops.py attention

A row gives the median time, the arithmetic or memory rate, and for memory-bound cases the share of what a plain read
of memory reached in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import interleaf._native as _native
from interleaf.host_tensor import HostTensor
from interleaf.machine import usable_cores
from interleaf.ops import AttentionShape, Graph, ModelInput, SamplingInput, StepSize
from interleaf.ops.cpu import CpuOps, instruction_level
from interleaf.ops.cpu_memory import Buffer

LINEAR_SHAPES = {
    "smollm2-135m qkv": (960, 576),
    "smollm2-135m gate_up": (3072, 576),
    "smollm2-135m down": (576, 1536),
    "smollm2-135m head": (49152, 576),
    "qwen3-0.6b gate_up": (6144, 1024),
    "llama-3.2-1b down": (2048, 8192),
}
WEIGHT_BYTES = {None: 2.0, "int8": 1.0, "int4": 0.625}
"""Bytes a weight takes, scales included."""

COPIES = 24
"""Weights and caches rotate through this many copies, so that they come from memory as in a whole model."""


def median_seconds(run: Callable[[], None], rounds: int = 7) -> float:
    run()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def inputs_for(max_tokens: int, sequences: int, blocks: int) -> ModelInput:
    return ModelInput(
        token_ids=np.zeros(max_tokens, np.int32),
        positions=np.zeros(max_tokens, np.int32),
        slots=np.zeros(max_tokens, np.int32),
        query_start=np.zeros(sequences + 1, np.int32),
        context_lengths=np.zeros(sequences, np.int32),
        sequence_rows=np.arange(sequences, dtype=np.int32),
        block_tables=np.zeros((sequences, blocks), np.int32),
        logits_index=np.zeros(64, np.int32),
        shared_chunks=np.zeros(sequences, np.int32),
        shared_with=np.zeros(sequences, np.int32),
    )


def random_weight(n: int, k: int) -> HostTensor:
    values = np.random.default_rng(0).normal(0, 0.02, (n, k)).astype(np.float32)
    return HostTensor(
        "bfloat16", (n, k), np.ascontiguousarray(values.view(np.uint16)[..., 1::2]).view(np.uint8).reshape(-1)
    )


def random_activation(ops: CpuOps, width: int, dtype: _native.DType) -> Buffer:
    buffer = ops._buffer(_native.Rows.TOKENS, width, dtype)
    values = np.random.default_rng(1).normal(0, 1, buffer.memory.bytes // 4).astype(np.float32)
    if dtype == _native.DType.bfloat16:
        values = np.ascontiguousarray(values.view(np.uint16)[1::2])
    _native_bytes(buffer)[: values.nbytes] = values.view(np.uint8)
    return buffer


def _native_bytes(buffer: Buffer) -> np.ndarray:
    from interleaf.ops.cpu_memory import view

    return view(buffer.memory, np.uint8, buffer.memory.bytes)


def bench_linear(args: argparse.Namespace, probe: float) -> None:
    print(f"{'linear':24} {'rows':>5} {'µs':>9} {'GFLOP/s':>9} {'GB/s':>7} {'of probe':>8}")
    for name, (n, k) in LINEAR_SHAPES.items():
        ops = CpuOps(args.dtype, args.threads, max(args.rows), 64, 1000, args.quantization)
        copies = max(1, min(COPIES, (600 << 20) // (n * k * 2)))
        weights = [ops.linear_weight([random_weight(n, k)]) for _ in range(copies)]
        x, inputs = random_activation(ops, k, ops.dtype), inputs_for(1, 1, 1)

        def forward(ops: CpuOps = ops, weights: list = weights, x: Buffer = x) -> Buffer:
            for weight in weights:
                y = ops.linear(x, weight)
            return y

        graph = ops.graph(forward, inputs, logits=False)
        for rows in args.rows:
            seconds = median_seconds(lambda g=graph, r=rows: g.run(StepSize(r, 1, 0))) / copies
            rate = n * k * WEIGHT_BYTES[args.quantization] / seconds / 1e9
            print(
                f"{name:24} {rows:5} {seconds * 1e6:9.1f} {rows * n * k * 2 / seconds / 1e9:9.1f} {rate:7.1f} "
                f"{rate / probe:8.0%}"
            )


ATTENTION_CASES = [
    ("decode 64 x 160", AttentionShape(9, 3, 64, 0.125), [(159, 1)] * 64),
    ("decode 16 x 1k", AttentionShape(9, 3, 64, 0.125), [(1023, 1)] * 16),
    ("decode 16 x 1k, 16/8 x 128", AttentionShape(16, 8, 128, 0.088), [(1023, 1)] * 16),
    ("decode 32 x 1k", AttentionShape(9, 3, 64, 0.125), [(1023, 1)] * 32),
    ("decode 1 x 4k", AttentionShape(9, 3, 64, 0.125), [(4095, 1)]),
    ("verify 1 x 4k, 8 rows", AttentionShape(9, 3, 64, 0.125), [(4088, 8)]),
    ("prefill 16 x 128", AttentionShape(9, 3, 64, 0.125), [(0, 128)] * 16),
    ("prefill 4 x 512", AttentionShape(9, 3, 64, 0.125), [(0, 512)] * 4),
    ("prefill 1 x 2k", AttentionShape(9, 3, 64, 0.125), [(0, 2048)]),
    ("prefill 1 x 8k", AttentionShape(9, 3, 64, 0.125), [(0, 8192)]),
    ("prefill 1 x 2k, 16/8 x 128", AttentionShape(16, 8, 128, 0.088), [(0, 2048)]),
]


def bench_attention(args: argparse.Namespace, probe: float) -> None:
    print(f"{'attention':28} {'µs':>9} {'GFLOP/s':>9} {'GB/s':>7} {'of probe':>8}")
    for name, shape, step in ATTENTION_CASES:
        if args.case not in name:
            continue
        tokens = sum(count for _, count in step)
        graph, copies, size = attention_graph(args, shape, step)
        seconds = median_seconds(lambda g=graph, t=tokens, s=step: g.run(StepSize(t, len(s), 0))) / copies
        pairs = sum(count * before + count * (count + 1) / 2 for before, count in step)
        flops = 4 * pairs * shape.num_heads * shape.head_dim
        rate = size / seconds / 1e9
        print(f"{name:28} {seconds * 1e6:9.1f} {flops / seconds / 1e9:9.1f} {rate:7.1f} {rate / probe:8.0%}")


def attention_graph(
    args: argparse.Namespace, shape: AttentionShape, step: list[tuple[int, int]]
) -> tuple[Graph, int, int]:
    """Attention over so many caches that they come from memory; their number, and the bytes of one."""
    tokens = sum(count for _, count in step)
    blocks = max(-(-(before + count) // 16) for before, count in step)
    ops = CpuOps(args.dtype, args.threads, tokens, 64, 1000, kv_cache_dtype=args.kv_cache_dtype)
    inputs = inputs_for(tokens, len(step), blocks)
    order = np.random.default_rng(0).permutation(len(step) * blocks).astype(np.int32)
    inputs.block_tables[:] = order.reshape(len(step), blocks)
    inputs.query_start[1:] = np.cumsum([count for _, count in step])
    inputs.context_lengths[:] = [before + count for before, count in step]
    caches = ops.new_caches(COPIES, len(order), 16, shape.num_kv_heads, shape.head_dim)
    q = random_activation(ops, shape.num_heads * shape.head_dim, ops.dtype)
    _fill(caches[0].memory)
    size = sum(cache.block_bytes for cache in caches) * len(order) // COPIES

    def forward() -> Buffer:
        for cache in caches:
            y = ops.attention(q, shape, cache, inputs)
        return y

    return ops.graph(forward, inputs, logits=False), COPIES, size


def _fill(memory: _native.Memory) -> None:
    from interleaf.ops.cpu_memory import view

    values = np.random.default_rng(2).normal(0, 1, 1 << 16).astype(np.float32)
    halves = np.ascontiguousarray(values.view(np.uint16)[1::2]).view(np.uint8)
    whole = view(memory, np.uint8, memory.bytes)
    whole[:] = np.resize(halves, len(whole))


def bench_sample(args: argparse.Namespace, probe: float) -> None:
    print(f"{'sample':32} {'µs a row':>9}")
    for vocab_size in (49152, 151936, 262144):
        logits = np.random.default_rng(0).normal(0, 3, (64, vocab_size)).astype(np.float32)
        for name, temperature, top_k, top_p, min_p in (
            ("greedy", 0.0, 0, 1.0, 0.0),
            ("temperature", 1.0, 0, 1.0, 0.0),
            ("top_k 50", 1.0, 50, 1.0, 0.0),
            ("top_p 0.9", 1.0, 0, 0.9, 0.0),
            ("min_p 0.05", 1.0, 0, 1.0, 0.05),
        ):
            ops = CpuOps(args.dtype, args.threads, 1, 64, vocab_size)
            sampling = SamplingInput(
                temperatures=np.full(64, temperature, np.float32),
                top_k=np.full(64, top_k, np.int32),
                top_p=np.full(64, top_p, np.float32),
                min_p=np.full(64, min_p, np.float32),
                seeds=np.arange(64, dtype=np.uint64),
                positions=np.zeros(64, np.int32),
            )
            seconds = median_seconds(lambda o=ops, x=logits, s=sampling: o.sample(x, s))
            print(f"{name + ', ' + str(vocab_size):32} {seconds / 64 * args.threads * 1e6:9.1f}")


BENCHMARKS = {"linear": bench_linear, "attention": bench_attention, "sample": bench_sample}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", choices=[*BENCHMARKS, []], help="which; all by default")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--quantization", choices=["int8", "int4"], help="of linear's weights")
    parser.add_argument("--kv-cache-dtype", default="auto", choices=["auto", "int8"], help="of attention's cache")
    parser.add_argument("--case", default="", help="only attention cases whose name has this in it")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 256, 2048])
    args = parser.parse_args()
    runtime = _native.Runtime(args.threads, instruction_level())
    probe = statistics.median(runtime.read_probe(512 << 20) for _ in range(5))
    print(f"{args.threads} threads, {runtime.level}; reading memory: {probe:.1f} GB/s\n")
    for name in args.ops or BENCHMARKS:
        BENCHMARKS[name](args, probe)
        print()


if __name__ == "__main__":
    main()
