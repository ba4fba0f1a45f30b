"""What the scheduler knows of a request and of each sequence that it has become."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from interleaf.core.beam import num_candidates
from interleaf.core.block_hash import root_hash
from interleaf.core.structured import Grammar, GrammarState
from interleaf.messages import EngineRequest, FinishReason, NewRequest, TokenLogprobs
from interleaf.params import RequestOutputKind

NEWS_INTERVAL = 16
"""Tokens from one news of a sequence to the next, where nobody waits for them."""

PolicyOrder = tuple[int, int, int]
"""(priority, arrival, index): what is smaller is scheduled earlier and preempted later."""


class RequestStatus(Enum):
    """WAITING holds no blocks; RUNNING is known to the worker; FINISHED is known to nobody else."""

    WAITING = 0
    RUNNING = 1
    FINISHED = 2


@dataclass(slots=True, eq=False)
class RequestGroup:
    """One `EngineRequest` and its unfinished sequences, by index.

    While `has_pending_forks`, only sequence 0 exists: the others are made when its prompt is
    computed. Who wants nothing before the end, and cannot end the request by what it sees, `is_told_late`: every
    `NEWS_INTERVAL` tokens. `prompt_logprobs` gathers the entries of positions 1, 2, ... for sequence 0; None
    where they were not asked for, or are delivered.
    """

    source: EngineRequest
    priority: int
    arrival: int
    sequences: dict[int, Request] = field(default_factory=dict)
    has_pending_forks: bool = False
    prompt_logprobs: list[TokenLogprobs] | None = None
    grammar: Grammar | None = None
    is_beam_search: bool = field(init=False)
    is_told_late: bool = field(init=False)
    eos_token_ids: frozenset[int] = field(init=False)
    stop_token_ids: frozenset[int] = field(init=False)
    root_hash: bytes = field(init=False)

    def __post_init__(self) -> None:
        params = self.source.params
        self.is_beam_search = params.beam is not None
        waits = params.output_kind is RequestOutputKind.FINAL_ONLY and not params.stop_strings
        self.is_told_late = waits and params.logprobs is None
        self.eos_token_ids = frozenset(() if params.ignore_eos else self.source.eos_token_ids)
        self.stop_token_ids = frozenset(params.stop_token_ids or ())
        salt = self.source.cache_salt
        self.root_hash = root_hash([("cache_salt", salt)] if salt is not None else [])

    @property
    def num_candidates(self) -> int:
        """Next tokens that the worker tells of each beam; 0 without beam search."""
        beam = self.source.params.beam
        return 0 if beam is None else num_candidates(beam, len(self.eos_token_ids | self.stop_token_ids))

    def new_sequence(self, index: int) -> Request:
        """Make sequence `index`, which goes on behind what was already delivered of it."""
        source = self.source
        # Of a beam search nothing is delivered before its end.
        resumed = source.resumed_token_ids if not self.is_beam_search else None
        output = list(resumed[index]) if resumed else []
        grammar = None
        if self.grammar is not None:
            grammar = self.grammar.start(self.stop_token_ids, output, source.params.reasoning_markers)
        assert source.params.seed is not None, "the frontend sets every request's seed"
        request = Request(
            group=self,
            index=index,
            sequence_id=source.request_id if index == 0 else f"{source.request_id}.{index}",
            seed=wrap_seed(source.params.seed + index),
            order=(self.priority, self.arrival, index),
            prompt_token_ids=source.prompt_token_ids,
            output_token_ids=output,
            num_told=len(output),
            grammar=grammar,
        )
        self.sequences[index] = request
        return request


@dataclass(slots=True, eq=False)
class Request:
    """One sequence: its tokens, and how far they are computed.

    Fields:
        prompt_token_ids: shared by the group's sequences, so never written to.
        num_computed_tokens: tokens whose keys and values are in the cache when the steps
            scheduled so far are done and `update` has seen them.
        block_ids: the block table; it covers the computed tokens and those now being computed.
        more_tables: of further groups of layers, where there are several; what a window has left behind is the null
            block.
        num_dropped: of each group's table, the leading entries that are null.
        block_hashes: of the leading full blocks, as many as were needed so far.
        num_committed_blocks: leading blocks that were offered to the prefix cache.
        num_told: output tokens that the frontend has, or that are on their way there.
        num_cached_tokens: prompt tokens that the first admission found in the prefix cache.
        grammar: what the text must follow, behind its output tokens.
    """

    group: RequestGroup
    index: int
    sequence_id: str
    seed: int
    order: PolicyOrder
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    grammar: GrammarState | None = None
    status: RequestStatus = RequestStatus.WAITING
    num_computed_tokens: int = 0
    block_ids: list[int] = field(default_factory=list)
    more_tables: list[list[int]] = field(default_factory=list)
    num_dropped: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_committed_blocks: int = 0
    num_told: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def tokens_between(self, start: int, stop: int) -> list[int]:
        """Tokens at positions start..stop-1, without building the whole list."""
        num_prompt = len(self.prompt_token_ids)
        if stop <= num_prompt:
            return self.prompt_token_ids[start:stop]
        output = self.output_token_ids[max(start - num_prompt, 0) : stop - num_prompt]
        return self.prompt_token_ids[start:] + output if start < num_prompt else output

    @property
    def num_prompt_logprobs_done(self) -> int:
        """Prompt positions, from 1 on, whose logprobs the worker need not compute (again)."""
        if self.group.source.params.prompt_logprobs is None:
            return 0
        if self.index > 0 or self.group.prompt_logprobs is None:
            return self.num_prompt_tokens - 1
        return len(self.group.prompt_logprobs)

    @property
    def max_cached_tokens(self) -> int:
        """Most tokens that may come from the prefix cache.

        The last token is always computed, for its logits. So is every position whose logits a
        prompt logprob still needs: that of position p + 1 comes from position p. And a mean of
        hidden states needs them all.
        """
        if self.group.source.pooling == "mean":
            return 0
        done = self.num_prompt_logprobs_done
        if self.group.source.params.prompt_logprobs is not None and done < self.num_prompt_tokens - 1:
            return done
        return self.num_tokens - 1

    def room_for_drafts(self, max_total_tokens: int) -> int:
        """Most drafts of which each can be accepted with a token sampled behind it, if none stops the sequence."""
        room = max_total_tokens - self.num_tokens
        if self.group.source.params.max_tokens is not None:
            room = min(room, self.group.source.params.max_tokens - len(self.output_token_ids))
        return room - 1

    def stop_reason(self, max_total_tokens: int) -> tuple[FinishReason, int | None] | None:
        """Whether the last output token ends this sequence: (finish reason, stop reason), or None."""
        group = self.group
        params = group.source.params
        token_id = self.output_token_ids[-1]
        num_output = len(self.output_token_ids)
        if num_output >= params.min_tokens:
            if token_id in group.eos_token_ids:
                return FinishReason.STOP, None
            if token_id in group.stop_token_ids:
                return FinishReason.STOP, token_id
        if params.max_tokens is not None and num_output >= params.max_tokens:
            return FinishReason.LENGTH, None
        if len(self.prompt_token_ids) + num_output >= max_total_tokens:
            return FinishReason.LENGTH, None
        return None

    def untold(self, ends: bool) -> list[int] | None:
        """Output tokens to tell now; None to tell them later.

        The first is told at once: the request waits no longer, and its prompt is computed.
        """
        num_output = len(self.output_token_ids)
        if self.group.is_told_late and self.num_told and not ends and num_output - self.num_told < NEWS_INTERVAL:
            return None
        told, self.num_told = self.num_told, num_output
        return self.output_token_ids[told:]

    def as_new_request(self, fork_of: str | None = None) -> NewRequest:
        """This sequence whole, for a worker that does not hold it. Shares no list with it."""
        source = self.group.source
        return NewRequest(
            sequence_id=self.sequence_id,
            token_ids=self.prompt_token_ids + self.output_token_ids,
            num_prompt_tokens=self.num_prompt_tokens,
            num_computed_tokens=self.num_computed_tokens,
            block_ids=self.block_ids.copy(),
            params=source.params,
            seed=self.seed,
            eos_token_ids=source.eos_token_ids,
            bad_word_token_ids=source.bad_word_token_ids,
            num_prompt_logprobs_done=self.num_prompt_logprobs_done,
            fork_of=fork_of,
            pooling=source.pooling,
            cache_salt=source.cache_salt,
            num_candidates=self.group.num_candidates,
            more_block_ids=[table.copy() for table in self.more_tables],
        )


def wrap_seed(seed: int) -> int:
    """Fold into the signed 64 bits that the random number generator takes."""
    return (seed + 2**63) % 2**64 - 2**63
