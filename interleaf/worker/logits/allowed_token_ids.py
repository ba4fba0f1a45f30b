"""`allowed_token_ids`: nothing else may be sampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interleaf.logits_processor import LogitsProcessor, SequenceStart


class AllowedTokenIds(LogitsProcessor[np.ndarray]):
    def start(self, sequence: SequenceStart) -> np.ndarray | None:
        allowed = sequence.params.allowed_token_ids
        return None if allowed is None else np.unique(np.array(allowed, np.int32))

    def apply(self, logits: np.ndarray, held: Sequence[tuple[int, np.ndarray]]) -> None:
        for i, allowed in held:
            kept = logits[i, allowed]
            logits[i] = -np.inf
            logits[i, allowed] = kept
