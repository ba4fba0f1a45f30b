"""How many drafts are worth their time: none where the batch is full, fewer where they were wrong.

Whatever is decided here changes how long a text takes, never the text.
"""

from __future__ import annotations

LEAST_GAIN = 1.1
"""Tokens a second with drafts by those without that must be expected, or there are none."""
KEPT_EXPERIENCE = 0.85
"""What is left of older experience with each new draft."""
LONGEST_PAUSE = 64
MOST_TOKENS = 512
"""Steps with more tokens compute prompts, and tell nothing of drafts."""
KEPT_TIMES = 0.97
FIRST_SLOPE = 0.03
"""Time of one token more by that of a whole step, before any was measured; see docs/speculative_decoding.md."""
FIRST_WEIGHT = 20.0
"""Of that first guess, in squared tokens of the measured steps' spread."""


class StepTimes:
    """Time of a step by its tokens: a line through the latest steps, which forgets the older ones.

    Only ratios matter, so the time is in any unit.
    """

    def __init__(self) -> None:
        self._weight = self._tokens = self._time = self._squares = self._products = 0.0

    def note(self, num_tokens: int, seconds: float) -> None:
        """A step has taken so long."""
        if num_tokens > MOST_TOKENS:
            return
        for name, value in (
            ("_weight", 1.0),
            ("_tokens", num_tokens),
            ("_time", seconds),
            ("_squares", num_tokens * num_tokens),
            ("_products", num_tokens * seconds),
        ):
            setattr(self, name, getattr(self, name) * KEPT_TIMES + value)

    def ratio(self, num_tokens: float, by: float) -> float:
        """Time of a step with so many tokens by that of one with `by`, which are fewer; at least 1."""
        if not self._weight:
            return 1.0 + FIRST_SLOPE * (num_tokens - by)
        tokens, time = self._tokens / self._weight, self._time / self._weight
        spread = max(self._squares - self._weight * tokens * tokens, 0.0)
        together = self._products - self._weight * tokens * time
        slope = max((together + FIRST_WEIGHT * FIRST_SLOPE * time) / (spread + FIRST_WEIGHT), 0.0)
        # A line that is too steep for its few steps must not reach below zero.
        least = max(time + slope * (by - tokens), 0.2 * time)
        return 1.0 + slope * (num_tokens - by) / least


class Pace:
    """One sequence's experience with drafts.

    The share of drafts that prove right is estimated from those that were tried; how many to ask for follows from it
    and from the time of steps. Where none is worth it, one is tried now and then, ever more rarely while it fails.
    """

    def __init__(self) -> None:
        # A first guess, which soon weighs little.
        self._right, self._tried = 1.6, 2.0
        self._pause = 1
        self._waited = 0

    def learn(self, num_drafts: int, num_accepted: int) -> None:
        """A draft was tried. What is behind its first wrong token tells nothing."""
        tried = num_accepted + (num_accepted < num_drafts)
        self._right = self._right * KEPT_EXPERIENCE + num_accepted
        self._tried = self._tried * KEPT_EXPERIENCE + tried
        if num_accepted:
            self._pause = 1

    def num_drafts(self, most: int, num_sequences: int, times: StepTimes) -> int:
        """How many to ask for, if each of the step's sequences does the same."""
        share = min(self._right / self._tried, 0.98)
        best, best_gain = 0, LEAST_GAIN
        expected, likely = 1.0, 1.0
        for count in range(1, most + 1):
            likely *= share
            expected += likely
            gain = expected / times.ratio(num_sequences * (1 + count), num_sequences)
            if gain > best_gain:
                best, best_gain = count, gain
        return best or self._try_again(most, 2.0 / times.ratio(2.0 * num_sequences, num_sequences))

    def _try_again(self, most: int, best_gain: float) -> int:
        """A single draft after a pause, so that a text that has become easy is noticed."""
        self._waited += 1
        if best_gain < LEAST_GAIN or self._waited < self._pause:
            return 0
        self._waited, self._pause = 0, min(2 * self._pause, LONGEST_PAUSE)
        return min(most, 1)
