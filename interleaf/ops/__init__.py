"""The ops that layers and the worker call: one list, implemented once per platform.

`interleaf.ops.reference` is plain torch and says what each op means; `interleaf.ops.cpu` is the native library. Models
are written once against `Ops`. Arrays are opaque to them: a torch tensor for the reference, a place in an arena for
the native library, which records a model's forward pass once and replays it in every step.

Shapes: T tokens of the step, S sequences, L rows of logits, H query heads, G key-value heads, D values a head,
V words, N outputs and K inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from interleaf.host_tensor import HostTensor

Array = Any
"""An activation, or a small table beside the weights; opaque to layers and models."""

LinearWeight = Any
"""A weight [n, k] (and its bias) in the platform's layout."""

LayerCache = Any
"""One layer's paged keys and values; the layout is the platform's."""


SHARED_CHUNK = 256
"""Keys, by whose multiples sequences share their beginnings."""
MOST_SHARED = 1024


@dataclass(slots=True)
class StepSize:
    """How much of the input arrays one step uses."""

    num_tokens: int = 0
    num_sequences: int = 0
    num_logits: int = 0


@dataclass(frozen=True, slots=True)
class ModelInput:
    """The arrays a step is described by, allocated once and rewritten in place; int32 throughout.

    Fields:
        token_ids, positions: [max tokens].
        slots: [max tokens]: where each token's key and value go, block * block_size + offset.
        query_start: [max sequences + 1]: first token of each sequence.
        context_lengths: [max sequences]: keys of each sequence, this step's included.
        sequence_rows: [max sequences]: row of each sequence in `block_tables`.
        block_tables: [batch rows, blocks a sequence].
        logits_index: [max logits]: the tokens whose logits or hidden states are wanted.
        shared_chunks, shared_with: [max sequences]: a run of sequences that follow one another may have the first
            `shared_chunks` times `SHARED_CHUNK` keys in common, in the same blocks; `shared_with` is the run's first
            sequence. Tokens times chunks of all runs are at most `MOST_SHARED`.
        size: how much of all this is valid now.
        more_groups: the same for layers of further groups, with slots and block tables of their own.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    query_start: np.ndarray
    context_lengths: np.ndarray
    sequence_rows: np.ndarray
    block_tables: np.ndarray
    logits_index: np.ndarray
    shared_chunks: np.ndarray
    shared_with: np.ndarray
    size: StepSize = field(default_factory=StepSize)
    more_groups: tuple[ModelInput, ...] = ()

    def of_group(self, group: int) -> ModelInput:
        return self.more_groups[group - 1] if group else self


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What does not change from step to step.

    Fields:
        scale: scores are scale * q . k.
        window: keys a query sees, itself included; 0 is all.
        soft_cap: scores become soft_cap * tanh(score / soft_cap); 0 is none. (Gemma 2, 2024)
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    soft_cap: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Sequences by row of the batch.

    Fields:
        token_ids: int32 [rows, most tokens]; drafts behind the others.
        num_tokens, num_computed_tokens: int32 [rows]; without drafts.
        samples: bool [rows]: whether its next token is sampled once all are computed.
    """

    token_ids: np.ndarray
    num_tokens: np.ndarray
    num_computed_tokens: np.ndarray
    samples: np.ndarray


@dataclass(frozen=True, slots=True)
class StepRows:
    """The sequences of a step, and the tokens that are sampled in it; allocated once and rewritten in place; int32.

    Fields:
        rows: [max sequences]: in the batch, and in `ModelInput.block_tables`.
        counts, num_drafts: [max sequences]: tokens of this step, of which the last are drafts.
        starts, computed: [max sequences]: tokens that were computed before the step, and after it, without drafts.
        sample_places, sample_index: [max samples]: which sequence of the step, and the token of T whose logits count.
        sample_rows, sample_positions: [max samples]: row in the batch, and place in the sequence.
        sample_drafts: [max samples]: what it was guessed to be; -1 behind the last draft.
        tokens: [max logits]: what was sampled, for `advance`.
    """

    rows: np.ndarray
    counts: np.ndarray
    num_drafts: np.ndarray
    starts: np.ndarray
    computed: np.ndarray
    sample_places: np.ndarray
    sample_index: np.ndarray
    sample_rows: np.ndarray
    sample_positions: np.ndarray
    sample_drafts: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True, slots=True)
class SamplingInput:
    """How to pick the next token of each row of logits; each [L] or longer, where the rest counts for nothing."""

    temperatures: np.ndarray  # float32; 0 is greedy
    top_k: np.ndarray  # int32; 0 keeps all
    top_p: np.ndarray  # float32
    min_p: np.ndarray  # float32
    seeds: np.ndarray  # uint64
    positions: np.ndarray  # int32: of the token that is sampled


@dataclass(frozen=True, slots=True)
class LogprobsOutput:
    """Logprobs of n positions: of the chosen tokens, their ranks from 1, and the likeliest tokens in order."""

    chosen: np.ndarray  # float32 [n]
    ranks: np.ndarray  # int32 [n]
    top_tokens: np.ndarray  # int32 [n, most]
    top_logprobs: np.ndarray  # float32 [n, most]


class Graph(Protocol):
    """A forward pass that can be run again and again on the same `ModelInput`."""

    def run(self, size: StepSize) -> np.ndarray | None:
        """Run it for `size`; returns its result as float32 [num_logits, width] if `graph` was asked for it.

        On some platforms the next run overwrites it.
        """


class StepLayout(Protocol):
    """Fills the inputs of one step after the other, on the same arrays."""

    def write(self, num_sequences: int) -> tuple[int, int]:
        """Write a `ModelInput` for sequences with given `rows`, `counts` and `num_drafts`, and the rest of `StepRows`.

        Returns:
            T and L: how many tokens are computed and how many sampled.
        """

    def advance(self, num_sequences: int, num_samples: int) -> list[int]:
        """Put `StepRows.tokens` behind their sequences, and note what is computed, of a step without drafts.

        Returns:
            the tokens.
        """


class Decoding(Protocol):
    """Body, head and sampling of steps whose logits nothing else looks at."""

    def run(self, layout: StepLayout, size: StepSize, num_steps: int, ending: frozenset[int]) -> list[list[int]]:
        """Compute the step that is laid out and take in its tokens; then go on with these.

        Args:
            num_steps: in all, at most. If that is more than one, each sequence has one token, and is sampled.
            ending: tokens behind which the run ends, be they any sequence's.

        Returns:
            the tokens of each step, by sample.
        """


@dataclass(frozen=True, slots=True)
class StepwiseDecoding:
    """`Ops.decoding` where it cannot be done in one go."""

    ops: Ops
    body: Graph
    head: Graph
    sampling: SamplingInput
    tokens: np.ndarray

    def run(self, layout: StepLayout, size: StepSize, num_steps: int, ending: frozenset[int]) -> list[list[int]]:
        done: list[list[int]] = []
        while True:
            self.body.run(size)
            logits = self.head.run(size)
            assert logits is not None
            self.tokens[: size.num_logits] = self.ops.sample(logits, self.sampling)
            done.append(layout.advance(size.num_sequences, size.num_logits))
            if len(done) == num_steps or not ending.isdisjoint(done[-1]):
                return done
            layout.write(size.num_sequences)
            self.sampling.positions[: size.num_logits] += 1


class Ops(Protocol):
    """What a platform implements."""

    def linear_weight(
        self,
        sources: Sequence[HostTensor],
        biases: Sequence[HostTensor] = (),
        interleaved: bool = False,
        head: bool = False,
    ) -> LinearWeight:
        """Stack weights [n_i, k] (and biases [n_i]) into one.

        `interleaved`: a gate and an up projection. `head`: the word table or output head, which suffers most when it is
        quantized.
        """

    def vector(self, source: HostTensor, plus: float = 0.0) -> Array:
        """A norm's weight, as float32, with `plus` added to each value."""

    def table(self, values: np.ndarray) -> Array:
        """A float32 table that ops read, such as the cosines and sines of `rotary_cache`."""

    def new_caches(
        self, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int
    ) -> list[LayerCache]:
        """Each layer's empty cache."""

    def in_group(self, cache: LayerCache, group: int) -> LayerCache:
        """The same memory for a layer of another group, which finds its blocks by `ModelInput.of_group(group)`."""

    def copy_blocks(self, caches: Sequence[LayerCache], pairs: Sequence[tuple[int, int]]) -> None:
        """Copy block `source` to block `destination` in every layer, in order."""

    def touch_ahead(self, caches: Sequence[LayerCache], num_blocks: int) -> None:
        """Blocks below `num_blocks` are in use: have the memory of those that may come next at hand."""

    def embedding(self, inputs: ModelInput, table: LinearWeight, scale: float = 1.0) -> Array:
        """Rows of `table` by token id, times `scale` as the arithmetic's dtype has it: float32 [T, k]."""

    def rms_norm(self, x: Array, weight: Array, eps: float, exact: bool = False) -> Array:
        """x / sqrt(mean(x^2) + eps) * weight, in the arithmetic's dtype. (Zhang & Sennrich 2019)

        `exact` leaves it in float32.
        """

    def rms_norm_add(self, x: Array, weight: Array, eps: float, residual: Array) -> Array:
        """residual += x / sqrt(mean(x^2) + eps) * weight, in place and in float32; returns it."""

    def take_rows(self, x: Array, inputs: ModelInput) -> Array:
        """The rows of x [T, width] in `inputs.logits_index`: [L, width]."""

    def linear(self, x: Array, weight: LinearWeight) -> Array:
        """x . W^T + bias, as float32."""

    def linear_add(self, x: Array, weight: LinearWeight, residual: Array) -> Array:
        """residual += x . W^T + bias, in place; returns it."""

    def linear_silu_mul(self, x: Array, weight: LinearWeight) -> Array:
        """silu(x . Gate^T) * (x . Up^T) of an interleaved weight. (Shazeer 2020)"""

    def linear_gelu_mul(self, x: Array, weight: LinearWeight) -> Array:
        """The same with GELU in its tanh form, x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). (Hendrycks 2016)"""

    def soft_cap(self, x: Array, cap: float) -> Array:
        """cap * tanh(x / cap) of float32 x, in place; returns it. (Gemma 2, 2024)"""

    def rotary_cache(
        self,
        qkv: Array,
        shape: AttentionShape,
        cos_sin: Array,
        cache: LayerCache,
        inputs: ModelInput,
        q_norm: Array | None = None,
        k_norm: Array | None = None,
        eps: float = 0.0,
    ) -> Array:
        """Split qkv [T, (H + 2G) D], normalize and rotate q and k, write k and v to the cache; returns q [T, H D].

        Dimension i is rotated with i + rotary_dim / 2. (Su et al. 2021)
        """

    def attention(self, q: Array, shape: AttentionShape, cache: LayerCache, inputs: ModelInput) -> Array:
        """Causal attention over the paged cache: [T, H D]. (Kwon et al. 2023)"""

    def graph(
        self, forward: Callable[[], Array | None], inputs: ModelInput, logits: bool, eager: bool = False
    ) -> Graph:
        """Make `forward` repeatable: recorded where the platform can, or with `eager` gone through each time.

        `logits`: its result, float32 with a row for each of `inputs.logits_index`, is wanted on the host.
        """

    def decoding(self, body: Graph, head: Graph, sampling: SamplingInput, tokens: np.ndarray) -> Decoding:
        """`body`, `head` and `sample` in one go.

        Args:
            sampling: arrays that stay where they are; [max logits], as are `tokens` (int32), which get the result.
        """

    def step_layout(self, batch: BatchRows, step: StepRows, inputs: ModelInput, block_size: int) -> StepLayout:
        """A layout on these arrays, which must stay where they are."""

    def sample(self, logits: np.ndarray, sampling: SamplingInput) -> np.ndarray:
        """The next token of each row: int32 [L]."""

    def logprobs(self, logits: np.ndarray, rows: np.ndarray, tokens: np.ndarray, num_top: np.ndarray) -> LogprobsOutput:
        """Logprobs of `tokens[i]` and of the `num_top[i]` likeliest tokens in row `rows[i]`."""
