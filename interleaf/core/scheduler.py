"""Which tokens are computed in each step, and what becomes of the results.

There is no prefill phase and no decode phase: each sequence has computed tokens that catch up with
its total, within a budget of tokens a step. See docs/scheduling.md.
"""

from __future__ import annotations

import copy

from interleaf.config import CacheConfig, SchedulerConfig
from interleaf.core.beam_searches import BeamSearches
from interleaf.core.decode_runs import DecodeRuns
from interleaf.core.drafts import Drafts
from interleaf.core.grouped_kv_manager import GroupedKVManager
from interleaf.core.kv_manager import KVManager
from interleaf.core.request import Request, RequestGroup
from interleaf.core.room import check_room, longest_beam
from interleaf.core.sequences import Sequences
from interleaf.core.structured import Grammar
from interleaf.core.token_checks import HeldSequence
from interleaf.errors import RequestError
from interleaf.messages import (
    EngineOutput,
    EngineRequest,
    FinishReason,
    SchedulerOutput,
    SchedulerStats,
    StepOutput,
)


class Scheduler:
    """Owns every unfinished sequence; `schedule` and `update` take turns.

    Running and waiting sequences are sorted by `Request.order`. So whoever is preempted is the last
    of those that run, never one that this step has already scheduled, and a preempted sequence goes
    back to the front of those that wait.

    A sequence that outgrows the whole pool ends with `FinishReason.LENGTH`, as it does at
    max_model_len: whatever else runs, so that its output does not depend on its neighbours. Hence
    a sequence that runs alone always finds blocks, and every step with work schedules something.
    """

    def __init__(self, scheduler_config: SchedulerConfig, cache_config: CacheConfig) -> None:
        self._config = scheduler_config
        self._cache_config = cache_config
        self._max_total_tokens = min(scheduler_config.max_model_len, cache_config.num_slots + 1)
        self._stats = SchedulerStats(num_blocks=cache_config.num_blocks)
        self._num_arrivals = 0
        self._kv = KVManager(cache_config) if cache_config.layout.is_plain else GroupedKVManager(cache_config)
        self._sequences = Sequences(self._kv)
        self._searches = BeamSearches(self._sequences, self._kv)
        self._drafts = Drafts(
            self._sequences, self._kv, scheduler_config.max_num_batched_tokens, self._max_total_tokens, self._stats
        )
        self._decode_runs = DecodeRuns(self._sequences, self._kv, self._max_total_tokens)
        assert scheduler_config.enable_chunked_prefill or (
            scheduler_config.max_num_batched_tokens >= scheduler_config.max_model_len
        ), "without chunked prefill every prompt must fit in one step"

    def add_request(self, engine_request: EngineRequest, grammar: Grammar | None = None) -> None:
        """Queue a request; `grammar` is its own, compiled.

        With `resumed_token_ids` its sequences go on behind the tokens that were already delivered;
        those that had ended with them are left out, as their finish reason was delivered too.

        Raises:
            RequestError: the prompt is empty, or `resumed_token_ids` does not match `n`.
            PromptTooLongError: the prompt leaves no room for a token, in the context or the cache.
        """
        params, resumed = engine_request.params, engine_request.resumed_token_ids
        assert engine_request.request_id not in self._sequences.groups, "request ids are unique"
        check_room(engine_request, self._config, self._cache_config)
        if resumed and len(resumed) != params.n:
            raise RequestError(f"resumed_token_ids has {len(resumed)} lists for n={params.n} sequences.")
        priority = engine_request.priority if self._config.policy == "priority" else 0
        group = RequestGroup(engine_request, priority, self._num_arrivals, grammar=grammar)
        self._num_arrivals += 1
        if any(resumed or ()):
            self._add_resumed(group)
            return
        if params.prompt_logprobs is not None:
            group.prompt_logprobs = []
        if params.beam is not None:
            longest = longest_beam(params, len(engine_request.prompt_token_ids), self._cache_config)
            self._searches.enqueue(group, min(self._max_total_tokens, longest))
            return
        group.has_pending_forks = params.n > 1
        self._sequences.enqueue(group.new_sequence(0))

    def abort(self, request_ids: list[str]) -> None:
        """End whole requests, with all their sequences. Unknown ids are ignored."""
        for request_id in request_ids:
            group = self._sequences.groups.get(request_id)
            if group is not None:
                (self._searches if group.is_beam_search else self._sequences).end(group)

    def abort_sequences(self, sequence_ids: list[str]) -> None:
        """End single sequences; their siblings go on. Unknown ids, and those of beams, are ignored."""
        for sequence_id in sequence_ids:
            request = self._sequences.by_id.get(sequence_id)
            if request is not None and not request.group.is_beam_search:
                if request.group.has_pending_forks:
                    self._queue_forks(request.group, 1)
                self._sequences.retire(request)

    def schedule(self, longest_run: int = 1) -> SchedulerOutput:
        """Choose the tokens of the next step. Call while `has_unfinished()`.

        Args:
            longest_run: decode steps that may be done as one. See `DecodeRuns`.
        """
        output = SchedulerOutput(self._stats.num_steps, {})
        self._stats.num_steps += 1
        num_preemptions = self._stats.num_preemptions
        reserved = self._schedule_running(output)
        if self._stats.num_preemptions == num_preemptions:
            self._schedule_waiting(output, reserved)
        self._drafts.schedule(output)
        self._decode_runs.schedule(output, longest_run)
        output.removed_sequence_ids = self._sequences.take_removed_ids()
        self._searches.tell(output)
        return output

    def held_sequences(self, scheduled: SchedulerOutput) -> list[HeldSequence]:
        """The sequences with a grammar that will sample in a step."""
        if not self._sequences.num_structured:
            return []
        forks = (new.sequence_id for new in scheduled.new_requests if new.fork_of is not None)
        return [
            HeldSequence(sequence_id, request.grammar, scheduled.draft_token_ids.get(sequence_id, []))
            for sequence_id in (*scheduled.num_scheduled_tokens, *forks)
            if (request := self._sequences.by_id[sequence_id]).grammar is not None
            and request.num_computed_tokens + scheduled.num_scheduled_tokens.get(sequence_id, 0) == request.num_tokens
        ]

    def update(self, scheduler_output: SchedulerOutput, step_output: StepOutput) -> list[EngineOutput]:
        """Take in a step's results; return the news of each sequence that has some.

        Sequences that were aborted since `schedule` are skipped.
        """
        assert scheduler_output.step == step_output.step, "steps are updated in the order they were scheduled"
        outputs: list[EngineOutput] = []
        sequences, drafts = self._sequences.by_id, scheduler_output.draft_token_ids
        for sequence_id, num_tokens in scheduler_output.num_scheduled_tokens.items():
            request = sequences.get(sequence_id)
            if request is not None:
                request.num_computed_tokens += num_tokens
                num_drafts = len(drafts.get(sequence_id, ())) if drafts else 0
                self._collect(request, step_output, outputs, num_drafts or step_output.num_decode_steps - 1)
                if step_output.num_decode_steps < scheduler_output.num_decode_steps:
                    self._kv.trim(request)
                if num_drafts:
                    self._drafts.tried(request, num_drafts, len(step_output.sampled_token_ids[sequence_id]) - 1)
        for new in scheduler_output.new_requests:
            if new.fork_of is not None and new.sequence_id in sequences:
                self._collect(sequences[new.sequence_id], step_output, outputs)
        self._drafts.guessed(step_output.draft_token_ids)
        return outputs

    def has_unfinished(self) -> bool:
        """Whether any sequence runs or waits. Removals that the worker has not seen don't count."""
        return bool(self._sequences.by_id)

    def has_request(self, request_id: str) -> bool:
        """Whether any sequence of the request is unfinished."""
        return request_id in self._sequences.groups

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes; False, and nothing done, while any block is in use."""
        return self._kv.reset_prefix_cache()

    def suspend(self) -> None:
        """Let go of all blocks, whose contents are about to be lost: running sequences wait to be recomputed."""
        while self._sequences.running:
            self._preempt(self._sequences.running[-1])
        self._kv.reset_prefix_cache()

    def block_map(self) -> bytes:
        """See `BlockPool.block_map`."""
        return self._kv.pool.block_map()

    def stats(self, slots: bool = True) -> SchedulerStats:
        """Gauges and counters as of now.

        Args:
            slots: whether to count the token slots in use, which costs one visit to each running sequence.
        """
        self._stats.num_running = len(self._sequences.running)
        self._stats.num_waiting = len(self._sequences.waiting)
        self._stats.num_free_blocks = self._kv.pool.num_free
        stats = copy.copy(self._stats)
        if slots:
            stats.num_used_token_slots = self._kv.num_used_token_slots(self._sequences.running)
        stats.num_accepted_tokens_per_pos = self._stats.num_accepted_tokens_per_pos.copy()
        return stats

    def check_invariants(self) -> None:
        """Assert that queues, groups and blocks agree; for tests, and for an idle engine."""
        assert len(self._sequences.running) <= self._config.max_num_seqs
        self._sequences.check_invariants()
        self._searches.check_invariants()

    def _add_resumed(self, group: RequestGroup) -> None:
        """Queue what is left of a replayed request.

        Prompt logprobs travel with sequence 0's first token; if that was not delivered, they are due.
        """
        source = group.source
        if source.params.prompt_logprobs is not None and source.resumed_token_ids and not source.resumed_token_ids[0]:
            group.prompt_logprobs = []
        for index in range(source.params.n):
            request = group.new_sequence(index)
            if request.output_token_ids and request.stop_reason(self._max_total_tokens) is not None:
                del group.sequences[index]
            else:
                self._sequences.enqueue(request)

    def _schedule_running(self, output: SchedulerOutput) -> int:
        """Schedule running sequences in order; return the blocks that their prompts still need."""
        running = self._sequences.running
        scheduled = output.num_scheduled_tokens
        budget = self._config.max_num_batched_tokens
        threshold = self._config.long_prefill_token_threshold or budget
        num_blocks_needed = self._kv.num_blocks_needed
        forking = []
        reserved = 0
        index = 0
        while index < len(running) and budget > 0:
            request = running[index]
            left = request.num_tokens - request.num_computed_tokens
            if request.group.is_beam_search:
                if not left:
                    # It waits for the candidates of its siblings.
                    index += 1
                    continue
                if not self._make_room(request.group):
                    break
            num_tokens = min(left, budget, threshold)
            if num_blocks_needed(request, num_tokens) and not self._grow(request, num_tokens, output):
                break
            scheduled[request.sequence_id] = num_tokens
            budget -= num_tokens
            if num_tokens < left:
                reserved += self._kv.num_blocks_missing(request, request.num_computed_tokens + num_tokens)
            elif request.group.has_pending_forks:
                forking.append(request)
            index += 1
        output.total_num_scheduled_tokens = self._config.max_num_batched_tokens - budget
        for request in forking:
            self._fork(request, output)
        return reserved

    def _grow(self, request: Request, num_tokens: int, output: SchedulerOutput) -> bool:
        """Get a running sequence its blocks, preempting from the tail; False if that was itself.

        What is needed changes with each preemption: a shared block may become the sequence's own.
        """
        while (needed := self._kv.num_blocks_needed(request, num_tokens)) > self._kv.pool.num_free:
            assert len(self._sequences.running) > 1, "a sequence that runs alone fits in the pool"
            victim = self._sequences.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        if needed:
            start = self._kv.allocate(request, num_tokens, output.block_copies)
            output.block_table_updates += self._kv.table_updates(request, start)
        return True

    def _make_room(self, group: RequestGroup) -> bool:
        """Get blocks for all beams that have a token to compute, before any is scheduled; False if these went."""
        beams = self._searches.beams(group)
        missing = [one for one in beams if one.num_computed_tokens < one.num_tokens]
        most = sum(one.num_tokens - one.num_computed_tokens for one in missing)
        if len(beams) == 1 or most * self._kv.blocks_per_entry <= self._kv.pool.num_free:
            return True
        while self._kv.num_blocks_needed_together(missing) > self._kv.pool.num_free:
            victim = self._sequences.running[-1]
            self._preempt(victim)
            if victim.group is group:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        """Back to the waiting queue without blocks, to be recomputed from its tokens."""
        self._stats.num_preemptions += 1
        if request.group.is_beam_search:
            self._searches.preempt(request.group)
        else:
            request.num_preemptions += 1
            self._sequences.requeue(request)

    def _schedule_waiting(self, output: SchedulerOutput, reserved: int) -> None:
        """Admit waiting sequences in order, up to the first that can't be.

        A sequence starts only when all its tokens fit beside the `reserved` blocks of prompts in
        progress; else it would soon be preempted, or preempt others. Nor does one start that would compute
        what this step computes for another: it waits until that is cached.
        """
        config = self._config
        block_size = self._kv.block_size
        coming = self._hashes_filled(output) if self._sequences.waiting else set()
        while self._sequences.waiting and self._num_free_seats():
            budget = config.max_num_batched_tokens - output.total_num_scheduled_tokens
            if not budget:
                break
            request = self._sequences.waiting[0]
            cached = self._kv.cached_prefix(request)
            left = request.num_tokens - len(cached) * block_size
            if not config.enable_chunked_prefill:
                num_tokens = left if left <= budget else 0
            else:
                num_tokens = min(left, budget, config.long_prefill_token_threshold or left)
            if not num_tokens or not self._kv.can_admit(request, cached, reserved):
                break
            if request.group.is_beam_search and not self._can_begin(request.group, reserved):
                break
            if self._kv.first_miss(request, cached) in coming:
                break
            self._admit(request, cached, num_tokens, output)
            coming.update(self._kv.hashes_filled(request, num_tokens))
            reserved += self._kv.num_blocks_missing(request, request.num_computed_tokens + num_tokens)

    def _hashes_filled(self, output: SchedulerOutput) -> set[bytes]:
        """What names the blocks that prompts fill in this step."""
        scheduled, block_size = output.num_scheduled_tokens, self._kv.block_size
        return {
            content_hash
            for sequence_id, num_tokens in scheduled.items()
            if num_tokens >= block_size
            for content_hash in self._kv.hashes_filled(self._sequences.by_id[sequence_id], num_tokens)
        }

    def _num_free_seats(self) -> int:
        """Sequences that may still start; beams that may yet come have theirs."""
        return self._config.max_num_seqs - len(self._sequences.running) - self._searches.num_promised_seats()

    def _can_begin(self, group: RequestGroup, reserved: int) -> bool:
        return self._searches.can_begin(group, self._num_free_seats(), self._kv.pool.num_free - reserved)

    def _admit(self, request: Request, cached: list[int], num_tokens: int, output: SchedulerOutput) -> None:
        self._kv.admit(request, cached, num_tokens)
        self._sequences.start_first()
        if request.group.is_beam_search:
            self._searches.started(request.group)
        if request.num_preemptions == 0:
            self._count_first_admission(request)
        output.new_requests.append(request.as_new_request())
        output.num_scheduled_tokens[request.sequence_id] = num_tokens
        output.total_num_scheduled_tokens += num_tokens
        if request.group.has_pending_forks and request.num_computed_tokens + num_tokens == request.num_tokens:
            self._fork(request, output)

    def _count_first_admission(self, request: Request) -> None:
        if not request.output_token_ids:
            # What a replay finds cached is not what the caller was told when the request first ran.
            request.num_cached_tokens = min(request.num_computed_tokens, request.num_prompt_tokens)
        if self._kv.enable_prefix_caching:
            self._stats.prefix_cache_queries += request.num_tokens
            self._stats.prefix_cache_hits += request.num_computed_tokens
        if request.index == 0:
            self._stats.num_prompt_tokens += request.num_prompt_tokens

    def _fork(self, parent: Request, output: SchedulerOutput) -> None:
        """Start the siblings of sequence 0, whose last prompt token is in this step.

        Those for which `max_num_seqs` has no room wait as ordinary sequences.
        """
        group = parent.group
        num_started = min(self._num_free_seats(), group.source.params.n - 1)
        for index in range(1, 1 + num_started):
            child = group.new_sequence(index)
            self._kv.fork(parent, child)
            child.num_computed_tokens = child.num_prompt_tokens
            child.num_cached_tokens = parent.num_cached_tokens
            self._sequences.add_running(child)
            output.new_requests.append(child.as_new_request(fork_of=parent.sequence_id))
        self._queue_forks(group, 1 + num_started)

    def _queue_forks(self, group: RequestGroup, first: int) -> None:
        """Make pending forks from index `first` on ordinary waiting sequences."""
        group.has_pending_forks = False
        for index in range(first, group.source.params.n):
            self._sequences.enqueue(group.new_sequence(index))

    def _collect(
        self, request: Request, step_output: StepOutput, outputs: list[EngineOutput], num_ahead: int = 0
    ) -> None:
        """Take in the results of one sequence, whose computed tokens are already advanced.

        Args:
            num_ahead: tokens that were computed behind those: drafts, or what a run of decode steps has sampled.
        """
        self._kv.commit(request)
        sequence_id = request.sequence_id
        if sequence_id in step_output.prompt_logprobs:
            self._gather_prompt_logprobs(request, step_output)
        if request.num_computed_tokens < request.num_tokens:
            return
        error = step_output.errors.get(sequence_id)
        if error is not None:
            self._finish_failed(request, error, outputs)
            return
        if request.grammar is not None and (error := request.grammar.error) is not None:
            self._finish_failed(request, f"The grammar cannot be followed: {error}", outputs)
            return
        if request.group.is_beam_search:
            news = self._searches.report(request, step_output.candidates[sequence_id])
            self._stats.num_generation_tokens += sum(len(output.new_token_ids) for output in news)
            outputs += news
            return
        if request.group.source.pooling is not None:
            outputs.append(self._finish_pooling(request, step_output.pooled[sequence_id]))
            return
        output = self._take_sampled(request, step_output, num_ahead)
        if output is not None:
            outputs.append(output)

    def _take_sampled(self, request: Request, step_output: StepOutput, num_ahead: int) -> EngineOutput | None:
        """Put sampled tokens behind a sequence, up to what ends it; what is told of it now."""
        sequence_id = request.sequence_id
        new_token_ids: list[int] = []
        stop = None
        for token_id in step_output.sampled_token_ids[sequence_id]:
            new_token_ids.append(token_id)
            request.output_token_ids.append(token_id)
            stop = request.stop_reason(self._max_total_tokens)
            if stop is not None:
                break
        if num_ahead and len(new_token_ids) > 1:
            # All but the last are computed.
            request.num_computed_tokens += min(num_ahead, len(new_token_ids) - 1)
            self._kv.commit(request)
        if request.grammar is not None:
            request.grammar.accept(new_token_ids)
        self._stats.num_generation_tokens += len(new_token_ids)
        untold = request.untold(ends=stop is not None)
        if untold is None:
            return None
        output = EngineOutput(
            request.group.source.request_id, request.index, untold, num_cached_tokens=request.num_cached_tokens
        )
        if sequence_id in step_output.logprobs:
            output.logprobs = step_output.logprobs[sequence_id][: len(new_token_ids)]
        if request.index == 0 and request.group.prompt_logprobs is not None:
            assert len(request.group.prompt_logprobs) == request.num_prompt_tokens - 1, "each position has its entry"
            output.prompt_logprobs, request.group.prompt_logprobs = request.group.prompt_logprobs, None
        if stop is not None:
            output.finish_reason, output.stop_reason = stop
            self._sequences.retire(request)
        return output

    def _finish_pooling(self, request: Request, pooled: list[float]) -> EngineOutput:
        """The end of a sequence that samples nothing."""
        self._sequences.retire(request)
        return EngineOutput(
            request.group.source.request_id,
            request.index,
            [],
            finish_reason=FinishReason.STOP,
            num_cached_tokens=request.num_cached_tokens,
            embedding=pooled,
        )

    def _finish_failed(self, request: Request, error: str, outputs: list[EngineOutput]) -> None:
        """The end of a sequence that cannot go on; one beam takes the others with it."""
        group = request.group
        if group.is_beam_search:
            outputs += self._searches.fail(group, error)
            return
        self._sequences.retire(request)
        outputs.append(
            EngineOutput(group.source.request_id, request.index, [], finish_reason=FinishReason.ERROR, error=error)
        )

    def _gather_prompt_logprobs(self, request: Request, step_output: StepOutput) -> None:
        """Append a chunk's entries behind those there are; a recomputed prompt brings some again."""
        gathered = request.group.prompt_logprobs
        if request.index == 0 and gathered is not None:
            start, entries = step_output.prompt_logprobs[request.sequence_id]
            known = len(gathered) + 1 - start
            assert known >= 0, "chunks of prompt logprobs leave no gap"
            gathered.extend(entries[known:])
