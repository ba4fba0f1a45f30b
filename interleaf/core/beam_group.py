"""The sequences of a request with beam search: which of them holds which beam, and what a round does to them.

A beam with one child keeps its sequence; further children are forks, which share the parent's blocks. Siblings need
not be computed in the same step: a round is played when each has reported its candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from interleaf.core.beam import BeamSearch
from interleaf.core.kv_manager import KVManager
from interleaf.core.request import Request, RequestGroup
from interleaf.messages import BeamCandidates, EngineOutput, FinishReason


@dataclass(slots=True)
class Round:
    """What became of the sequences: new ones, those that got a token (with it), and those without children."""

    forks: list[Request] = field(default_factory=list)
    picked: list[tuple[Request, int]] = field(default_factory=list)
    dropped: list[Request] = field(default_factory=list)


class BeamGroup:
    """
    Args:
        group: whose sequence 0 computes the prompt.
        max_total_tokens: of prompt and output, whatever `max_tokens` says.

    Fields:
        beams: their sequences, in the order of the search's beams. While a preempted search comes back, it is one, of
            what they have in common.
    """

    def __init__(self, group: RequestGroup, max_total_tokens: int) -> None:
        source = group.source
        settings = source.params.beam
        assert settings is not None, "the request asks for beam search"
        self.width = settings.width
        self._group = group
        self._num_new_tokens = max_total_tokens - len(source.prompt_token_ids)
        if source.params.max_tokens is not None:
            self._num_new_tokens = min(self._num_new_tokens, source.params.max_tokens)
        # With -1 all candidates of a beam are told: its `BeamCandidates` have the whole vocabulary then.
        num_logprobs = {None: 0, -1: None}.get(source.params.logprobs, source.params.logprobs)
        self._search = BeamSearch(
            settings, group.eos_token_ids, group.stop_token_ids, self._num_new_tokens, num_logprobs
        )
        self._candidates: dict[int, BeamCandidates] = {}
        self._num_sequences = 1
        self._returning: list[list[int]] = []
        """Outputs of the beams of a preempted search that has not got them back yet."""
        self.beams = [group.new_sequence(0)]

    @property
    def length(self) -> int:
        """Tokens of output that all live beams have."""
        return self._search.length

    def come_back(self) -> Request:
        """The beams have lost their blocks: returns the sequence to compute first, of what they have in common.

        When it has reported, the beams are forks of it, with the rest of their tokens to compute. Candidates that were
        reported before are found again: the same bits.
        """
        if not self._returning and self.length:
            self._returning = [beam.output_token_ids for beam in self.beams]
        trunk = self._group.new_sequence(0)
        if self._returning:
            # Of each beam a token must be left, whose computation brings its candidates.
            trunk.output_token_ids = _common_start(self._returning)[: self.length - 1]
            if trunk.grammar is not None:
                trunk.grammar.accept(trunk.output_token_ids)
        self._candidates = {}
        self.beams = [trunk]
        return trunk

    def num_blocks_to_come_back(self, block_size: int) -> int:
        """Entries of block tables that the beams of a preempted search need, which share what they have in common."""
        if not self._returning:
            return 0
        [trunk] = self.beams
        num_prompt_tokens = trunk.num_prompt_tokens
        whole = -(-(num_prompt_tokens + self.length) // block_size)
        shared = trunk.num_tokens // block_size
        return shared + len(self._returning) * (whole - shared)

    def report(self, request: Request, candidates: BeamCandidates) -> bool:
        """Take in the candidates of one beam; whether all have reported."""
        self._candidates[request.index] = candidates
        return len(self._candidates) == len(self.beams)

    def advance(self, kv: KVManager) -> Round | None:
        """Play a round, or get the beams of a preempted search back; None when the search is over."""
        if self._returning:
            return self._get_beams_back(kv)
        chosen = self._search.advance([self._candidates[beam.index] for beam in self.beams])
        self._candidates = {}
        if not chosen:
            return None
        played = Round()
        heirs: set[int] = set()
        children: list[Request] = []
        for number, token in chosen:
            parent = self.beams[number]
            if number in heirs:
                children.append(self._fork(parent, [*parent.output_token_ids, token], kv))
                played.forks.append(children[-1])
            else:
                heirs.add(number)
                children.append(parent)
                played.picked.append((parent, token))
        for parent, token in played.picked:
            parent.output_token_ids.append(token)
            if parent.grammar is not None:
                parent.grammar.accept([token])
        played.dropped = [beam for number, beam in enumerate(self.beams) if number not in heirs]
        self.beams = children
        return played

    def outputs(self) -> list[EngineOutput]:
        """The end of the request: its `n` best texts, the best first."""
        source = self._group.source
        found = self._search.results()
        outputs = []
        for index in range(source.params.n):
            # Where masks leave too few ways to go on, there are fewer texts than beams.
            output = EngineOutput(source.request_id, index, [], finish_reason=FinishReason.LENGTH)
            if index < len(found):
                path = found[index].node.path()
                output.new_token_ids = [node.token for node in path]
                output.finish_reason, output.stop_reason = found[index].finish_reason, found[index].stop_reason
                if source.params.logprobs is not None:
                    output.logprobs = [node.entry for node in path]
            outputs.append(output)
        return outputs

    def errors(self, error: str) -> list[EngineOutput]:
        """The end of a request that cannot go on."""
        source = self._group.source
        return [
            EngineOutput(source.request_id, index, [], finish_reason=FinishReason.ERROR, error=error)
            for index in range(source.params.n)
        ]

    def _get_beams_back(self, kv: KVManager) -> Round:
        [trunk] = self.beams
        self._candidates = {}
        self.beams = [self._fork(trunk, output, kv) for output in self._returning]
        self._returning = []
        return Round(forks=self.beams.copy(), dropped=[trunk])

    def _fork(self, parent: Request, output_token_ids: list[int], kv: KVManager) -> Request:
        """A beam that goes on from the computed tokens of another sequence; it has this output."""
        child = self._group.new_sequence(self._num_sequences)
        self._num_sequences += 1
        kv.fork(parent, child)
        child.num_computed_tokens = parent.num_computed_tokens
        child.num_cached_tokens = parent.num_cached_tokens
        child.output_token_ids = output_token_ids
        if child.grammar is not None:
            child.grammar.accept(child.output_token_ids)
        return child


def _common_start(lists: list[list[int]]) -> list[int]:
    """The longest beginning that all lists have."""
    least, most = min(lists), max(lists)
    for place, (one, other) in enumerate(zip(least, most, strict=False)):
        if one != other:
            return least[:place]
    return least[: len(most)]
