"""Guesses by frequency: what followed the same tokens, in this text and in finished ones. (Oliaro et al. 2024)

A suffix tree with counts would hold every run of tokens up to its depth. Here the occurrences of short runs are linked
instead, the latest first: those that go on matching further back are the occurrences of the longer runs, and following
them forward walks the tree below. That takes some 150 bytes a token in place of a node for each run.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np

from interleaf.messages import NewRequest
from interleaf.speculative_config import SpeculativeConfig
from interleaf.worker.batch import Batch
from interleaf.worker.spec_decode.proposer import StepView

RUN_LENGTHS = (4, 1)
"""Occurrences are linked for runs of so many tokens; the longest that has any is looked at."""
MOST_OCCURRENCES = 32
"""Only the latest are looked at, which bounds the time of a guess."""
MOST_FINISHED_TOKENS = 1 << 18
"""Of finished outputs: bounds their memory to some 40 MB."""
SEPARATOR = -1
"""Between finished outputs; no token, so that nothing matches across it."""


class LinkedText:
    """A text that grows, with the earlier occurrences of each of its short runs."""

    def __init__(self) -> None:
        self.tokens = array("i")
        self._latest: dict[int, dict[int, int]] = {n: {} for n in RUN_LENGTHS}
        """n -> hash of a run -> the position behind its latest occurrence."""
        self._earlier = {n: array("i") for n in RUN_LENGTHS}
        """n -> by position: where the run that ends there occurred before; 0 for nowhere."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Put tokens behind the text."""
        for token in tokens:
            self.tokens.append(token)
            end = len(self.tokens)
            for n in RUN_LENGTHS:
                latest, earlier = self._latest[n], self._earlier[n]
                if end < n:
                    earlier.append(0)
                    continue
                run = hash(tuple(self.tokens[end - n :]))
                earlier.append(latest.get(run, 0))
                latest[run] = end

    def occurrences(self, tail: Sequence[int]) -> list[int]:
        """Positions behind the latest occurrences of the longest linked run that ends `tail`, with something behind."""
        for n in RUN_LENGTHS:
            if len(tail) < n:
                continue
            end = self._latest[n].get(hash(tuple(tail[-n:])), 0)
            found: list[int] = []
            while end and len(found) < MOST_OCCURRENCES:
                if end < len(self.tokens):
                    found.append(end)
                end = self._earlier[n][end - 1]
            if found:
                return found
        return []


def guess(text: LinkedText, tail: Sequence[int], config: SpeculativeConfig, most: int) -> tuple[float, list[int]]:
    """How the tokens that end with `tail` may go on.

    Returns:
        How many of the tokens are expected to be right, and the tokens.
    """
    lengths = {end: _match_length(text.tokens, end, tail) for end in text.occurrences(tail)}
    best: tuple[float, list[int]] = (0.0, [])
    # Longer matches are fewer: what they lack in number they may have in agreement.
    for least in sorted({length for length in lengths.values() if length}, reverse=True)[:3]:
        ends = [end for end, length in lengths.items() if length >= least]
        room = min(most, int(config.suffix_decoding_max_spec_factor * least))
        found = _follow(text.tokens, ends, config.suffix_decoding_min_token_prob, room)
        if found[0] > best[0]:
            best = found
    return best


def _match_length(tokens: Sequence[int], end: int, tail: Sequence[int]) -> int:
    """How many tokens before `end` are those at the end of `tail`."""
    most = min(end, len(tail))
    for length in range(most):
        if tokens[end - 1 - length] != tail[-1 - length]:
            return length
    return most


def _follow(tokens: Sequence[int], ends: list[int], least_probability: float, most: int) -> tuple[float, list[int]]:
    """Take the likeliest next token of these places again and again, while it is likely enough."""
    probability, expected, drafts = 1.0, 0.0, list[int]()
    while len(drafts) < most and ends:
        followers = Counter(tokens[end] for end in ends)
        token, count = followers.most_common(1)[0]
        probability *= count / len(ends)
        if token == SEPARATOR or probability < least_probability:
            break
        drafts.append(token)
        expected += probability
        ends = [end + 1 for end in ends if tokens[end] == token and end + 1 < len(tokens)]
    return expected, drafts


class SuffixProposer:
    """Looks into the sequence's own text and into finished outputs, and takes the more promising guess."""

    def __init__(self, config: SpeculativeConfig) -> None:
        self._config = config
        self._texts: dict[int, LinkedText] = {}
        self._starts: dict[int, int] = {}
        self._alone: set[int] = set()
        """Rows whose texts must not be told from what others are offered, nor the other way round."""
        self._finished = LinkedText()
        self._finished_outputs: list[array[int]] = []

    def add(self, row: int, request: NewRequest) -> None:
        self._texts[row] = LinkedText()
        self._starts[row] = request.num_prompt_tokens
        if request.cache_salt is not None:
            self._alone.add(row)

    def remove(self, row: int) -> None:
        """What the sequence has generated is kept for others."""
        text, start = self._texts.pop(row), self._starts.pop(row)
        output = text.tokens[start:]
        if row in self._alone:
            self._alone.remove(row)
        elif output and self._config.suffix_decoding_max_cached_requests:
            self._keep(output)

    def observe(self, step: StepView) -> None:
        """Tokens are taken in when drafts are wanted."""

    def propose(self, batch: Batch, wanted: Sequence[tuple[int, int]]) -> list[list[int]]:
        return [self._propose(batch, row, count) for row, count in wanted]

    def _propose(self, batch: Batch, row: int, count: int) -> list[int]:
        text = self._texts[row]
        tokens: np.ndarray = batch.token_ids[row, len(text.tokens) : batch.num_tokens[row]]
        text.extend(tokens.tolist())
        tail = text.tokens[-self._config.suffix_decoding_max_tree_depth :]
        own = guess(text, tail, self._config, count)
        if row in self._alone:
            return own[1]
        others = guess(self._finished, tail, self._config, count)
        return max(own, others, key=lambda found: found[0])[1]

    def _keep(self, output: array[int]) -> None:
        """Add an output to the finished ones; when they are too many, the older half is forgotten."""
        self._finished_outputs.append(output)
        self._finished.extend([*output, SEPARATOR])
        too_many = len(self._finished_outputs) > self._config.suffix_decoding_max_cached_requests
        if too_many or len(self._finished.tokens) > MOST_FINISHED_TOKENS:
            self._finished_outputs = self._finished_outputs[len(self._finished_outputs) // 2 + 1 :]
            self._finished = LinkedText()
            for kept in self._finished_outputs:
                self._finished.extend([*kept, SEPARATOR])
