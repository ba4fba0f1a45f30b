"""Weights of the native library: chosen formats, packed into one store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import interleaf._native as _native
from interleaf.host_tensor import BLOCK_TYPES, HostTensor
from interleaf.ops.cpu_memory import WeightStore, address_of


@dataclass(slots=True)
class CpuLinear:
    """A packed weight in the store of the ops that made it; see `csrc/kernels.h` for the layouts."""

    address: int
    n: int
    k: int
    dtype: _native.DType
    bias: np.ndarray | None

    @property
    def bias_address(self) -> int:
        return 0 if self.bias is None else address_of(self.bias)


@dataclass(slots=True)
class CpuQuantized:
    """A quantized weight: the table tells the kernels where its parts are in the store of the ops that made it."""

    table: _native.QuantizedTable
    n: int
    k: int
    bias: np.ndarray | None

    @property
    def bias_address(self) -> int:
        return 0 if self.bias is None else address_of(self.bias)


AnyLinear = CpuLinear | CpuQuantized


@dataclass(frozen=True, slots=True)
class WeightPacker:
    """Packs linear weights for the level in use.

    Fields:
        store: where they lie.
        dtype: of the arithmetic.
        quantization: of the weights; see `interleaf.ops.cpu.CpuOps`.
    """

    runtime: _native.Runtime
    store: WeightStore
    dtype: _native.DType
    quantization: str | None

    def pack(
        self,
        sources: Sequence[HostTensor],
        biases: Sequence[HostTensor] = (),
        interleaved: bool = False,
        head: bool = False,
    ) -> AnyLinear:
        """See `interleaf.ops.Ops.linear_weight`."""
        n, k = sum(source.shape[0] for source in sources), sources[0].shape[1]
        bias = _stack_biases([decoded(bias) for bias in biases], interleaved) if biases else None
        rows = [
            (address_of(source.data), source.dtype, source.shape[0], source.data.nbytes // source.shape[0])
            for source in sources
        ]
        format = self._format_of(sources, head)
        if format is not None:
            return self._pack_quantized(rows, n, k, format, interleaved, bias)
        # A float32 checkpoint keeps its bits in float32 arithmetic; all else is exact, or rounded once, in bf16.
        wide = self.dtype == _native.DType.float32 and any(source.dtype in ("float32", "float16") for source in sources)
        dtype = _native.DType.float32 if wide else _native.DType.bfloat16
        address = self.store.take(_native.packed_bytes(n, k, dtype, interleaved))
        self.runtime.pack_linear(sources=rows, k=k, type=dtype, interleaved=interleaved, destination=address)
        return CpuLinear(address, n, k, dtype, bias)

    def _format_of(self, sources: Sequence[HostTensor], head: bool) -> _native.Format | None:
        """How a weight of these sources is to be stored; None is as floats."""
        if self.quantization == "int8":
            return _native.Format.GROUP8 if head else _native.Format.INT8
        if self.quantization == "int4":
            return _native.Format.GROUP4_MIN
        if self.quantization is None or not all(source.dtype in BLOCK_TYPES for source in sources):
            return None
        formats = {_native.format_of(source.dtype) for source in sources}
        # Weights that are stored together in different types share the format that holds any of them closely.
        return formats.pop() if len(formats) == 1 else _native.Format.GROUP8

    def _pack_quantized(
        self,
        rows: list[tuple[int, str, int, int]],
        n: int,
        k: int,
        format: _native.Format,
        interleaved: bool,
        bias: np.ndarray | None,
    ) -> CpuQuantized:
        columns, size = _native.padded_columns(n, interleaved), _native.quantized_bytes(n, k, format, interleaved)
        group_bytes = columns * -(-k // 32) * 2
        sizes = {"values": size, "scales": 0, "compensation": 0, "group_scales": 0, "group_minima": 0}
        if format == _native.Format.INT8:
            sizes |= {"scales": columns * 4, "compensation": columns * 4}
        else:
            minima = group_bytes if format in (_native.Format.GROUP4_MIN, _native.Format.GROUP8_MIN) else 0
            sizes |= {"group_scales": group_bytes, "group_minima": minima}
        addresses = {name: self.store.take(count) for name, count in sizes.items()}
        table = _native.QuantizedTable(**addresses, n=n, k=k, format=format)
        self.runtime.pack_quantized(sources=rows, k=k, format=format, interleaved=interleaved, to=table)
        return CpuQuantized(table, n, k, bias)


def decoded(source: HostTensor) -> np.ndarray:
    """All values of a tensor, in float32."""
    values = np.empty(source.num_values, np.float32)
    _native.decode(source.dtype, address_of(source.data), source.num_values, address_of(values))
    return values


def _stack_biases(parts: Sequence[np.ndarray], interleaved: bool) -> np.ndarray:
    """Biases in the order of the packed columns, padded to whole panels where columns are interleaved."""
    if not interleaved:
        return np.concatenate(parts)
    gate, up = parts
    padded = -(-len(gate) // 16) * 16
    stacked = np.zeros((2, padded), np.float32)
    stacked[0, : len(gate)], stacked[1, : len(up)] = gate, up
    return np.ascontiguousarray(stacked.reshape(2, -1, 16).transpose(1, 0, 2)).reshape(-1)
