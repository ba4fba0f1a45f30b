"""A worker without a model: its memory holds, for each token slot, a tag of everything up to it.

The tag of position p is a function of the tokens 0..p (and of the request's salt), so comparing
one tag compares a whole context. Tokens are sampled from the tag that is *read through the block
table*: a lost copy, a block used twice or shared wrongly changes what is generated, besides
failing the checks here. `generate` gives what a sequence must produce, without any engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from interleaf.core.beam import BeamSearch, num_candidates
from interleaf.messages import (
    BeamCandidates,
    EngineRequest,
    FinishReason,
    NewRequest,
    SchedulerOutput,
    StepOutput,
    TokenLogprobs,
)

ROOT_TAGS = {None: 1, "salt": 2}


def tags_of(token_ids: list[int], salt: str | None = None) -> list[int]:
    tags, tag = [], ROOT_TAGS[salt]
    for token_id in token_ids:
        tag = hash((tag, token_id))
        tags.append(tag)
    return tags


def sample(tag: int, seed: int, vocab_size: int) -> int:
    return hash((tag, seed)) % vocab_size


def generate(source: EngineRequest, index: int, vocab_size: int, max_total: int) -> tuple[list[int], FinishReason]:
    """What sequence `index` of a request yields when it has the machine to itself."""
    params = source.params
    seed = (params.seed + index + 2**63) % 2**64 - 2**63
    output: list[int] = []
    while True:
        token = sample(tags_of(source.prompt_token_ids + output, source.cache_salt)[-1], seed, vocab_size)
        output.append(token)
        if len(output) >= params.min_tokens and (
            (token in source.eos_token_ids and not params.ignore_eos) or token in (params.stop_token_ids or [])
        ):
            return output, FinishReason.STOP
        if len(output) == params.max_tokens or len(source.prompt_token_ids) + len(output) == max_total:
            return output, FinishReason.LENGTH


def candidates(tag: int, vocab_size: int, count: int) -> BeamCandidates:
    """The best next tokens behind a context; ties are frequent."""
    logprobs = sorted((-float(hash((tag, token, "beam")) % 7) - 0.5, -token) for token in range(vocab_size))[::-1]
    return BeamCandidates([-token for _, token in logprobs[:count]], [logprob for logprob, _ in logprobs[:count]])


def search(source: EngineRequest, vocab_size: int, max_total: int) -> list[tuple[list[int], FinishReason]]:
    """The texts of a beam search that has the machine to itself."""
    params = source.params
    eos = frozenset(() if params.ignore_eos else source.eos_token_ids)
    stops = frozenset(params.stop_token_ids or ())
    longest = min(params.max_tokens or max_total, max_total - len(source.prompt_token_ids))
    beams = BeamSearch(params.beam, eos, stops, longest, 0)
    count = num_candidates(params.beam, len(eos | stops))
    contexts = [tags_of(source.prompt_token_ids, source.cache_salt)[-1]]
    while chosen := beams.advance([candidates(tag, vocab_size, count) for tag in contexts]):
        contexts = [hash((contexts[number], token)) for number, token in chosen]
    found = [([node.token for node in one.node.path()], one.finish_reason) for one in beams.results()]
    return found[: params.n] + [([], FinishReason.LENGTH)] * (params.n - len(found))


@dataclass
class Held:
    """The worker's copy of a sequence."""

    tags: list[int]
    tokens: list[int]
    tables: list[list[int]]
    num_computed: int
    new: NewRequest


class MemoryWorker:
    """
    Args:
        max_drafts: proposed for each sequence in a step; some are right, some wrong.
        windows: of each group of layers, the keys that are seen; 0 is all.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        vocab_size: int = 50,
        max_drafts: int = 0,
        windows: tuple[int, ...] = (0,),
    ) -> None:
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.windows = windows
        self.null = num_blocks
        self.slots: list[tuple[int, int] | None] = [None] * (num_blocks * block_size)
        self.sequences: dict[str, Held] = {}
        self.salts: dict[str, str] = {}
        self.num_copies = 0
        self.max_drafts = max_drafts

    def execute(self, output: SchedulerOutput) -> StepOutput:
        for sequence_id in output.removed_sequence_ids:
            del self.sequences[sequence_id]
        for new in output.new_requests:
            self._hold(new)
        for sequence_id, token in output.picked_token_ids.items():
            held = self.sequences[sequence_id]
            assert held.new.num_candidates and held.num_computed == len(held.tokens)
            held.tokens.append(token)
            held.tags.append(hash((held.tags[-1], token)))
        starts = {(update.sequence_id, update.group, update.start) for update in output.block_table_updates}
        assert len(starts) == len(output.block_table_updates)
        for update in output.block_table_updates:
            table = self.sequences[update.sequence_id].tables[update.group]
            assert update.start <= len(table) and update.block_ids
            table[update.start :] = update.block_ids
        for source, target in output.block_copies:
            size = self.block_size
            self.slots[target * size : (target + 1) * size] = self.slots[source * size : (source + 1) * size]
            self.num_copies += 1
        self._check_writes(output)
        return self._compute(output)

    def _hold(self, new: NewRequest) -> None:
        assert new.sequence_id not in self.sequences
        salt = self.salts.get(new.sequence_id.split(".")[0])
        tags = tags_of(new.token_ids, salt)
        tables = [list(block_ids) for block_ids in (new.block_ids, *new.more_block_ids)]
        assert len(tables) == len(self.windows)
        held = Held(tags, list(new.token_ids), tables, new.num_computed_tokens, new)
        if new.fork_of is not None:
            assert self.sequences[new.fork_of].tokens == new.token_ids
            assert new.num_computed_tokens == len(new.token_ids) == new.num_prompt_tokens
        self.sequences[new.sequence_id] = held

    def _check_writes(self, output: SchedulerOutput) -> None:
        """A block that is written is in one table only, but for forks of the writer in this step."""
        forked = {new.sequence_id: new.fork_of for new in output.new_requests}
        holders: dict[int, list[str]] = {}
        for sequence_id, held in self.sequences.items():
            blocks = [block_id for table in held.tables for block_id in table if block_id != self.null]
            assert len(set(blocks)) == len(blocks)
            for block_id in blocks:
                holders.setdefault(block_id, []).append(sequence_id)
        for sequence_id, num_tokens in output.num_scheduled_tokens.items():
            held = self.sequences[sequence_id]
            assert 0 < num_tokens <= len(held.tokens) - held.num_computed
            drafts = output.draft_token_ids.get(sequence_id, [])
            if sequence_id in output.draft_token_ids:
                assert drafts and num_tokens == len(held.tokens) - held.num_computed
            num_tokens += len(drafts) + output.num_decode_steps - 1
            first, last = held.num_computed // self.block_size, (held.num_computed + num_tokens - 1) // self.block_size
            for table in held.tables:
                assert len(table) == last + 1, "blocks are taken on demand"
                for block_id in table[first:]:
                    others = [other for other in holders[block_id] if other != sequence_id]
                    assert all(forked.get(other) == sequence_id for other in others), "a written block is shared"
        num_drafts = sum(len(drafts) for drafts in output.draft_token_ids.values())
        assert output.total_num_scheduled_tokens == sum(output.num_scheduled_tokens.values()) + num_drafts

    def _compute(self, output: SchedulerOutput) -> StepOutput:
        scheduled = {sequence_id: self.sequences[sequence_id] for sequence_id in output.num_scheduled_tokens}
        for held in scheduled.values():
            self._check_context(held, held.num_computed)
        step = StepOutput(output.step, {})
        for sequence_id, held in scheduled.items():
            start, stop = held.num_computed, held.num_computed + output.num_scheduled_tokens[sequence_id]
            for group in range(len(self.windows)):
                for position in range(start, stop):
                    self.slots[self._slot(held, position, group)] = group, held.tags[position]
            held.num_computed = stop
            self._add_prompt_logprobs(held, start, stop, step)
        forks = [self.sequences[new.sequence_id] for new in output.new_requests if new.fork_of is not None]
        for held in [*scheduled.values(), *forks]:
            self._check_context(held, held.num_computed)
            if held.num_computed == len(held.tokens) and held.new.pooling is not None:
                step.pooled[held.new.sequence_id] = [float(len(held.tokens))]
            elif held.num_computed == len(held.tokens) and held.new.num_candidates:
                tag = self._last_tag(held)
                step.candidates[held.new.sequence_id] = candidates(tag, self.vocab_size, held.new.num_candidates)
            elif held.num_computed == len(held.tokens):
                self._verify(held, output.draft_token_ids.get(held.new.sequence_id, []), step)
                self._propose(held, step)
        self._go_on(list(scheduled.values()), output, step)
        for held in scheduled.values():
            # What was taken for drafts that are wrong, or steps that were not done, is given back.
            for table in held.tables:
                del table[-(-len(held.tokens) // self.block_size) :]
        return step

    def _go_on(self, scheduled: list[Held], output: SchedulerOutput, step: StepOutput) -> None:
        """The further steps of a run, up to the first in which a sequence may end."""
        if output.num_decode_steps == 1:
            return
        assert not output.draft_token_ids and not output.new_requests
        assert all(held.num_computed == len(held.tokens) - 1 for held in scheduled)
        while step.num_decode_steps < output.num_decode_steps and not any(map(_may_end, scheduled)):
            step.num_decode_steps += 1
            for held in scheduled:
                self._check_context(held, held.num_computed)
                for group in range(len(self.windows)):
                    self.slots[self._slot(held, held.num_computed, group)] = group, held.tags[-1]
                held.num_computed += 1
                self._sample(held, step)

    def _verify(self, held: Held, drafts: list[int], step: StepOutput) -> None:
        """Write what drafts would, then sample behind each until one is wrong."""
        tags = tags_of(held.tokens + drafts, self.salts.get(held.new.sequence_id.split(".")[0]))
        for group in range(len(self.windows)):
            for position in range(held.num_computed, len(tags)):
                self.slots[self._slot(held, position, group)] = group, tags[position]
        for draft in [*drafts, None]:
            self._sample(held, step)
            if held.tokens[-1] != draft:
                break
            held.num_computed += 1

    def _propose(self, held: Held, step: StepOutput) -> None:
        """What will be sampled, but every third token is wrong."""
        tag = held.tags[-1]
        drafts = []
        for _ in range(hash((tag, 1)) % (self.max_drafts + 1)):
            drafts.append((sample(tag, held.new.seed, self.vocab_size) + (hash(tag) % 3 == 0)) % self.vocab_size)
            tag = hash((tag, drafts[-1]))
        if drafts:
            step.draft_token_ids[held.new.sequence_id] = drafts

    def _slot(self, held: Held, position: int, group: int = 0) -> int:
        return held.tables[group][position // self.block_size] * self.block_size + position % self.block_size

    def _last_tag(self, held: Held) -> int:
        stored = self.slots[self._slot(held, held.num_computed - 1)]
        assert stored is not None
        return stored[1]

    def _check_context(self, held: Held, num_tokens: int) -> None:
        """That each group has what the token behind the first `num_tokens` sees of them."""
        for group, window in enumerate(self.windows):
            seen = range(max(num_tokens - window + 1, 0) if window else 0, num_tokens)
            context = [self.slots[self._slot(held, position, group)] for position in seen]
            expected = [(group, held.tags[position]) for position in seen]
            assert context == expected, f"{held.new.sequence_id} reads a context that is not its own"

    def _add_prompt_logprobs(self, held: Held, start: int, stop: int, step: StepOutput) -> None:
        new = held.new
        if new.params.prompt_logprobs is None:
            return
        first = max(start, new.num_prompt_logprobs_done) + 1
        entries = [
            TokenLogprobs([held.tokens[position]], [-1.0], 1)
            for position in range(first, min(stop, new.num_prompt_tokens - 1) + 1)
        ]
        if entries:
            step.prompt_logprobs[new.sequence_id] = (first, entries)

    def _sample(self, held: Held, step: StepOutput) -> None:
        tag = self._last_tag(held)
        token_id = sample(tag, held.new.seed, self.vocab_size)
        held.tokens.append(token_id)
        held.tags.append(hash((tag, token_id)))
        step.sampled_token_ids.setdefault(held.new.sequence_id, []).append(token_id)
        if held.new.params.logprobs is not None:
            step.logprobs.setdefault(held.new.sequence_id, []).append(TokenLogprobs([token_id], [-1.0], 1))


def _may_end(held: Held) -> bool:
    """Whether its last token is one that ends a sequence, be it too early."""
    params = held.new.params
    ends = () if params.ignore_eos else held.new.eos_token_ids
    return held.tokens[-1] in ends or held.tokens[-1] in (params.stop_token_ids or ())
