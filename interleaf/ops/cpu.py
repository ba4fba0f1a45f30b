"""The ops on the native library.

While `graph` runs a model's forward pass, each op appends itself to a native program, with the addresses of its
buffers; nothing is computed. `CpuGraph.run` then replays the program in one native call.
"""

from __future__ import annotations

import copy
import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import interleaf._native as _native
from interleaf.errors import ConfigError
from interleaf.host_tensor import HostTensor, round_to_bfloat16
from interleaf.ops import (
    AttentionShape,
    BatchRows,
    Decoding,
    Graph,
    LogprobsOutput,
    ModelInput,
    SamplingInput,
    StepLayout,
    StepRows,
    StepSize,
    StepwiseDecoding,
)
from interleaf.ops.cpu_memory import VALUE_BYTES, Arena, Buffer, Scratch, WeightStore, address_of, view
from interleaf.ops.cpu_step import CpuStepLayout, Sampled
from interleaf.ops.cpu_weights import AnyLinear, CpuQuantized, WeightPacker, decoded
from interleaf.ops.immediate import ImmediateProgram

LEVEL_VARIABLE = "INTERLEAF_ISA"
"""Environment variable that forces an instruction level, for tests; see `interleaf._native.usable_levels()`."""

TOUCHED_AHEAD = 1 << 30
"""Bytes of the KV cache beyond what is in use that the system is asked for while a core is idle; half of it at most."""

_PAGE = 4096


def instruction_level() -> str:
    """The level in use: the best this machine has, unless the environment forces one.

    Raises:
        ConfigError: the environment names a level that this machine does not have.
    """
    levels = _native.usable_levels()
    level = os.environ.get(LEVEL_VARIABLE) or levels[-1]
    if level not in levels:
        raise ConfigError(f"{LEVEL_VARIABLE} is {level!r}, but this machine has {', '.join(levels)}.")
    return level


@dataclass(slots=True)
class CpuCache:
    """Keys and values of one layer: `block_bytes` at `address` for block 0, every `block_stride` for the others.

    All layers' caches lie in one memory, a block's layers side by side: memory is touched, and so taken from the
    system, as blocks come into use.
    """

    memory: _native.Memory
    address: int
    block_bytes: int
    block_stride: int
    table: _native.PagedCache
    group: int = 0


class CpuGraph:
    """A recorded forward pass.

    The program holds bare addresses: of the inputs, of the weights and caches that `forward` refers to, of the arena.
    All of them are kept alive here.
    """

    def __init__(self, ops: CpuOps, forward: Callable[[], Buffer | None], inputs: ModelInput, logits: bool) -> None:
        self._ops = ops
        self._kept = (forward, inputs)
        self.program = _native.Program()
        ops.program = self.program
        result = forward()
        self._logits = (result, _logits_of(result)) if logits else None

    def run(self, size: StepSize) -> np.ndarray | None:
        self._ops.run(self.program, size)
        return None if self._logits is None else self._logits[1][: size.num_logits]

    @property
    def logits(self) -> np.ndarray:
        """Where they are after a run: float32 [max logits, V]."""
        assert self._logits is not None
        return self._logits[1]


class CpuDecoding:
    """Two recorded passes and the sampling of their logits as one program."""

    def __init__(self, ops: CpuOps, body: CpuGraph, head: CpuGraph, sampled: Sampled) -> None:
        self._ops = ops
        self._kept = (body, head)
        self._sampled = sampled
        self._program = _native.Program()
        self._program.append(body.program)
        self._program.append(head.program)
        logits = head.logits
        self._program.sample(logits=address_of(logits), how=sampled.arrays, vocab_size=logits.shape[1])

    def run(self, layout: StepLayout, size: StepSize, num_steps: int, ending: frozenset[int]) -> list[list[int]]:
        assert isinstance(layout, CpuStepLayout)
        return self._ops.run_decode_steps(self._program, layout, size, self._sampled, num_steps, ending)


class EagerGraph:
    """A forward pass that is gone through anew in each step, for models that do something else with other data."""

    def __init__(self, ops: CpuOps, forward: Callable[[], Buffer | None], inputs: ModelInput, logits: bool) -> None:
        self._ops = ops
        self._forward = forward
        self._size = inputs.size
        self._logits = logits

    def run(self, size: StepSize) -> np.ndarray | None:
        self._size.num_tokens, self._size.num_sequences = size.num_tokens, size.num_sequences
        self._size.num_logits = size.num_logits
        self._ops.program = ImmediateProgram(self._ops.run, size)
        self._result = self._forward()
        return _logits_of(self._result)[: size.num_logits] if self._logits else None


def _logits_of(result: Buffer | None) -> np.ndarray:
    """All rows that there is room for, float32; they live as long as the caller keeps `result`."""
    assert result is not None, "a pass whose logits are wanted returns them"
    rows = result.memory.bytes // (4 * result.width)
    return view(result.memory, np.float32, rows * result.width).reshape(rows, result.width)


class CpuOps:
    """See `interleaf.ops.Ops` for what each op does.

    Args:
        dtype: "bfloat16" or "float32": of the arithmetic.
        threads: of the team.
        max_tokens, max_logits: rows that buffers are made for.
        vocab_size: sizes the sampler's working memory.
        quantization: of linear weights: None, "int8", "int4", or "gguf" for what the file has.
        kv_cache_dtype: "auto" is `dtype`; "int8" has one scale a token and head.
    """

    def __init__(
        self,
        dtype: str,
        threads: int,
        max_tokens: int,
        max_logits: int,
        vocab_size: int,
        quantization: str | None = None,
        kv_cache_dtype: str = "auto",
    ) -> None:
        self.dtype = _native.DType.float32 if dtype == "float32" else _native.DType.bfloat16
        self._cache_dtype = _native.DType.int8 if kv_cache_dtype == "int8" else self.dtype
        self._threads = threads
        self._attention_memory: dict[tuple[str, int], _native.Memory] = {}
        self.runtime = _native.Runtime(threads, instruction_level(), 24 * vocab_size)
        self.kernel_nanoseconds = 0
        self._packer = WeightPacker(self.runtime, WeightStore(), self.dtype, quantization)
        self._sampled: Sampled | None = None
        self._max_rows = {_native.Rows.TOKENS: max_tokens, _native.Rows.LOGITS: max_logits}
        self._arena = Arena()
        self.program: Any = _native.Program()

    def for_another_model(self, quantization: str | None) -> CpuOps:
        """Ops on the same threads and memory, for a model whose weights are quantized differently."""
        other = copy.copy(self)
        other._packer = replace(self._packer, quantization=quantization)
        other.kernel_nanoseconds = 0
        return other

    # Weights and caches

    def linear_weight(
        self,
        sources: Sequence[HostTensor],
        biases: Sequence[HostTensor] = (),
        interleaved: bool = False,
        head: bool = False,
    ) -> AnyLinear:
        return self._packer.pack(sources, biases, interleaved, head)

    def vector(self, source: HostTensor, plus: float = 0.0) -> np.ndarray:
        values = decoded(source)
        return values + np.float32(plus) if plus else values

    def table(self, values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values, np.float32)

    def new_caches(
        self, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int
    ) -> list[CpuCache]:
        tokens = num_kv_heads * block_size
        values = tokens * -(-head_dim // 16) * 16 * VALUE_BYTES[self._cache_dtype]
        scales = tokens * 4 if self._cache_dtype == _native.DType.int8 else 0
        layer_bytes = 2 * (values + scales)
        stride = _block_stride(num_layers * layer_bytes)
        memory = _native.Memory(num_blocks * stride)
        caches = []
        for layer in range(num_layers):
            address = memory.address + layer * layer_bytes
            table = _native.PagedCache(
                keys=address,
                values=address + values,
                key_scales=address + 2 * values,
                value_scales=address + 2 * values + scales,
                block_stride=stride,
                num_kv_heads=num_kv_heads,
                block_size=block_size,
                type=self._cache_dtype,
            )
            caches.append(CpuCache(memory, address, layer_bytes, stride, table))
        return caches

    def in_group(self, cache: CpuCache, group: int) -> CpuCache:
        return replace(cache, group=group)

    def copy_blocks(self, caches: Sequence[CpuCache], pairs: Sequence[tuple[int, int]]) -> None:
        for cache in caches:
            for source, destination in pairs:
                ctypes.memmove(
                    cache.address + destination * cache.block_stride,
                    cache.address + source * cache.block_stride,
                    cache.block_bytes,
                )

    def touch_ahead(self, caches: Sequence[CpuCache], num_blocks: int) -> None:
        memory = caches[0].memory
        memory.touch_ahead(num_blocks * caches[0].block_stride, min(TOUCHED_AHEAD, memory.bytes // 2))

    # The forward pass

    def _buffer(self, rows: _native.Rows, width: int, dtype: _native.DType) -> Buffer:
        return Buffer(self._arena, rows, self._max_rows[rows], width, dtype)

    def embedding(self, inputs: ModelInput, table: AnyLinear, scale: float = 1.0) -> Buffer:
        y = self._buffer(_native.Rows.TOKENS, table.k, _native.DType.float32)
        scale = scale if self.dtype == _native.DType.float32 else round_to_bfloat16(scale)
        if isinstance(table, CpuQuantized):
            ids = address_of(inputs.token_ids)
            self.program.embedding_quantized(ids=ids, table=table.table, y=y.address, scale=scale)
            return y
        self.program.embedding(
            ids=address_of(inputs.token_ids),
            table=table.address,
            y=y.address,
            width=table.k,
            scale=scale,
            table_type=table.dtype,
        )
        return y

    def take_rows(self, x: Buffer, inputs: ModelInput) -> Buffer:
        y = self._buffer(_native.Rows.LOGITS, x.width, x.dtype)
        self.program.take_rows(
            x=x.address,
            y=y.address,
            row_index=address_of(inputs.logits_index),
            row_bytes=x.width * VALUE_BYTES[x.dtype],
        )
        return y

    def rms_norm(self, x: Buffer, weight: np.ndarray, eps: float, exact: bool = False) -> Buffer:
        dtype = _native.DType.float32 if exact else self.dtype
        return self._rms_norm(x, weight, eps, self._buffer(x.rows, x.width, dtype))

    def rms_norm_add(self, x: Buffer, weight: np.ndarray, eps: float, residual: Buffer) -> Buffer:
        return self._rms_norm(x, weight, eps, residual, add=True)

    def _rms_norm(self, x: Buffer, weight: np.ndarray, eps: float, y: Buffer, add: bool = False) -> Buffer:
        self.program.rms_norm(
            rows=y.rows,
            x=x.address,
            weight=address_of(weight),
            y=y.address,
            width=x.width,
            eps=eps,
            y_type=y.dtype,
            add=add,
        )
        return y

    def linear(self, x: Buffer, weight: AnyLinear) -> Buffer:
        y = self._buffer(x.rows, weight.n, _native.DType.float32)
        return self._linear(x, weight, y, _native.Epilogue.STORE)

    def linear_add(self, x: Buffer, weight: AnyLinear, residual: Buffer) -> Buffer:
        return self._linear(x, weight, residual, _native.Epilogue.ADD)

    def linear_silu_mul(self, x: Buffer, weight: AnyLinear) -> Buffer:
        return self._linear(x, weight, self._buffer(x.rows, weight.n // 2, self.dtype), _native.Epilogue.SILU_MUL)

    def linear_gelu_mul(self, x: Buffer, weight: AnyLinear) -> Buffer:
        return self._linear(x, weight, self._buffer(x.rows, weight.n // 2, self.dtype), _native.Epilogue.GELU_MUL)

    def _linear(self, x: Buffer, weight: AnyLinear, y: Buffer, epilogue: _native.Epilogue) -> Buffer:
        if isinstance(weight, CpuQuantized):
            return self._linear_quantized(x, weight, y, epilogue)
        self.program.linear(
            rows=x.rows,
            x=x.address,
            weight=weight.address,
            bias=weight.bias_address,
            y=y.address,
            n=weight.n,
            k=weight.k,
            x_type=x.dtype,
            weight_type=weight.dtype,
            y_type=y.dtype,
            epilogue=epilogue,
        )
        return y

    def _linear_quantized(self, x: Buffer, weight: CpuQuantized, y: Buffer, epilogue: _native.Epilogue) -> Buffer:
        table, max_rows = weight.table, self._max_rows[x.rows]
        values = Scratch(self._arena, max_rows * table.k_padded)
        scales = Scratch(self._arena, max_rows * table.groups * 4)
        sums = Scratch(self._arena, max_rows * table.groups * 4)
        self.program.quantize(
            rows=x.rows,
            x=x.address,
            y=values.address,
            scales=scales.address,
            sums=sums.address,
            table=table,
            x_type=x.dtype,
        )
        self.program.linear_quantized(
            rows=x.rows,
            x=values.address,
            x_scales=scales.address,
            x_sums=sums.address,
            table=table,
            bias=weight.bias_address,
            y=y.address,
            y_type=y.dtype,
            epilogue=epilogue,
        )
        return y

    def soft_cap(self, x: Buffer, cap: float) -> Buffer:
        self.program.soft_cap(rows=x.rows, x=x.address, width=x.width, cap=cap)
        return x

    def rotary_cache(
        self,
        qkv: Buffer,
        shape: AttentionShape,
        cos_sin: np.ndarray,
        cache: CpuCache,
        inputs: ModelInput,
        q_norm: np.ndarray | None = None,
        k_norm: np.ndarray | None = None,
        eps: float = 0.0,
    ) -> Buffer:
        q = self._buffer(qkv.rows, shape.num_heads * shape.head_dim, self.dtype)
        inputs = inputs.of_group(cache.group)
        self.program.rotary_cache(
            qkv=qkv.address,
            q=q.address,
            cache=cache.table,
            q_norm=0 if q_norm is None else address_of(q_norm),
            k_norm=0 if k_norm is None else address_of(k_norm),
            cos_sin=address_of(cos_sin),
            positions=address_of(inputs.positions),
            slots=address_of(inputs.slots),
            num_heads=shape.num_heads,
            head_dim=shape.head_dim,
            rotary_dim=cos_sin.shape[1],
            eps=eps,
            type=self.dtype,
        )
        return q

    def attention(self, q: Buffer, shape: AttentionShape, cache: CpuCache, inputs: ModelInput) -> Buffer:
        y = self._buffer(q.rows, q.width, self.dtype)
        # Of layers with a window, blocks are given back; and tables of several groups differ.
        shares = not (shape.window or inputs.more_groups)
        inputs = inputs.of_group(cache.group)
        max_chunks = -(-inputs.block_tables.shape[1] * cache.table.block_size // _native.ATTENTION_CHUNK)
        self.program.attention(
            q=q.address,
            y=y.address,
            cache=cache.table,
            partials=self._memory_of(
                "partials", _native.attention_partials_bytes(self._threads, max_chunks, shape.head_dim)
            ),
            shared_states=self._memory_of(
                "shared", _native.attention_shared_bytes(shape.num_heads, shape.num_kv_heads, shape.head_dim)
            ),
            shared_chunks=address_of(inputs.shared_chunks) if shares else 0,
            shared_with=address_of(inputs.shared_with) if shares else 0,
            block_tables=address_of(inputs.block_tables),
            block_table_stride=inputs.block_tables.shape[1],
            sequence_rows=address_of(inputs.sequence_rows),
            query_start=address_of(inputs.query_start),
            context_lengths=address_of(inputs.context_lengths),
            num_heads=shape.num_heads,
            head_dim=shape.head_dim,
            max_chunks=max_chunks,
            window=shape.window,
            scale=shape.scale,
            soft_cap=shape.soft_cap,
            type=self.dtype,
        )
        return y

    def _memory_of(self, part: str, size: int) -> int:
        """Memory for a part of attention, zeroed at first, which all layers use one after the other."""
        if (part, size) not in self._attention_memory:
            self._attention_memory[part, size] = _native.Memory(size)
        return int(self._attention_memory[part, size].address)

    def graph(
        self, forward: Callable[[], Buffer | None], inputs: ModelInput, logits: bool, eager: bool = False
    ) -> CpuGraph | EagerGraph:
        return (EagerGraph if eager else CpuGraph)(self, forward, inputs, logits)

    def run(self, program: _native.Program, size: StepSize) -> None:
        """Run a recorded program, and count its time."""
        self.kernel_nanoseconds += self.runtime.run(program, size.num_tokens, size.num_logits, size.num_sequences)

    def run_decode_steps(
        self,
        program: _native.Program,
        layout: CpuStepLayout,
        size: StepSize,
        sampled: Sampled,
        num_steps: int,
        ending: frozenset[int],
    ) -> list[list[int]]:
        """See `Decoding.run`."""
        tokens, nanoseconds = self.runtime.run_decode_steps(
            program,
            layout.native,
            size.num_tokens,
            size.num_logits,
            size.num_sequences,
            sampled.arrays,
            num_steps,
            [*ending],
        )
        self.kernel_nanoseconds += nanoseconds
        return tokens

    # Sampling

    def decoding(self, body: Graph, head: Graph, sampling: SamplingInput, tokens: np.ndarray) -> Decoding:
        if isinstance(body, CpuGraph) and isinstance(head, CpuGraph):
            return CpuDecoding(self, body, head, Sampled(sampling, tokens))
        return StepwiseDecoding(self, body, head, sampling, tokens)

    def step_layout(self, batch: BatchRows, step: StepRows, inputs: ModelInput, block_size: int) -> CpuStepLayout:
        return CpuStepLayout(batch, step, inputs, block_size)

    def sample(self, logits: np.ndarray, sampling: SamplingInput) -> np.ndarray:
        if self._sampled is None or self._sampled.sampling is not sampling:
            self._sampled = Sampled(sampling, np.empty(len(sampling.temperatures), np.int32))
        rows, vocab_size = logits.shape
        self.kernel_nanoseconds += self.runtime.sample(address_of(logits), self._sampled.arrays, vocab_size, rows)
        return self._sampled.tokens[:rows].copy()

    def logprobs(self, logits: np.ndarray, rows: np.ndarray, tokens: np.ndarray, num_top: np.ndarray) -> LogprobsOutput:
        count, most = len(rows), int(num_top.max(initial=0))
        output = LogprobsOutput(
            chosen=np.empty(count, np.float32),
            ranks=np.empty(count, np.int32),
            top_tokens=np.zeros((count, most), np.int32),
            top_logprobs=np.zeros((count, most), np.float32),
        )
        rows, tokens, num_top = (np.ascontiguousarray(array, np.int32) for array in (rows, tokens, num_top))
        self.kernel_nanoseconds += self.runtime.logprobs(
            logits=address_of(logits),
            rows=address_of(rows),
            tokens=address_of(tokens),
            num_top=address_of(num_top),
            chosen_logprobs=address_of(output.chosen),
            chosen_ranks=address_of(output.ranks),
            top_tokens=address_of(output.top_tokens),
            top_logprobs=address_of(output.top_logprobs),
            top_stride=most,
            vocab_size=logits.shape[1],
            count=count,
        )
        return output


def _block_stride(num_bytes: int) -> int:
    """Bytes from one block to the next: no multiple of large powers of two, or all blocks would meet in a few sets of
    the processor's caches.
    """
    return num_bytes + _PAGE if num_bytes >= 32 * _PAGE and num_bytes % (4 * _PAGE) == 0 else num_bytes
