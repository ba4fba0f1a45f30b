"""Beam search of one request: which beams go on, which have ended, and when the search is over.

The rules are those of Transformers' `generate(num_beams=...)`, so that results are the same. In each round the best
`num_candidates` continuations of all beams are looked at. Of these, the best `width` that do not stop are the next
beams; those of the first `width` that stop go to a pool of the `width` best finished ones, which are ordered by
score / length ** length_penalty, the length being that of the output with what stopped it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interleaf.messages import BeamCandidates, FinishReason, TokenLogprobs
from interleaf.params import BeamSettings


@dataclass(frozen=True, slots=True)
class Node:
    """The end of a hypothesis; the tokens before are its ancestors.

    Fields:
        score: sum of the logprobs up to here.
        entry: what the candidates of this place were, as far as it is told to the caller.
    """

    token: int
    score: float
    entry: TokenLogprobs
    parent: Node | None

    def path(self) -> list[Node]:
        """From the first token to this one."""
        nodes = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


@dataclass(frozen=True, slots=True)
class Finished:
    """A hypothesis in the pool; `score` is the one with the length penalty."""

    score: float
    node: Node
    finish_reason: FinishReason
    stop_reason: int | None


class BeamSearch:
    """
    Args:
        eos_token_ids, stop_token_ids: end a hypothesis; the latter are told as its stop reason.
        max_new_tokens: the longest output.
        num_logprobs: candidates that are told to the caller at each place; None is all.

    Fields:
        beams: ends of the live hypotheses, the best first; None is the prompt itself.
        length: of their outputs.
    """

    def __init__(
        self,
        settings: BeamSettings,
        eos_token_ids: frozenset[int],
        stop_token_ids: frozenset[int],
        max_new_tokens: int,
        num_logprobs: int | None,
    ) -> None:
        self.beams: list[Node | None] = [None]
        self._settings = settings
        self._eos_token_ids = eos_token_ids
        self._stop_token_ids = stop_token_ids
        self._max_new_tokens = max_new_tokens
        self._num_logprobs = num_logprobs
        self.length = 0
        self._pool: list[Finished] = []
        self._num_candidates = num_candidates(settings, len(eos_token_ids | stop_token_ids))

    def advance(self, candidates: Sequence[BeamCandidates]) -> list[tuple[int, int]]:
        """Play a round.

        Args:
            candidates: for each of `beams`, its likeliest next tokens.

        Returns:
            (number of the beam gone on from, token) for each of the new `beams`; nothing when the search is over.
        """
        self.length += 1
        last = self.length >= self._max_new_tokens
        width = self._settings.width
        chosen: list[tuple[int, int]] = []
        beams: list[Node | None] = []
        for place, (score, number, rank) in enumerate(self._best(candidates)):
            token = candidates[number].token_ids[rank]
            stops = last or token in self._eos_token_ids or token in self._stop_token_ids
            if place >= width and (stops or len(chosen) == width):
                continue
            node = Node(token, score, self._entry(candidates[number], rank), self.beams[number])
            if stops:
                self._finish(node)
            else:
                chosen.append((number, token))
                beams.append(node)
        self.beams = beams
        return chosen if self._goes_on() else []

    def results(self) -> list[Finished]:
        """The finished hypotheses, the best first."""
        return self._pool

    def _best(self, candidates: Sequence[BeamCandidates]) -> list[tuple[float, int, int]]:
        """(score, number of the beam, rank) of the best candidates of all beams; what is impossible is left out."""
        found = [
            ((0.0 if beam is None else beam.score) + logprob, number, rank)
            for number, (beam, one) in enumerate(zip(self.beams, candidates, strict=True))
            for rank, logprob in enumerate(one.logprobs[: self._num_candidates])
            if logprob > -float("inf")
        ]
        found.sort(key=lambda candidate: (-candidate[0], candidate[1], candidate[2]))
        return found[: self._num_candidates]

    def _entry(self, one: BeamCandidates, rank: int) -> TokenLogprobs:
        told = self._num_logprobs
        logprob = one.logprobs[rank]
        return TokenLogprobs(
            [one.token_ids[rank], *one.token_ids[:told]],
            [logprob, *one.logprobs[:told]],
            1 + sum(other > logprob for other in one.logprobs[:rank]),
        )

    def _finish(self, node: Node) -> None:
        """Offer a hypothesis to the pool; of equal ones, the earlier is better."""
        reason, stop = FinishReason.LENGTH, None
        if node.token in self._eos_token_ids:
            reason = FinishReason.STOP
        elif node.token in self._stop_token_ids:
            reason, stop = FinishReason.STOP, node.token
        score = self._penalized(node.score, self.length)
        self._pool.append(Finished(score, node, reason, stop))
        self._pool.sort(key=lambda finished: -finished.score)
        del self._pool[self._settings.width :]

    def _goes_on(self) -> bool:
        """Whether a live beam could still be better than a finished one; a guess that `early_stopping` governs."""
        settings = self._settings
        best = self.beams[0] if self.beams else None
        if best is None:
            return False
        if len(self._pool) < settings.width:
            return True
        if settings.early_stopping is True:
            return False
        longest = settings.early_stopping == "never" and settings.length_penalty > 0.0
        length = self._max_new_tokens if longest else self.length
        return self._penalized(best.score, length) > self._pool[-1].score

    def _penalized(self, score: float, length: int) -> float:
        penalty: float = float(length) ** self._settings.length_penalty
        return score / penalty


def num_candidates(settings: BeamSettings, num_stop_tokens: int) -> int:
    """How many next tokens of each beam a round needs, so that `width` beams go on whatever stops."""
    return max(2, 1 + num_stop_tokens) * settings.width
