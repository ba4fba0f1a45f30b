"""The distribution behind rejection sampling, by chi-square; and its greedy rows, which are exact."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from interleaf.ops import SamplingInput
from interleaf.ops.cpu import CpuOps
from interleaf.worker.spec_decode.rejection import DraftDistributions, distribution

VOCAB_SIZE = 12
TRIALS = 5_000


def sampling(
    count: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> SamplingInput:
    return SamplingInput(
        temperatures=np.full(count, temperature, np.float32),
        top_k=np.full(count, top_k, np.int32),
        top_p=np.full(count, top_p, np.float32),
        min_p=np.full(count, min_p, np.float32),
        seeds=np.arange(count, dtype=np.uint64),
        positions=np.full(count, 5, np.int32),
    )


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    kept = expected > 0
    assert counts[~kept].sum() == 0
    return float((((counts - expected) ** 2)[kept] / expected[kept]).sum())


@pytest.mark.parametrize("filters", [{}, {"temperature": 0.6, "top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_tokens_are_distributed_as_the_model_says(filters: dict[str, float]) -> None:
    ops = CpuOps("float32", 2, 16, 64, VOCAB_SIZE)
    rng = np.random.default_rng(3)
    target = np.tile(rng.normal(0, 1.2, VOCAB_SIZE).astype(np.float32), (TRIALS, 1))
    draft = np.tile(rng.normal(0, 1.2, VOCAB_SIZE).astype(np.float32), (TRIALS, 1))
    how, rows = sampling(TRIALS, **filters), np.arange(TRIALS)  # type: ignore[arg-type]
    drafts = DraftDistributions()
    proposed = drafts.draft(ops, draft, rows, how)
    tokens = ops.sample(target, how)
    plain = tokens.copy()
    drafts.accept(target, rows, how, tokens)
    p, q = distribution(target, how, 0), distribution(draft, how, 0)
    # 99.9 % of samples of the right distribution stay below these, with at most 11 degrees of freedom.
    for sample, weights in ((plain, p), (proposed, q), (tokens, p)):
        assert chi_square(np.bincount(sample, minlength=VOCAB_SIZE), weights * TRIALS) < 31.3
    accepted = float((tokens == proposed).mean())
    assert accepted > np.minimum(p, q).sum() - 0.04, "as many drafts as can be are accepted"
    assert accepted > float((plain == proposed).mean())


def test_the_draft_and_what_follows_are_independent_of_other_rows() -> None:
    ops = CpuOps("float32", 2, 16, 64, VOCAB_SIZE)
    rng = np.random.default_rng(4)
    target, draft = (rng.normal(0, 1, (8, VOCAB_SIZE)).astype(np.float32) for _ in range(2))

    def tokens_of(rows: np.ndarray) -> list[int]:
        drafts, how = DraftDistributions(), sampling(8)
        how = SamplingInput(*(getattr(how, name)[rows] for name in how.__dataclass_fields__))
        drafts.draft(ops, draft[rows], rows, how)
        tokens = ops.sample(target[rows], how)
        drafts.accept(target[rows], rows, how, tokens)
        found: list[int] = tokens.tolist()
        return found

    assert tokens_of(np.arange(8)) == [tokens_of(np.array([row]))[0] for row in range(8)]


def test_greedy_rows_are_left_alone_and_stale_drafts_forgotten() -> None:
    ops = CpuOps("float32", 2, 16, 64, VOCAB_SIZE)
    rng = np.random.default_rng(5)
    target, draft = (rng.normal(0, 1, (1, VOCAB_SIZE)).astype(np.float32) for _ in range(2))
    row, greedy, sampled = np.zeros(1, np.int64), sampling(1, temperature=0.0), sampling(1)
    drafts = DraftDistributions()
    assert drafts.draft(ops, draft, row, greedy)[0] == draft.argmax()
    tokens = ops.sample(target, greedy)
    drafts.accept(target, row, greedy, tokens)
    assert tokens[0] == target.argmax()
    drafts.draft(ops, draft, row, sampled)
    drafts.forget(0)
    tokens = ops.sample(target, sampled)
    plain = tokens.copy()
    drafts.accept(target, row, sampled, tokens)
    assert Counter(tokens.tolist()) == Counter(plain.tolist())
