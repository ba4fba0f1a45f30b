"""How many drafts are worth their time: none where the batch is full, fewer where they were wrong.

Whatever is decided here changes how long a text takes, never the text.
"""

from __future__ import annotations

FREE_ROWS = 6
"""Tokens that a step computes in the time of one: it waits for the weights meanwhile."""
ROW_COST = 0.085
"""Time of each token beyond, by that of a step with one; see docs/speculative_decoding.md for the measurement."""
LEAST_GAIN = 1.1
"""Tokens a second with drafts by those without that must be expected, or there are none."""
KEPT_WEIGHT = 0.85
"""What is left of older experience with each new draft."""
LONGEST_PAUSE = 64


def step_time(num_tokens: float) -> float:
    """Time of a step that computes so many tokens, by that of a step with one."""
    return 1.0 + ROW_COST * max(0.0, num_tokens - FREE_ROWS)


class Pace:
    """One sequence's experience with drafts.

    The share of drafts that prove right is estimated from those that were tried; how many to ask for follows from it
    and from the time of the step. Where none is worth it, one is tried now and then, ever more rarely while it fails.
    """

    def __init__(self) -> None:
        # A first guess, which soon weighs little.
        self._right, self._tried = 1.6, 2.0
        self._pause = 1
        self._waited = 0

    def learn(self, num_drafts: int, num_accepted: int) -> None:
        """A draft was tried. What is behind its first wrong token tells nothing."""
        tried = num_accepted + (num_accepted < num_drafts)
        self._right = self._right * KEPT_WEIGHT + num_accepted
        self._tried = self._tried * KEPT_WEIGHT + tried
        if num_accepted:
            self._pause = 1

    def num_drafts(self, most: int, num_sequences: int) -> int:
        """How many to ask for, if each of the step's sequences does the same."""
        share = min(self._right / self._tried, 0.98)
        alone = step_time(num_sequences)
        best, best_gain = 0, LEAST_GAIN
        expected, likely = 1.0, 1.0
        for count in range(1, most + 1):
            likely *= share
            expected += likely
            gain = expected * alone / step_time(num_sequences * (1 + count))
            if gain > best_gain:
                best, best_gain = count, gain
        if best:
            return best
        return self._try_again(most, num_sequences)

    def _try_again(self, most: int, num_sequences: int) -> int:
        """A single draft after a pause, so that a text that has become easy is noticed."""
        worth_it = 2.0 * step_time(num_sequences) / step_time(2.0 * num_sequences) > LEAST_GAIN
        self._waited += 1
        if not worth_it or self._waited < self._pause:
            return 0
        self._waited, self._pause = 0, min(2 * self._pause, LONGEST_PAUSE)
        return min(most, 1)
