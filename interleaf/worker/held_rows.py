"""Rows of logits whose next token is held to a grammar.

Where nothing but the temperature stands between logits and token, the token is sampled as if there were no grammar,
and kept if the grammar lets it through; else it is sampled again from what the grammar leaves, with noise of its own.
That gives each token its share of the distribution that the grammar leaves: p(t) at first, and p(t) / p(fitting) of
the p(not fitting) that comes again. A greedy row has the same token either way. So most rows need no mask, and a mask
takes far longer than the check of a token.

Elsewhere (top_k, top_p and min_p, which must choose among what fits; drafts that are judged by their distribution)
the row is masked first: logits of tokens that the grammar does not let through become minus infinity, behind all other
changes. Which way is taken depends on the request's own parameters alone, or its bits would depend on its neighbours.

Where other changes to logits have left no token that the grammar lets through (if `min_tokens` forbids the end, and
the grammar anything else), the grammar has the last word: the row starts again from the raw logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from interleaf.messages import TokenGrammars
from interleaf.ops import SamplingInput

SUMMANDS = np.where((np.arange(256)[:, None] >> np.arange(8)) & 1, 0.0, -np.inf).astype(np.float32)
"""[256, 8]: what to add to eight logits for each value of a mask's byte. Quicker than anything with a branch."""
SECOND_NOISE = np.uint64(0xD1B54A32D192ED03)
"""Changes a seed to that of the noise for tokens that are sampled again."""
SUM_BLOCK = 512
"""Probabilities are added up in blocks of so many (`kSumBlock` in csrc/kernels/sampling.cpp)."""


@dataclass(frozen=True, slots=True)
class HeldRow:
    """Row `row` of logits, from which a sequence's token for a place behind its tokens is sampled."""

    row: int
    sequence_id: str
    place: int


Sample = Callable[[np.ndarray, SamplingInput], np.ndarray]
"""`Ops.sample`."""


class HeldRows:
    """The sequences of one step that are held to a grammar.

    Args:
        grammars: of the step.
        row_of: sequence -> batch row.
        num_tokens: int [rows]: of each sequence before the step; place 0 is that position.
    """

    def __init__(self, grammars: TokenGrammars, row_of: dict[str, int], num_tokens: np.ndarray) -> None:
        self._grammars = grammars
        self._held = {row: (name, int(num_tokens[row])) for name, row in row_of.items() if name in grammars}

    @classmethod
    def of(cls, grammars: TokenGrammars | None, row_of: dict[str, int], num_tokens: np.ndarray) -> HeldRows | None:
        """None for a step without grammars."""
        return None if grammars is None else cls(grammars, row_of, num_tokens)

    def among(self, rows: np.ndarray, positions: np.ndarray) -> list[HeldRow]:
        """Those of the batch rows that are held; `positions[i]` is that of the token sampled for `rows[i]`."""
        held = self._held
        return [
            HeldRow(i, held[row][0], position - held[row][1])
            for i, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True))
            if row in held
        ]

    def mask(self, logits: np.ndarray, raw: dict[int, np.ndarray], held: list[HeldRow]) -> None:
        """Forbid tokens in float32 logits [L, V], in place.

        Args:
            raw: i -> the row as the model made it, of those rows that something else has changed.
        """
        left = held
        while left:
            # One place of each sequence at a time.
            first = {one.sequence_id: one for one in reversed(left)}
            for one, mask in self._masks(list(first.values())):
                forbid = SUMMANDS.take(mask, axis=0, mode="clip").reshape(-1)[: logits.shape[1]]
                row = logits[one.row]
                row += forbid
                if one.row in raw and not np.isfinite(row).any():
                    np.add(raw[one.row], forbid, out=row)
            left = [one for one in left if first[one.sequence_id] is not one]

    def _masks(self, held: list[HeldRow]) -> Iterator[tuple[HeldRow, np.ndarray]]:
        masks = np.frombuffer(self._grammars.fill([(one.sequence_id, one.place) for one in held]), np.uint8)
        return zip(held, masks.reshape(len(held), -1), strict=True)

    def correct(
        self,
        logits: np.ndarray,
        raw: dict[int, np.ndarray],
        sampling: SamplingInput,
        tokens: np.ndarray,
        held: list[HeldRow],
        sample: Sample,
    ) -> None:
        """Replace sampled tokens that do not fit, in place; `logits` stay as they are. `raw` is that of `mask`."""
        runs: dict[str, list[HeldRow]] = {}
        for one in held:
            runs.setdefault(one.sequence_id, []).append(one)
        done: set[int] = set()
        while runs:
            for name, run in runs.items():
                runs[name] = self._from_misfit(run, tokens)
            # A state that has failed lets nothing through that it gives.
            runs = {name: run for name, run in runs.items() if run and run[0].row not in done}
            misfits = [run[0] for run in runs.values()]
            done.update(one.row for one in misfits)
            self._sample_again(logits, raw, sampling, tokens, misfits, sample)

    def _sample_again(
        self,
        logits: np.ndarray,
        raw: dict[int, np.ndarray],
        sampling: SamplingInput,
        tokens: np.ndarray,
        misfits: list[HeldRow],
        sample: Sample,
    ) -> None:
        if not misfits:
            return
        fitting = [np.flatnonzero(_bits(mask)[: logits.shape[1]]) for _, mask in self._masks(misfits)]
        # Whole blocks of what cannot be drawn change no bit of what can.
        width = min(-(-max(map(len, fitting)) // SUM_BLOCK) * SUM_BLOCK, logits.shape[1])
        left = np.full((len(misfits), width), -np.inf, np.float32)
        for i, (one, allowed) in enumerate(zip(misfits, fitting, strict=True)):
            left[i, : len(allowed)] = logits[one.row][allowed]
            if one.row in raw and not np.isfinite(left[i]).any():
                left[i, : len(allowed)] = raw[one.row][allowed]
        found = sample(left, _again(sampling, np.array([one.row for one in misfits])))
        for one, allowed, place in zip(misfits, fitting, found.tolist(), strict=True):
            tokens[one.row] = allowed[place]

    def _from_misfit(self, run: list[HeldRow], tokens: np.ndarray) -> list[HeldRow]:
        """Check a sequence's tokens; returns the rows from the first on that must be sampled again."""
        while run:
            sampled = [int(tokens[one.row]) for one in run]
            misfit = self._grammars.first_misfit(run[0].sequence_id, run[0].place, sampled)
            if misfit is None:
                return []
            run = run[misfit.offset :]
            if misfit.token_id is None:
                return run
            tokens[run[0].row] = misfit.token_id
        return run


def only_temperature(sampling: SamplingInput) -> np.ndarray:
    """bool [L]: rows that are greedy, or sampled from all tokens."""
    return (sampling.temperatures <= 0.0) | ((sampling.top_k <= 0) & (sampling.top_p >= 1.0) & (sampling.min_p <= 0.0))


def _bits(mask: np.ndarray) -> np.ndarray:
    return np.unpackbits(mask, bitorder="little").view(np.bool_)


def _again(sampling: SamplingInput, chosen: np.ndarray) -> SamplingInput:
    return SamplingInput(
        sampling.temperatures[chosen],
        sampling.top_k[chosen],
        sampling.top_p[chosen],
        sampling.min_p[chosen],
        sampling.seeds[chosen] ^ SECOND_NOISE,
        sampling.positions[chosen],
    )
