"""Merges made of a vocabulary's scores, against all pairs tried one by one."""

from __future__ import annotations

import math
import random

from interleaf._native import merges_from_scores


def all_pairs(pieces: list[str], names: list[str], scores: list[float], usable: list[bool]) -> list[tuple[int, int]]:
    ids = {name: index for index, name in enumerate(names) if name}
    found = [
        (float("inf") if math.isnan(score) else -score, ids[left], ids[right])
        for piece, score, used in zip(pieces, scores, usable, strict=True)
        for left in ids
        for right in ids
        if used and left + right == piece
    ]
    return [(left, right) for _, left, right in sorted(found)]


def test_merges_are_all_pairs_best_first() -> None:
    rng = random.Random(0)
    for trial in range(20):
        pieces = list({"".join(rng.choices("aé世🙂", k=rng.randint(0, 5))): None for _ in range(60)})
        rng.shuffle(pieces)
        # A piece that occurs again has a name that no text has.
        names = [*pieces, "[PAD]"]
        pieces = [*pieces, rng.choice(pieces)]
        scores = [rng.choice([-1.0, -2.5, 0.0, float("nan"), -float(i)]) for i in range(len(pieces))]
        usable = [rng.random() < 0.9 for _ in pieces]
        found = merges_from_scores(pieces, names, scores, usable)
        assert found == all_pairs(pieces, names, scores, usable), trial
        assert found
