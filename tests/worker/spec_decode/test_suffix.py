"""Guesses by frequency against counting in plain sight."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np

from interleaf.messages import NewRequest
from interleaf.params import SamplingParams
from interleaf.speculative_config import SpeculativeConfig
from interleaf.worker.batch import Batch
from interleaf.worker.spec_decode.suffix import MOST_OCCURRENCES, LinkedText, SuffixProposer, guess

CONFIG = SpeculativeConfig("suffix", 24)


def test_the_likeliest_follower_is_taken() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        tokens = rng.integers(0, 4, int(rng.integers(8, MOST_OCCURRENCES))).tolist()
        text = LinkedText()
        text.extend(tokens)
        expected, drafts = guess(text, tokens[-1:], CONFIG, 1)
        followers = Counter(b for a, b in pairwise(tokens) if a == tokens[-1])
        if not followers:
            assert not drafts
            continue
        [best, count] = max(followers.values()), sum(followers.values())
        assert expected == best / count and followers[drafts[0]] == best


def test_a_long_match_allows_long_drafts() -> None:
    text = LinkedText()
    text.extend([*range(30), *range(10)])
    assert guess(text, list(range(10)), CONFIG, 24)[1] == list(range(10, 20))
    assert guess(text, [8, 9], CONFIG, 24)[1] == [10, 11]
    assert guess(text, list(range(10)), CONFIG, 4)[1] == list(range(10, 14))


def test_drafts_end_where_texts_part() -> None:
    text = LinkedText()
    for ending in ([7, 7, 7], [8, 8, 8], [9, 9, 9]):
        text.extend([1, 2, 3, 4, 5, *ending])
    strict = SpeculativeConfig("suffix", 24, suffix_decoding_min_token_prob=0.5)
    assert guess(text, [1, 2, 3], strict, 24) == (2.0, [4, 5])
    expected, drafts = guess(text, [1, 2, 3], CONFIG, 24)
    assert drafts[:2] == [4, 5] and len(drafts) == 3 and expected == 2.0 + 1 / 3


def propose(proposer: SuffixProposer, batch: Batch, name: str, tokens: list[int], salt: str | None = None) -> list[int]:
    """Drafts for a sequence that ends thereafter, with 4 prompt tokens."""
    request = NewRequest(name, tokens, 4, 0, [], SamplingParams(seed=0), 0, cache_salt=salt)
    row = batch.add(request)
    proposer.add(row, request)
    [drafts] = proposer.propose(batch, [(row, 8)])
    batch.remove(name)
    proposer.remove(row)
    return drafts


def test_finished_outputs_help_others_unless_they_are_salted() -> None:
    batch = Batch(4, 100, 16)
    proposer = SuffixProposer(CONFIG)
    told = [50, 51, 52, 53, *range(20, 40)]
    assert propose(proposer, batch, "salted", told, "tenant") == []
    assert propose(proposer, batch, "a", [1, 2, 3, 4, 20, 21, 22]) == []
    proposer = SuffixProposer(CONFIG)
    assert propose(proposer, batch, "b", told) == []
    assert propose(proposer, batch, "c", [1, 2, 3, 4, 20, 21, 22]) == [23, 24, 25]
    assert propose(proposer, batch, "d", [1, 2, 3, 4, 20, 21, 22], "tenant") == []
    assert propose(proposer, batch, "e", [1, 2, 3, 50, 51, 52, 53]) == [], "prompts are not kept"


def test_memory_of_finished_outputs_is_bounded() -> None:
    batch = Batch(4, 100, 16)
    proposer = SuffixProposer(SpeculativeConfig("suffix", 24, suffix_decoding_max_cached_requests=3))
    for i in range(7):
        propose(proposer, batch, f"r{i}", [1, 2, 3, 4, *range(100 * i, 100 * i + 20)])
    assert propose(proposer, batch, "new", [1, 2, 3, 4, 600, 601, 602]) == [603, 604, 605]
    assert propose(proposer, batch, "old", [1, 2, 3, 4, 100, 101, 102]) == []
