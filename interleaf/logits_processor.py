"""The interface of what changes logits before sampling. The built-in ones are in `interleaf/worker/logits/`.

The engine keeps the books: which sequence holds which row of the batch, forks, preemption, replay. A processor says
what it needs to know of a sequence (its *state*), how a token changes that, and what it does to the rows of logits
whose sequences have a state. See docs/logits_processors.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from interleaf.config import EngineConfig
from interleaf.params import SamplingParams

if TYPE_CHECKING:
    import numpy as np

State = TypeVar("State")


class SequenceStart(Protocol):
    """A sequence that comes into the batch: new, forked, or with its output behind a preemption or a crash."""

    @property
    def params(self) -> SamplingParams: ...

    @property
    def prompt_token_ids(self) -> list[int]: ...

    @property
    def output_token_ids(self) -> list[int]: ...

    @property
    def eos_token_ids(self) -> list[int]:
        """The model's end-of-sequence tokens, also where `params.ignore_eos` is set."""

    @property
    def bad_word_token_ids(self) -> list[list[int]]:
        """`params.bad_words` as tokens."""


class LogitsProcessor(Generic[State]):
    """Base of all logits processors; one object serves all sequences of an engine.

    Every sequence's result must depend on that sequence alone, and its state on its tokens and parameters alone: that
    is what keeps a request's tokens the same in every batch, and after a preemption or a crash.

    What `start`, `advance` or `apply` raise ends the sequences at fault with an error; the others go on.

    Args:
        config: of the engine; `config.model.vocab_size` is the width V of logits.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config

    @classmethod
    def validate_params(cls, params: SamplingParams) -> None:
        """Look at a new request's parameters, in the front end, before anything is computed.

        Raises:
            ValueError: they are refused, with this message; over HTTP the status is 400.
        """

    def start(self, sequence: SequenceStart) -> State | None:
        """The state of a sequence behind its tokens so far; None leaves this sequence alone."""
        raise NotImplementedError

    def advance(self, state: State, token: int) -> State | None:
        """The state behind one more token (it may be changed in place); None leaves the sequence alone from now on."""
        return state

    def apply(self, logits: np.ndarray, held: Sequence[tuple[int, State]]) -> None:
        """Change logits in place.

        Args:
            logits: float32 [L, V]; -inf forbids a token.
            held: (i, state) of each row `logits[i]` whose sequence has a state; there is at least one. The others
                must be left as they are.
        """
        raise NotImplementedError
