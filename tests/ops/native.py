"""Runs single native ops on numpy arrays, on every instruction level this machine has."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch

from interleaf import _native
from interleaf.host_tensor import HostTensor
from interleaf.ops import ModelInput, StepSize
from interleaf.ops.cpu import LEVEL_VARIABLE, CpuOps
from interleaf.ops.cpu_memory import Buffer, view

LEVELS = _native.usable_levels()
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}
MAX_TOKENS, MAX_LOGITS = 300, 64


@contextmanager
def forced_level(level: str):
    before = os.environ.get(LEVEL_VARIABLE)
    os.environ[LEVEL_VARIABLE] = level
    try:
        yield
    finally:
        os.environ.pop(LEVEL_VARIABLE)
        if before is not None:
            os.environ[LEVEL_VARIABLE] = before


def cpu_ops(level: str, dtype: str, threads: int = 2, vocab_size: int = 1000, kv_cache_dtype: str = "auto") -> CpuOps:
    with forced_level(level):
        return CpuOps(dtype, threads, MAX_TOKENS, MAX_LOGITS, vocab_size, kv_cache_dtype=kv_cache_dtype)


def host_tensor(values: torch.Tensor, dtype: str = "bfloat16") -> HostTensor:
    stored = values.to({"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[dtype])
    raw = stored.contiguous().view(torch.int16 if dtype != "float32" else torch.int32).numpy().view(np.uint8)
    return HostTensor(dtype, tuple(values.shape), raw.reshape(-1))


def write(buffer: Buffer, values: torch.Tensor) -> None:
    """Put [rows, width] into a buffer, rounded to its dtype."""
    count = values.numel()
    if buffer.dtype == _native.DType.float32:
        view(buffer.memory, np.float32, count)[:] = values.float().numpy().reshape(-1)
    else:
        view(buffer.memory, np.int16, count)[:] = values.bfloat16().view(torch.int16).numpy().reshape(-1)


def read(buffer: Buffer, rows: int) -> torch.Tensor:
    count = rows * buffer.width
    if buffer.dtype == _native.DType.float32:
        values = torch.from_numpy(view(buffer.memory, np.float32, count).copy())
    else:
        values = torch.from_numpy(view(buffer.memory, np.int16, count).copy()).view(torch.bfloat16).float()
    return values.reshape(rows, buffer.width)


def activation(ops: CpuOps, values: torch.Tensor, dtype: _native.DType | None = None, logits: bool = False) -> Buffer:
    rows = _native.Rows.LOGITS if logits else _native.Rows.TOKENS
    buffer = ops._buffer(rows, values.shape[1], ops.dtype if dtype is None else dtype)
    write(buffer, values)
    return buffer


def run(ops: CpuOps, op: Callable[[], Buffer], rows: int, inputs: ModelInput, sequences: int = 0) -> torch.Tensor:
    """Record one op, replay it for `rows` rows, and return what it wrote."""
    results: list[Buffer] = []

    def forward() -> Buffer:
        results.append(op())
        return results[0]

    ops.graph(forward, inputs, logits=False).run(StepSize(rows, sequences, rows))
    return read(results[0], rows)


def model_input(max_sequences: int = 8, blocks_per_sequence: int = 40) -> ModelInput:
    return ModelInput(
        token_ids=np.zeros(MAX_TOKENS, np.int32),
        positions=np.zeros(MAX_TOKENS, np.int32),
        slots=np.zeros(MAX_TOKENS, np.int32),
        query_start=np.zeros(max_sequences + 1, np.int32),
        context_lengths=np.zeros(max_sequences, np.int32),
        sequence_rows=np.zeros(max_sequences, np.int32),
        block_tables=np.zeros((max_sequences, blocks_per_sequence), np.int32),
        logits_index=np.zeros(MAX_LOGITS, np.int32),
        shared_chunks=np.zeros(max_sequences, np.int32),
        shared_with=np.zeros(max_sequences, np.int32),
    )


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: str) -> None:
    scale = max(float(expected.abs().max()), 1e-3)
    error = float((actual - expected).abs().max()) / scale
    assert error < TOLERANCE[dtype], f"off by {error:.2e} of the largest value"
