"""The sequences of a request with beam search: which of them holds which beam, and what a round does to them.

A beam with one child keeps its sequence; further children are forks, which share the parent's blocks. Siblings need
not be computed in the same step: a round is played when each has reported its candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from interleaf.core.beam import BeamSearch, num_candidates
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
        least_blocks: held when it was preempted last; it starts anew only where there are so many again.
    """

    def __init__(self, group: RequestGroup, max_total_tokens: int) -> None:
        source = group.source
        settings = source.params.beam
        assert settings is not None, "the request asks for beam search"
        self.width = settings.width
        self.least_blocks = 0
        self._group = group
        self._num_new_tokens = max_total_tokens - len(source.prompt_token_ids)
        if source.params.max_tokens is not None:
            self._num_new_tokens = min(self._num_new_tokens, source.params.max_tokens)
        self.num_candidates = num_candidates(settings, len(group.eos_token_ids | group.stop_token_ids))
        self.start()

    @property
    def length(self) -> int:
        """Tokens of output that all live beams have."""
        return self._search.length

    def start(self) -> Request:
        """Begin the search, or begin it anew; returns the sequence of the prompt."""
        params = self._group.source.params
        assert params.beam is not None
        # With -1 all candidates of a beam are told: its `BeamCandidates` have the whole vocabulary then.
        num_logprobs = {None: 0, -1: None}.get(params.logprobs, params.logprobs)
        self._search = BeamSearch(
            params.beam, self._group.eos_token_ids, self._group.stop_token_ids, self._num_new_tokens, num_logprobs
        )
        self._candidates: dict[int, BeamCandidates] = {}
        self._num_sequences = 1
        self.beams = [self._group.new_sequence(0)]
        return self.beams[0]

    def report(self, request: Request, candidates: BeamCandidates) -> bool:
        """Take in the candidates of one beam; whether all have reported."""
        self._candidates[request.index] = candidates
        return len(self._candidates) == len(self.beams)

    def advance(self, kv: KVManager) -> Round | None:
        """Play a round; None when the search is over."""
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
                children.append(self._fork(parent, token, kv))
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

    def _fork(self, parent: Request, token: int, kv: KVManager) -> Request:
        """A further child of a beam, whose own token is not behind it yet."""
        child = self._group.new_sequence(self._num_sequences)
        self._num_sequences += 1
        kv.fork(parent, child)
        child.num_computed_tokens = parent.num_computed_tokens
        child.num_cached_tokens = parent.num_cached_tokens
        child.output_token_ids = [*parent.output_token_ids, token]
        if child.grammar is not None:
            child.grammar.accept(child.output_token_ids)
        return child
