"""The structs that cross a process border, and those that core and worker exchange.

They are msgspec structs encoded as arrays: small on the wire, fast to build. Direction of travel:

    frontend --EngineRequest--> core --SchedulerOutput--> worker
    frontend <--EngineOutputs-- core <----StepOutput----- worker

An engine in a process of its own is also sent, and answers, what `ToEngine` and `FromEngine` list.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import zip_longest
from typing import Protocol

import msgspec

from interleaf.config import EngineConfig
from interleaf.params import Pooling, SamplingParams


class FinishReason(IntEnum):
    """Why a sequence ended; `str()` gives the word that OpenAI's API uses."""

    STOP = 0
    LENGTH = 1
    ABORT = 2
    ERROR = 3

    def __str__(self) -> str:
        return self.name.lower()


class EngineRequest(msgspec.Struct, array_like=True, omit_defaults=True, tag=True):
    """One prompt on its way into the engine.

    `request_id` is unique in the engine's lifetime (the frontend makes it; the caller's own id
    stays there). `params.seed` is set. Sequence i of `params.n` samples with `params.seed + i`.
    With `grammar`, which is made of `params.structured_outputs`, the text follows it (see `interleaf.core.structured`).
    `resumed_token_ids` holds, per sequence, the output tokens that were already delivered: a
    replay after an engine died goes on behind them. With `pooling` the prompt's pooled hidden states
    are wanted and nothing is sampled; `params.n` is 1 then, and there are no prompt logprobs.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: list[int] = []
    bad_word_token_ids: list[list[int]] = []
    priority: int = 0
    arrival_time: float = 0.0
    cache_salt: str | None = None
    resumed_token_ids: list[list[int]] | None = None
    pooling: Pooling | None = None
    grammar: str | None = None


class NewRequest(msgspec.Struct, array_like=True, omit_defaults=True):
    """A sequence that the worker does not hold yet: just admitted, resumed, or forked.

    `token_ids` is the prompt and whatever was generated before a preemption. `block_ids` is the
    whole block table, of the first group of layers (`more_block_ids` are those of further groups).
    A fork (`fork_of` set) is given no tokens to compute in this step: its `num_computed_tokens` is
    already the prompt's length, and it samples from the logits of its
    parent's last token. Logprobs of the prompt positions 1 to `num_prompt_logprobs_done` are not
    wanted (again). With `pooling` it samples nothing: its hidden states are pooled, for which "mean"
    needs all of them, so that its `num_computed_tokens` is 0. With `num_candidates` it samples nothing
    either: its likeliest next tokens are wanted, at least so many, and the core picks. With a `cache_salt`
    nothing of it may be used for sequences of others.
    """

    sequence_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed_tokens: int
    block_ids: list[int]
    params: SamplingParams
    seed: int
    eos_token_ids: list[int] = []
    bad_word_token_ids: list[list[int]] = []
    num_prompt_logprobs_done: int = 0
    fork_of: str | None = None
    pooling: Pooling | None = None
    cache_salt: str | None = None
    num_candidates: int = 0
    more_block_ids: list[list[int]] = []

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]


class BlockTableUpdate(msgspec.Struct, array_like=True, omit_defaults=True):
    """Overwrites a sequence's block table (of one group of layers) from entry `start` on: new blocks, copied blocks."""

    sequence_id: str
    start: int
    block_ids: list[int]
    group: int = 0


@dataclass(frozen=True, slots=True)
class Misfit:
    """A sampled token that its grammar does not let through.

    Fields:
        offset: of the token, among those that were asked about.
        token_id: the only one that may stand there, if that is known.
    """

    offset: int
    token_id: int | None = None


class TokenGrammars(Protocol):
    """Which tokens may follow, for each sequence that is held to a grammar and samples in a step.

    Place 0 of a sequence is its next token; place i + 1 is the one behind its draft i.
    """

    @property
    def row_bytes(self) -> int:
        """Of a mask: bit t % 8 of byte t // 8 tells whether token t may follow."""

    def __contains__(self, sequence_id: str) -> bool: ...

    def first_misfit(self, sequence_id: str, place: int, token_ids: list[int]) -> Misfit | None:
        """The first of the tokens sampled for `place` and the places behind it that may not stand there.

        Those behind a token that is not the draft of its place do not count.
        """

    def fill(self, places: list[tuple[str, int]]) -> bytearray:
        """The mask of each (sequence, place), one behind the other; no sequence comes twice."""


class SchedulerOutput(msgspec.Struct, array_like=True, omit_defaults=True):
    """What the worker shall do in one step, as a difference to the step before.

    Applied in this order: removals, new requests, block table updates, block copies; then
    `num_scheduled_tokens[sequence_id]` further tokens of each named sequence are computed. A
    sequence whose tokens are then all computed samples its next token. `grammars` stay in this process.
    `picked_token_ids` are the tokens that the core has put behind sequences (that the worker holds) with
    `num_candidates`.

    `draft_token_ids[sequence_id]` are guesses at the tokens that will follow. They are computed behind the
    sequence's own tokens (which are then all in this step), and count in `total_num_scheduled_tokens`,
    not in `num_scheduled_tokens`. See docs/speculative_decoding.md.

    With `num_decode_steps` > 1 each of the sequences computes its last token, samples one, computes that, and so
    on: that many times, or until one of them may be at its end. There are then no drafts, new requests or
    grammars. See docs/scheduling.md.
    """

    step: int
    num_scheduled_tokens: dict[str, int]
    new_requests: list[NewRequest] = []
    block_table_updates: list[BlockTableUpdate] = []
    block_copies: list[tuple[int, int]] = []
    removed_sequence_ids: list[str] = []
    total_num_scheduled_tokens: int = 0
    draft_token_ids: dict[str, list[int]] = {}
    grammars: TokenGrammars | None = None
    picked_token_ids: dict[str, int] = {}
    num_decode_steps: int = 1


class BeamCandidates(msgspec.Struct, array_like=True):
    """The likeliest next tokens of a beam in order, with their logprobs."""

    token_ids: list[int]
    logprobs: list[float]


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Logprobs at one position: first the sampled (or prompt) token, then the likeliest ones.

    `rank` is the sampled token's, from 1.
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int


class StepOutput(msgspec.Struct, array_like=True, omit_defaults=True):
    """What a step produced: tokens by sequence, and logprobs where they were asked for.

    `prompt_logprobs[sequence_id]` is `(start, entries)`: the entries of prompt positions start,
    start + 1, ... (position p's entry tells of prompt token p, given the tokens before it; there
    is none for position 0). `pooled[sequence_id]` are the pooled hidden states (float32 values) of
    a sequence that wants them, in the step that computes its last token. `errors[sequence_id]` is
    why a sequence can bring nothing more. `candidates` are those of sequences with `num_candidates`.

    A sequence with drafts samples several tokens: the drafts that were accepted, and the one behind them.
    `draft_token_ids` are guesses at what follows `sampled_token_ids`, for the next step.

    `num_decode_steps` is how many were done of those that were scheduled as one.
    """

    step: int
    sampled_token_ids: dict[str, list[int]]
    logprobs: dict[str, list[TokenLogprobs]] = {}
    prompt_logprobs: dict[str, tuple[int, list[TokenLogprobs]]] = {}
    pooled: dict[str, list[float]] = {}
    errors: dict[str, str] = {}
    draft_token_ids: dict[str, list[int]] = {}
    candidates: dict[str, BeamCandidates] = {}
    num_decode_steps: int = 1


class EngineOutput(msgspec.Struct, array_like=True, omit_defaults=True):
    """News of one sequence (`index` of its request) since the last message.

    `scheduled_time`, in seconds of the monotonic clock (which all processes of a machine share), tells
    when the sequence was admitted; it travels with the first tokens after that, and is 0.0 else.
    `embedding` is what a request with `pooling` ends with: float32 values, not normalized.
    """

    request_id: str
    index: int
    new_token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    scheduled_time: float = 0.0
    embedding: list[float] | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


class SchedulerStats(msgspec.Struct, array_like=True, omit_defaults=True):
    """Gauges (as they are now) and counters (since the first engine of the program started).

    `num_used_token_slots` is left out of the news of steps. `num_drafts` counts sequences that had drafts in a step,
    the next two their tokens, and entry i of `num_accepted_tokens_per_pos` the accepted ones that were a draft's
    token i.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_used_token_slots: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    num_steps: int = 0
    num_restarts: int = 0
    sleeping: bool = False
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_tokens_per_pos: list[int] = []

    def only_counters(self) -> SchedulerStats:
        """The counters alone: what is left of an engine that is gone."""
        gone = dict.fromkeys(SCHEDULER_GAUGES, 0)
        return msgspec.structs.replace(self, **gone, sleeping=False)

    def behind(self, before: SchedulerStats) -> SchedulerStats:
        """These, with the counters of the engines before this one added."""
        if before == NO_STATS:
            return self
        names = [name for name in self.__struct_fields__ if name not in SCHEDULER_GAUGES and name != "sleeping"]
        names.remove("num_accepted_tokens_per_pos")
        return msgspec.structs.replace(
            self,
            num_accepted_tokens_per_pos=[
                a + b
                for a, b in zip_longest(
                    self.num_accepted_tokens_per_pos, before.num_accepted_tokens_per_pos, fillvalue=0
                )
            ],
            **{name: getattr(self, name) + getattr(before, name) for name in names},
        )

    @property
    def kv_cache_usage(self) -> float:
        """Share of the blocks that live sequences hold, 0 to 1."""
        return 1.0 - self.num_free_blocks / self.num_blocks if self.num_blocks else 0.0


NO_STATS = SchedulerStats()

SCHEDULER_GAUGES = ("num_running", "num_waiting", "num_blocks", "num_free_blocks", "num_used_token_slots")
"""Fields of `SchedulerStats` that start anew with a new engine."""


class EngineOutputs(msgspec.Struct, array_like=True, omit_defaults=True, tag=True):
    """News of one step, whose number is `step`.

    `num_tokens` were computed in it; only one of several front ends is told so, for them to count each once.
    """

    outputs: list[EngineOutput] = []
    stats: SchedulerStats | None = None
    step: int = -1
    num_tokens: int = 0


class Hello(msgspec.Struct, array_like=True, tag=True):
    """A front end is there; it is answered with `Ready` as soon as the engine can compute."""


class Vocabulary(msgspec.Struct, array_like=True, tag=True):
    """The tokens of a model, which an engine needs to hold texts to grammars; sent before the first request with one.

    Fields:
        tokenizer: as the `tokenizers` library writes it (JSON).
        size: token ids from 0; at least the model's.
        eos_token_ids: may follow where a text may end.
    """

    tokenizer: str
    size: int
    eos_token_ids: list[int]


class AbortRequests(msgspec.Struct, array_like=True, tag=True):
    """Drop whole requests; ids of others, or of those that have ended, are ignored."""

    request_ids: list[str]


class AbortSequences(msgspec.Struct, array_like=True, tag=True):
    """Drop single sequences, whose text has met a stop string."""

    sequence_ids: list[str]


class Ping(msgspec.Struct, array_like=True, tag=True):
    """Answered with a `Pong` of the same number even while a step is computed."""

    number: int


class Call(msgspec.Struct, array_like=True, tag=True):
    """Run one of the engine's utilities between two steps; answered with a `Reply` of the same number."""

    number: int
    utility: str


class Ready(msgspec.Struct, array_like=True, tag=True):
    """The engine has loaded its model.

    Fields:
        stats: as of now, with the counters of the engines before it.
        step_record: the file that tells what it computed when it died.
    """

    config: EngineConfig
    stats: SchedulerStats = msgspec.field(default_factory=SchedulerStats)
    step_record: str = ""


class StartFailure(msgspec.Struct, array_like=True, tag=True):
    """The engine cannot start: the name of one of our exceptions, and its sentence."""

    error: str
    message: str


class Pong(msgspec.Struct, array_like=True, tag=True):
    """The engine's process is alive; these tell whether it gets on.

    Fields:
        step_seconds: how long the loop has been away from its inbox; 0.0 if it waits there.
        cpu_seconds: processor time of the whole process since its start.
    """

    number: int
    step_seconds: float
    cpu_seconds: float


class Reply(msgspec.Struct, array_like=True, tag=True):
    """The result of a `Call`, or the sentence of its failure."""

    number: int
    value: bool | bytes | SchedulerStats | None = None
    error: str | None = None


ToEngine = Hello | Vocabulary | EngineRequest | AbortRequests | AbortSequences | Ping | Call
FromEngine = Ready | StartFailure | EngineOutputs | Pong | Reply
