"""`thinking_token_budget`: when reasoning has had its tokens, its end is forced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interleaf.logits_processor import LogitsProcessor, SequenceStart
from interleaf.reasoning import Phase, ReasoningTracker


@dataclass(slots=True)
class _Thinking:
    tracker: ReasoningTracker
    budget: int
    end_token_ids: list[int]


class ThinkingBudget(LogitsProcessor[_Thinking]):
    """Its place is behind the other built-in ones, so that none of them keeps the end from being sampled."""

    def start(self, sequence: SequenceStart) -> _Thinking | None:
        budget, markers = sequence.params.thinking_token_budget, sequence.params.reasoning_markers
        if budget is None or markers is None:
            return None
        tracker = ReasoningTracker(markers, sequence.output_token_ids)
        return None if tracker.is_over else _Thinking(tracker, budget, markers.end_token_ids)

    def advance(self, state: _Thinking, token: int) -> _Thinking | None:
        state.tracker.append(token)
        return None if state.tracker.is_over else state

    def apply(self, logits: np.ndarray, held: Sequence[tuple[int, _Thinking]]) -> None:
        for i, state in held:
            tracker = state.tracker
            if tracker.phase is Phase.REASONING and tracker.num_tokens >= state.budget:
                logits[i] = -np.inf
                logits[i, state.end_token_ids[tracker.num_end_tokens]] = 0.0
