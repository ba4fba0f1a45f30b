"""sample and logprobs against the reference, and sampling against its distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interleaf.ops import SamplingInput
from interleaf.ops.reference import ReferenceOps, kept_weights, uniform
from tests.ops.native import LEVELS, cpu_ops


def sampling(rows: int, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed: int = 0) -> SamplingInput:
    return SamplingInput(
        temperatures=np.full(rows, temperature, np.float32),
        top_k=np.full(rows, top_k, np.int32),
        top_p=np.full(rows, top_p, np.float32),
        min_p=np.full(rows, min_p, np.float32),
        seeds=np.arange(seed, seed + rows, dtype=np.uint64),
        positions=np.arange(rows, dtype=np.int32) * 7,
    )


SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.3, "top_k": 5},
    {"temperature": 1.5, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 2.0, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 1e-6},
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("vocab_size", [7, 512, 1000])
def test_sample_picks_what_the_reference_picks(level: str, setting: dict, vocab_size: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (64, vocab_size)).astype(np.float32)
    logits[::3] = np.round(logits[::3])  # ties
    logits[1, : vocab_size // 2] = -np.inf
    chosen = cpu_ops(level, "float32").sample(logits, sampling(64, **setting))
    expected = ReferenceOps("float32").sample(logits, sampling(64, **setting))
    # A draw within rounding of a border may fall on either side.
    assert (chosen == expected).mean() > 0.98


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("setting", [SETTINGS[2], SETTINGS[3], SETTINGS[5], {"top_k": 3000, "top_p": 0.95}])
def test_most_blocks_of_a_large_vocabulary_are_passed_over(level: str, setting: dict) -> None:
    logits = np.random.default_rng(2).normal(0, 3, (16, 30001)).astype(np.float32)
    logits[::3] = np.round(logits[::3])  # ties
    logits[1, 300:29000] = -np.inf
    logits[2, ::2] = np.nan
    logits[2, 1::2] = 0.5
    chosen = cpu_ops(level, "float32").sample(logits, sampling(16, **setting))
    kept = [0, 1, *range(3, 16)]
    expected = ReferenceOps("float32").sample(logits[kept], _rows(sampling(16, **setting), kept))
    assert (chosen[kept] == expected).mean() > 0.9
    assert chosen[2] % 2 == 1


def _rows(whole: SamplingInput, rows: list[int]) -> SamplingInput:
    return SamplingInput(*(getattr(whole, name)[rows] for name in whole.__dataclass_fields__))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("setting", SETTINGS[1:6])
def test_sample_has_the_right_distribution(level: str, setting: dict) -> None:
    rng = np.random.default_rng(1)
    row = rng.normal(0, 2, 40).astype(np.float32)
    count = 6000
    logits = np.tile(row, (count, 1))
    chosen = cpu_ops(level, "float32").sample(logits, sampling(count, **setting, seed=123))
    options = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **setting}
    scaled = torch.from_numpy(row).double() / options.pop("temperature")
    weights = kept_weights(scaled, **options)
    expected = (weights / weights.sum()).numpy() * count
    observed = np.bincount(chosen, minlength=40)
    assert observed[expected == 0].sum() == 0
    kept = expected > 5
    chi_square = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_square < kept.sum() + 5 * np.sqrt(2 * kept.sum()) + 5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spread", [0.0, 1e-4, 1.0])
def test_top_p_over_a_flat_distribution(level: str, spread: float) -> None:
    """Equal weights fill one bucket; then the lower token ids are kept."""
    logits = (np.random.default_rng(4).normal(0, 1, (32, 20011)) * spread).astype(np.float32)
    setting = {"temperature": 1.0, "top_p": 0.25}
    chosen = cpu_ops(level, "float32").sample(logits, sampling(32, **setting))
    expected = ReferenceOps("float32").sample(logits, sampling(32, **setting))
    assert (chosen == expected).mean() > 0.6  # a thousand tokens weigh the same but for rounding
    if spread == 0.0:
        assert (chosen <= 20011 / 4 + 1).all()


@pytest.mark.parametrize("level", LEVELS)
def test_sample_survives_logits_that_are_not_numbers(level: str) -> None:
    logits = np.full((4, 100), np.nan, np.float32)
    logits[1] = -np.inf
    logits[2, 50] = np.inf
    logits[3, :50] = np.nan
    logits[3, 50:] = 0.0
    chosen = cpu_ops(level, "float32").sample(logits, sampling(4, top_k=3))
    assert ((chosen >= 0) & (chosen < 100)).all()
    assert chosen[2] == 50
    assert chosen[3] >= 50


@pytest.mark.parametrize("level", LEVELS)
def test_logprobs(level: str) -> None:
    rng = np.random.default_rng(2)
    logits = np.round(rng.normal(0, 5, (10, 333)), 1).astype(np.float32)
    rows, tokens = np.array([3, 3, 9, 0]), np.array([5, 6, 332, 0])
    num_top = np.array([0, 5, 333, 1], np.int32)
    actual = cpu_ops(level, "float32").logprobs(logits, rows, tokens, num_top)
    expected = ReferenceOps("float32").logprobs(logits, rows, tokens, num_top)
    np.testing.assert_allclose(actual.chosen, expected.chosen, atol=1e-5)
    np.testing.assert_array_equal(actual.ranks, expected.ranks)
    for i, count in enumerate(num_top):
        np.testing.assert_array_equal(actual.top_tokens[i, :count], expected.top_tokens[i, :count])
        np.testing.assert_allclose(actual.top_logprobs[i, :count], expected.top_logprobs[i, :count], atol=1e-5)


def test_noise_is_uniform_and_a_function_of_seed_and_position() -> None:
    values = np.array([uniform(seed, position) for seed in range(40) for position in range(50)])
    assert values.min() >= 0.0
    assert values.max() < 1.0
    assert len(np.unique(values)) == len(values)
    counts, _ = np.histogram(values, bins=10, range=(0, 1))
    assert ((counts - 200) ** 2 / 200).sum() < 40
    assert uniform(3, 7) == uniform(3, 7)
