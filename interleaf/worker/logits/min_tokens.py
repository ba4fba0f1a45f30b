"""`min_tokens`: no token that would end the text before there are this many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interleaf.logits_processor import LogitsProcessor, SequenceStart


@dataclass(slots=True)
class _Missing:
    count: int
    stops: np.ndarray


class MinTokens(LogitsProcessor[_Missing]):
    def start(self, sequence: SequenceStart) -> _Missing | None:
        params = sequence.params
        missing = params.min_tokens - len(sequence.output_token_ids) if params.min_tokens else 0
        stops = {*sequence.eos_token_ids, *(params.stop_token_ids or ())} if missing > 0 else set()
        return _Missing(missing, np.array(sorted(stops), np.int32)) if stops else None

    def advance(self, state: _Missing, token: int) -> _Missing | None:
        state.count -= 1
        return state if state.count > 0 else None

    def apply(self, logits: np.ndarray, held: Sequence[tuple[int, _Missing]]) -> None:
        for i, state in held:
            logits[i, state.stops] = -np.inf
