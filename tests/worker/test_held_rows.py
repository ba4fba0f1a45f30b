"""Sampling from what a grammar leaves: against the distribution itself, and against masks that come first."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from interleaf.messages import Misfit
from interleaf.ops import SamplingInput
from interleaf.ops.cpu import CpuOps
from interleaf.worker.held_rows import HeldRow, HeldRows, only_temperature

VOCAB_SIZE = 13


class Fixed:
    """The same tokens fit at each place of a sequence, and `drafts` are tried behind each."""

    def __init__(self, fitting: dict[str, set[int]], drafts: list[int], vocab_size: int = VOCAB_SIZE) -> None:
        self.fitting, self.drafts = fitting, drafts
        self.row_bytes = (vocab_size + 31) // 32 * 4

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self.fitting

    def first_misfit(self, sequence_id: str, place: int, token_ids: list[int]) -> Misfit | None:
        fitting = self.fitting[sequence_id]
        for offset, token in enumerate(token_ids):
            if token not in fitting:
                return Misfit(offset, min(fitting) if len(fitting) == 1 else None)
            if [token] != self.drafts[place + offset : place + offset + 1]:
                break
        return None

    def fill(self, places: list[tuple[str, int]]) -> bytearray:
        assert len(dict(places)) == len(places), "no sequence comes twice"
        bits = (sum(1 << token for token in self.fitting[name]) for name, _ in places)
        return bytearray(b"".join(mask.to_bytes(self.row_bytes, "little") for mask in bits))


def sampling_of(count: int, temperature: float) -> SamplingInput:
    return SamplingInput(
        temperatures=np.full(count, temperature, np.float32),
        top_k=np.zeros(count, np.int32),
        top_p=np.ones(count, np.float32),
        min_p=np.zeros(count, np.float32),
        seeds=np.arange(count, dtype=np.uint64),
        positions=np.full(count, 5, np.int32),
    )


def corrected(fitting: set[int], logits: np.ndarray, sampling: SamplingInput, drafts: list[int]) -> list[int]:
    """The tokens of one sequence whose places are the rows of `logits`."""
    ops = CpuOps("float32", 1, 16, 64, VOCAB_SIZE)
    rows = HeldRows(Fixed({"held": fitting}, drafts), {"held": 3, "free": 4}, np.array([0, 0, 0, 5, 0]))
    held = [HeldRow(i, "held", i) for i in range(len(logits))]
    assert rows.among(np.array([4, 3]), np.array([9, 7])) == [HeldRow(1, "held", 2)]
    tokens = ops.sample(logits, sampling)
    rows.correct(logits, {}, sampling, tokens, held, ops.sample)
    return [int(token) for token in tokens]


@pytest.mark.parametrize("fitting", [{1, 4, 5, 12}, {0, 7}, {9}, set(range(13))])
def test_each_token_has_its_share(fitting: set[int]) -> None:
    """Chi-square, at a level of one in a thousand for seeds that are always the same."""
    count = 4000
    row = np.random.default_rng(2).normal(0.0, 1.5, VOCAB_SIZE).astype(np.float32)
    sampling = sampling_of(count, 0.8)
    counts = Counter(corrected(fitting, row[None], one_of(sampling, i), [])[0] for i in range(count))
    weights = np.where([token in fitting for token in range(VOCAB_SIZE)], np.exp(row.astype(np.float64) / 0.8), 0.0)
    expected = count * weights / weights.sum()
    assert set(counts) <= fitting
    chi_square = sum((counts[token] - expected[token]) ** 2 / expected[token] for token in fitting)
    assert chi_square < {1: 1e-6, 2: 10.8, 4: 16.3, 13: 32.9}[len(fitting)]


def one_of(sampling: SamplingInput, row: int) -> SamplingInput:
    names = ("temperatures", "top_k", "top_p", "min_p", "seeds", "positions")
    return SamplingInput(*(getattr(sampling, name)[row : row + 1] for name in names))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Neighbours with more fitting tokens make the rows wider in which they are sampled again."""
    vocab_size, count = 1300, 40
    rng = np.random.default_rng(3)
    ops = CpuOps("float32", 2, 16, 64, vocab_size)
    logits = rng.normal(0.0, 2.0, (count, vocab_size)).astype(np.float32)
    sizes = rng.choice([1, 3, 500, 512, 513, 1024, 1250], count)
    fitting = {f"s{i}": set(rng.choice(vocab_size, size, replace=False).tolist()) for i, size in enumerate(sizes)}
    grammars = Fixed(fitting, [], vocab_size)
    rows = HeldRows(grammars, {name: i for i, name in enumerate(fitting)}, np.full(count, 5))
    sampling = sampling_of(count, 1.3)
    together = ops.sample(logits, sampling)
    before = together.copy()
    held = [HeldRow(i, name, 0) for i, name in enumerate(fitting)]
    rows.correct(logits, {}, sampling, together, held, ops.sample)
    assert (together != before).sum() > count // 4
    for i, one in enumerate(held):
        alone = ops.sample(logits[i : i + 1], one_of(sampling, i))
        rows.correct(logits[i : i + 1], {}, one_of(sampling, i), alone, [HeldRow(0, one.sequence_id, 0)], ops.sample)
        assert alone.tolist() == [together[i]] and int(alone[0]) in fitting[one.sequence_id]


def test_greedy_tokens_are_those_of_masked_rows() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        fitting = set(rng.choice(VOCAB_SIZE, 4, replace=False).tolist())
        logits = rng.normal(size=(3, VOCAB_SIZE)).astype(np.float32)
        forbidden = [token for token in range(VOCAB_SIZE) if token not in fitting]
        masked = logits.copy()
        masked[:, forbidden] = -np.inf
        best = masked.argmax(axis=1).tolist()
        # Drafts that are right, so that every place counts.
        assert corrected(fitting, logits, sampling_of(3, 0.0), best[:2]) == best


def test_a_row_that_others_have_emptied_starts_again_from_the_raw_one() -> None:
    ops = CpuOps("float32", 1, 16, 64, VOCAB_SIZE)
    raw = np.arange(VOCAB_SIZE, dtype=np.float32)
    logits = raw.copy()[None]
    logits[0, [2, 3]] = -np.inf
    for correct in (True, False):
        rows, held = HeldRows(Fixed({"held": {2, 3}}, []), {"held": 0}, np.array([5])), [HeldRow(0, "held", 0)]
        sampling = sampling_of(1, 0.0)
        tokens = ops.sample(logits, sampling)
        if correct:
            rows.correct(logits, {0: raw}, sampling, tokens, held, ops.sample)
        else:
            rows.mask(logits, {0: raw}, held)
            tokens = ops.sample(logits, sampling)
        assert tokens.tolist() == [3]


def test_which_rows_only_have_a_temperature() -> None:
    sampling = sampling_of(5, 1.0)
    sampling.top_k[1], sampling.top_p[2], sampling.min_p[3] = 4, 0.5, 0.1
    sampling.top_k[4], sampling.temperatures[4] = 4, 0.0
    assert only_temperature(sampling).tolist() == [True, False, False, False, True]
