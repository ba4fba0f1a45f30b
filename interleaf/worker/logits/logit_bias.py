"""`logit_bias`: numbers added to the logits of named tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interleaf.logits_processor import LogitsProcessor, SequenceStart

_Biases = tuple[np.ndarray, np.ndarray]
"""Token ids, and what is added to each."""


class LogitBias(LogitsProcessor[_Biases]):
    def start(self, sequence: SequenceStart) -> _Biases | None:
        biases = sequence.params.logit_bias
        if not biases:
            return None
        return np.array(list(biases), np.int32), np.array(list(biases.values()), np.float32)

    def apply(self, logits: np.ndarray, held: Sequence[tuple[int, _Biases]]) -> None:
        for i, (tokens, biases) in held:
            logits[i, tokens] += biases
