"""The incremental index against a search through the whole text."""

from __future__ import annotations

import time

import numpy as np
import pytest

from interleaf.messages import NewRequest
from interleaf.params import SamplingParams
from interleaf.worker.batch import Batch
from interleaf.worker.spec_decode.ngram import NgramIndex, NgramProposer, copied


def searched(tokens: list[int], lengths: range) -> int | None:
    """Where the longest run that ends the text ended before, latest first."""
    for n in reversed(lengths):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[-n:]:
                return end
    return None


@pytest.mark.parametrize("lengths", [range(1, 2), range(2, 6), range(3, 4)])
def test_the_latest_of_the_longest_is_found(lengths: range) -> None:
    rng = np.random.default_rng(0)
    for vocab_size in (2, 5, 40):
        index, tokens = NgramIndex(lengths), np.zeros(0, np.int32)
        for _ in range(120):
            more = rng.integers(0, vocab_size, rng.choice([1, 1, 1, 3, 30]))
            tokens = np.concatenate([tokens, more.astype(np.int32)])
            assert index.find(tokens) == searched(tokens.tolist(), lengths)
            if len(tokens) > 900:
                break


def test_a_copy_goes_on_with_itself() -> None:
    tokens = np.array([9, 1, 2, 3, 1, 2, 3], np.int32)
    assert copied(tokens, 1, 4) == [1, 2, 3, 1]
    assert copied(tokens, 4, 8) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_sixty_four_long_sequences_take_no_time() -> None:
    """64 sequences of 8k tokens: what a step costs once they are indexed; a search through them would take 100 ms."""
    batch, rng = Batch(64, 9000, 16), np.random.default_rng(0)
    proposer = NgramProposer(2, 5)
    for i in range(64):
        tokens = rng.integers(0, 49000, 8000).tolist()
        request = NewRequest(f"r{i}", tokens, 8000, 0, [], SamplingParams(seed=0), 0)
        proposer.add(batch.add(request), request)
    wanted = [(row, 8) for row in range(64)]
    proposer.propose(batch, wanted)
    rows = np.arange(64)
    times = []
    for _ in range(5):
        batch.put(rows, batch.num_tokens[rows], rng.integers(0, 49000, 64).astype(np.int32))
        begin = time.process_time()
        proposer.propose(batch, wanted)
        times.append(time.process_time() - begin)
    assert min(times) < 0.01
