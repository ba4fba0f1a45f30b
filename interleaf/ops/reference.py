"""What each op means, in plain torch. Slow on purpose: it is read and compared with, not served from.

Activations are torch tensors with as many rows as the step has; caches are [blocks, block_size, G, D]. With dtype
bfloat16 values are rounded where the native library rounds them: norms' outputs, queries, keys, values, attention's
output and the gated activation; sums and the residual are float32. (The library rounds softmax weights as well; no one
rounding is the right one there.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from interleaf.host_tensor import HostTensor
from interleaf.ops import (
    AttentionShape,
    BatchRows,
    Graph,
    LogprobsOutput,
    ModelInput,
    SamplingInput,
    StepRows,
    StepSize,
    StepwiseDecoding,
)
from interleaf.ops.dequantize_reference import dequantize_f32
from interleaf.ops.step_layout_reference import ReferenceStepLayout


@dataclass(slots=True)
class ReferenceLinear:
    """A weight [n, k] in float32, holding values of the checkpoint's precision (at most bf16 when quantized)."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def n(self) -> int:
        return self.weight.shape[0]

    @property
    def k(self) -> int:
        return self.weight.shape[1]


@dataclass(slots=True)
class ReferenceCache:
    """Keys and values of one layer, each [blocks, block_size, G, D]."""

    keys: torch.Tensor
    values: torch.Tensor
    group: int = 0


@dataclass(slots=True)
class ReferenceGraph:
    forward: Callable[[], torch.Tensor | None]
    inputs: ModelInput
    logits: bool

    def run(self, size: StepSize) -> np.ndarray | None:
        self.inputs.size.num_tokens = size.num_tokens
        self.inputs.size.num_sequences = size.num_sequences
        self.inputs.size.num_logits = size.num_logits
        with torch.inference_mode():
            result = self.forward()
        return result.numpy() if self.logits and result is not None else None


def decode(source: HostTensor) -> torch.Tensor:
    """A checkpoint's tensor as float32."""
    raw = np.array(source.data)
    if source.dtype == "float32":
        values = torch.from_numpy(raw.view(np.float32))
    elif source.dtype == "float16":
        values = torch.from_numpy(raw.view(np.float16)).float()
    elif source.dtype == "bfloat16":
        values = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16).float()
    else:
        values = torch.from_numpy(dequantize_f32(source.dtype, raw))
    return values.reshape(source.shape)


class ReferenceOps:
    """See `interleaf.ops.Ops` for what each op does."""

    def __init__(self, dtype: str, kv_cache_dtype: str = "auto") -> None:
        self._int8_cache = kv_cache_dtype == "int8"
        self.dtype = torch.float32 if dtype == "float32" else torch.bfloat16

    def _round(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.dtype).float()

    # Weights and caches

    def linear_weight(
        self,
        sources: Sequence[HostTensor],
        biases: Sequence[HostTensor] = (),
        interleaved: bool = False,
        head: bool = False,
    ) -> ReferenceLinear:
        weight = torch.cat([decode(source) for source in sources])
        exact = self.dtype == torch.float32 and any(source.dtype in ("float32", "float16") for source in sources)
        if not exact:
            weight = weight.bfloat16().float()
        return ReferenceLinear(weight, torch.cat([decode(bias) for bias in biases]) if biases else None)

    def vector(self, source: HostTensor, plus: float = 0.0) -> torch.Tensor:
        return decode(source).reshape(-1) + plus

    def table(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    def new_caches(
        self, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int
    ) -> list[ReferenceCache]:
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        return [ReferenceCache(torch.zeros(shape), torch.zeros(shape)) for _ in range(num_layers)]

    def _as_cached(self, heads: torch.Tensor) -> torch.Tensor:
        """Keys or values [T, G, D] with the precision that the cache holds."""
        if not self._int8_cache:
            return self._round(heads)
        most = heads.abs().amax(-1, keepdim=True)
        inverse = torch.where(most > 0, 127 / most, 0.0)
        return torch.round(heads * inverse) * (most / 127)

    def in_group(self, cache: ReferenceCache, group: int) -> ReferenceCache:
        return replace(cache, group=group)

    def copy_blocks(self, caches: Sequence[ReferenceCache], pairs: Sequence[tuple[int, int]]) -> None:
        for cache in caches:
            for source, destination in pairs:
                cache.keys[destination] = cache.keys[source]
                cache.values[destination] = cache.values[source]

    def touch_ahead(self, caches: Sequence[ReferenceCache], num_blocks: int) -> None:
        """Nothing: the caches are written when they are made."""

    # The forward pass

    def embedding(self, inputs: ModelInput, table: ReferenceLinear, scale: float = 1.0) -> torch.Tensor:
        return (
            table.weight[torch.from_numpy(inputs.token_ids[: inputs.size.num_tokens]).long()]
            * torch.tensor(scale, dtype=self.dtype).float()
        )

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, exact: bool = False) -> torch.Tensor:
        normalized = _normalize(x, weight, eps)
        return normalized if exact else self._round(normalized)

    def rms_norm_add(self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor) -> torch.Tensor:
        return residual.add_(_normalize(x, weight, eps))

    def take_rows(self, x: torch.Tensor, inputs: ModelInput) -> torch.Tensor:
        return x[torch.from_numpy(inputs.logits_index[: inputs.size.num_logits]).long()]

    def linear(self, x: torch.Tensor, weight: ReferenceLinear) -> torch.Tensor:
        return torch.nn.functional.linear(x, weight.weight, weight.bias)

    def linear_add(self, x: torch.Tensor, weight: ReferenceLinear, residual: torch.Tensor) -> torch.Tensor:
        return residual.add_(self.linear(x, weight))

    def linear_silu_mul(self, x: torch.Tensor, weight: ReferenceLinear) -> torch.Tensor:
        gate, up = self.linear(x, weight).chunk(2, dim=-1)
        return self._round(torch.nn.functional.silu(gate) * up)

    def linear_gelu_mul(self, x: torch.Tensor, weight: ReferenceLinear) -> torch.Tensor:
        gate, up = self.linear(x, weight).chunk(2, dim=-1)
        return self._round(torch.nn.functional.gelu(gate, approximate="tanh") * up)

    def soft_cap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        return x.copy_(torch.tanh(x / cap) * cap)

    def rotary_cache(
        self,
        qkv: torch.Tensor,
        shape: AttentionShape,
        cos_sin: torch.Tensor,
        cache: ReferenceCache,
        inputs: ModelInput,
        q_norm: torch.Tensor | None = None,
        k_norm: torch.Tensor | None = None,
        eps: float = 0.0,
    ) -> torch.Tensor:
        heads, kv_heads = shape.num_heads, shape.num_kv_heads
        by_head = qkv.view(len(qkv), -1, shape.head_dim)
        q, k, v = by_head[:, :heads], by_head[:, heads : heads + kv_heads], by_head[:, heads + kv_heads :]
        position = cos_sin[torch.from_numpy(inputs.positions[: len(qkv)]).long()][:, None, :]
        q = self._round(_rotate(_normalize(q, q_norm, eps), position))
        slots = torch.from_numpy(inputs.of_group(cache.group).slots[: len(qkv)]).long()
        cache.keys.view(-1, kv_heads, shape.head_dim)[slots] = self._as_cached(
            _rotate(_normalize(k, k_norm, eps), position)
        )
        cache.values.view(-1, kv_heads, shape.head_dim)[slots] = self._as_cached(v)
        return q.reshape(len(qkv), -1)

    def attention(
        self, q: torch.Tensor, shape: AttentionShape, cache: ReferenceCache, inputs: ModelInput
    ) -> torch.Tensor:
        y = torch.empty_like(q)
        inputs = inputs.of_group(cache.group)
        for sequence in range(inputs.size.num_sequences):
            begin, end = inputs.query_start[sequence], inputs.query_start[sequence + 1]
            y[begin:end] = self._attend_one(q[begin:end], sequence, shape, cache, inputs)
        return y

    def _attend_one(
        self, q: torch.Tensor, sequence: int, shape: AttentionShape, cache: ReferenceCache, inputs: ModelInput
    ) -> torch.Tensor:
        length = int(inputs.context_lengths[sequence])
        blocks = torch.from_numpy(inputs.block_tables[inputs.sequence_rows[sequence]]).long()
        blocks = blocks[: -(-length // cache.keys.shape[1])]
        keys = cache.keys[blocks].flatten(0, 1)[:length].repeat_interleave(shape.num_heads // shape.num_kv_heads, dim=1)
        values = cache.values[blocks].flatten(0, 1)[:length]
        values = values.repeat_interleave(shape.num_heads // shape.num_kv_heads, dim=1)
        queries = q.view(len(q), shape.num_heads, shape.head_dim)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * shape.scale
        if shape.soft_cap:
            scores = shape.soft_cap * torch.tanh(scores / shape.soft_cap)
        distance = (length - len(q) + torch.arange(len(q)))[:, None] - torch.arange(length)[None, :]
        hidden = (distance < 0) | ((distance >= shape.window) if shape.window else torch.tensor(False))
        weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
        return self._round(torch.einsum("hqk,khd->qhd", weights, values).reshape(len(q), -1))

    def graph(
        self, forward: Callable[[], torch.Tensor | None], inputs: ModelInput, logits: bool, eager: bool = False
    ) -> ReferenceGraph:
        return ReferenceGraph(forward, inputs, logits)

    # Around the forward pass

    def decoding(self, body: Graph, head: Graph, sampling: SamplingInput, tokens: np.ndarray) -> StepwiseDecoding:
        return StepwiseDecoding(self, body, head, sampling, tokens)

    def step_layout(self, batch: BatchRows, step: StepRows, inputs: ModelInput, block_size: int) -> ReferenceStepLayout:
        return ReferenceStepLayout(batch, step, inputs, block_size)

    def sample(self, logits: np.ndarray, sampling: SamplingInput) -> np.ndarray:
        tokens = np.empty(len(logits), np.int32)
        for row, values in enumerate(torch.from_numpy(np.array(logits)).double()):
            temperature = float(sampling.temperatures[row])
            if temperature <= 0.0:
                tokens[row] = int(values.argmax())
                continue
            weights = kept_weights(
                values / temperature, int(sampling.top_k[row]), float(sampling.top_p[row]), float(sampling.min_p[row])
            )
            noise = uniform(int(sampling.seeds[row]), int(sampling.positions[row]))
            reached = weights.cumsum(0)
            tokens[row] = int(torch.searchsorted(reached, noise * reached[-1], right=True))
        return tokens

    def logprobs(self, logits: np.ndarray, rows: np.ndarray, tokens: np.ndarray, num_top: np.ndarray) -> LogprobsOutput:
        values = torch.from_numpy(np.array(logits))[torch.from_numpy(np.asarray(rows)).long()]
        logprobs = torch.log_softmax(values.double(), dim=-1).float()
        chosen = torch.from_numpy(np.asarray(tokens)).long()[:, None]
        most = int(num_top.max(initial=0))
        order = torch.sort(logprobs, dim=-1, descending=True, stable=True)
        return LogprobsOutput(
            chosen=logprobs.gather(1, chosen)[:, 0].numpy(),
            ranks=((values > values.gather(1, chosen)).sum(-1) + 1).int().numpy(),
            top_tokens=order.indices[:, :most].int().numpy(),
            top_logprobs=order.values[:, :most].numpy(),
        )


def kept_weights(logits: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Unnormalized weights after min_p, top_k and top_p, in this order; ties go to the lower token id."""
    weights = torch.exp(logits - logits.max())
    weights = torch.where(weights >= min_p, weights, 0.0)
    order = torch.sort(weights, descending=True, stable=True).indices
    if 0 < top_k < len(weights):
        weights[order[top_k:]] = 0.0
    if top_p < 1.0:
        before = weights[order].cumsum(0) - weights[order]
        weights[order[before >= top_p * weights.sum()]] = 0.0
    return weights


def uniform(seed: int, position: int) -> float:
    """Philox 4x32-10 of (seed, position) as a number in [0, 1). (Salmon et al. 2011)"""
    mask = 0xFFFFFFFF
    counter = [position & mask, position >> 32 & mask, 0, 0]
    key = [seed & mask, seed >> 32 & mask]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [b >> 32 ^ counter[1] ^ key[0], b & mask, a >> 32 ^ counter[3] ^ key[1], a & mask]
        key = [key[0] + 0x9E3779B9 & mask, key[1] + 0xBB67AE85 & mask]
    return ((counter[1] << 32 | counter[0]) >> 11) * 2.0**-53


def _normalize(heads: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    if weight is None:
        return heads
    return heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + eps) * weight


def _rotate(heads: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    rotary_dim = cos_sin.shape[-1]
    cos, sin = cos_sin.chunk(2, dim=-1)
    a, b = heads[..., :rotary_dim].chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, heads[..., rotary_dim:]], dim=-1)
