"""Rejection sampling: accepts a draft as often as the model's distribution allows. (Leviathan et al. 2023, algorithm 1)

A draft x that was sampled from q is kept with probability min(1, p(x) / q(x)); else the token is sampled from what p
has beyond q, max(0, p - q). Either way the token is distributed as p.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from interleaf.ops import Ops, SamplingInput


class _Noise(IntEnum):
    """What a random number is drawn for: one of each for a seed and a position."""

    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


def _uniform(seed: int, position: int, noise: _Noise) -> float:
    """A number in [0, 1) that depends on these alone."""
    bits = np.random.Philox(key=np.array([seed, position], np.uint64), counter=int(noise) << 192)
    return float(np.random.Generator(bits).random())


def distribution(logits: np.ndarray, sampling: SamplingInput, row: int) -> np.ndarray:
    """What `ops.sample` draws row `row` from: float64 [V]. min_p, then top_k, then top_p; the temperature is not 0."""
    scaled = logits[row].astype(np.float64) / float(sampling.temperatures[row])
    weights = np.exp(scaled - scaled.max())
    weights[weights < sampling.min_p[row]] = 0.0
    top_k, top_p = int(sampling.top_k[row]), float(sampling.top_p[row])
    if 0 < top_k < len(weights) or top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        if 0 < top_k < len(weights):
            weights[order[top_k:]] = 0.0
        if top_p < 1.0:
            sorted_weights = weights[order]
            before = np.cumsum(sorted_weights) - sorted_weights
            weights[order[before >= top_p * weights.sum()]] = 0.0
    return np.asarray(weights / weights.sum())


def _draw(weights: np.ndarray, uniform: float) -> int:
    """A token, by its share of the weights."""
    sums = np.cumsum(weights)
    place = int(np.searchsorted(sums, uniform * sums[-1], side="right"))
    return min(place, int(np.flatnonzero(weights)[-1]))


class DraftDistributions:
    """What drafts were sampled from, by batch row and position, until the row's next drafts.

    Greedy rows have none: there a draft is accepted if it is the token.
    """

    def __init__(self) -> None:
        self._drafts: dict[int, dict[int, tuple[int, np.ndarray]]] = {}

    def forget(self, row: int) -> None:
        """The row's drafts were tried, or will not be."""
        self._drafts.pop(row, None)

    def draft(self, ops: Ops, logits: np.ndarray, rows: np.ndarray, sampling: SamplingInput) -> np.ndarray:
        """Sample drafts of the draft model's logits and remember from what: int32 [L]."""
        tokens = ops.sample(logits, sampling)
        for i, row in enumerate(rows.tolist()):
            if sampling.temperatures[i] > 0.0:
                position, weights = int(sampling.positions[i]), distribution(logits, sampling, i)
                tokens[i] = _draw(weights, _uniform(int(sampling.seeds[i]), position, _Noise.DRAFT))
                self._drafts.setdefault(row, {})[position] = (int(tokens[i]), weights)
        return tokens

    def accept(self, logits: np.ndarray, rows: np.ndarray, sampling: SamplingInput, tokens: np.ndarray) -> None:
        """Put into `tokens` the draft, or its replacement, wherever there is one for the row and position.

        Args:
            logits: float32 [L, V], as they are sampled from.
            tokens: int32 [L], as sampled without drafts.
        """
        for i, row in enumerate(rows.tolist()):
            position, seed = int(sampling.positions[i]), int(sampling.seeds[i])
            found = self._drafts.get(row, {}).get(position)
            if found is None or not sampling.temperatures[i] > 0.0:
                continue
            draft, q = found
            p = distribution(logits, sampling, i)
            if _uniform(seed, position, _Noise.ACCEPT) * q[draft] < p[draft]:
                tokens[i] = draft
                continue
            residual = np.maximum(p - q, 0.0)
            if residual.any():
                tokens[i] = _draw(residual, _uniform(seed, position, _Noise.RESIDUAL))
