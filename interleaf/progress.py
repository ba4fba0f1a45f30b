"""The progress bar of offline generation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

from interleaf.outputs import RequestOutput

UseTqdm = bool | Callable[..., Any]
"""Whether to show a progress bar; a callable makes the bar in tqdm's stead."""


class Progress:
    """A bar that counts finished prompts and shows tokens a second, read and written."""

    SECONDS_BETWEEN_UPDATES = 0.1

    def __init__(self, use_tqdm: UseTqdm, num_prompts: int) -> None:
        self._bar: Any = None
        if use_tqdm:
            make_bar = _tqdm() if use_tqdm is True else use_tqdm
            self._bar = make_bar(total=num_prompts, desc="Processed prompts", dynamic_ncols=True)
        self._start = self._shown = time.monotonic()
        self._num_read = 0
        self._num_written = 0

    def finish(self, output: RequestOutput) -> None:
        """Count a finished prompt."""
        self._num_read += len(output.prompt_token_ids)
        if self._bar is not None:
            self._bar.update(1)

    def advance(self, num_written: int) -> None:
        """Count generated tokens."""
        self._num_written += num_written
        now = time.monotonic()
        if self._bar is None or now - self._shown < self.SECONDS_BETWEEN_UPDATES:
            return
        self._shown = now
        self._show_speed(now)

    def close(self) -> None:
        if self._bar is not None:
            self._show_speed(time.monotonic())
            self._bar.close()

    def _show_speed(self, now: float) -> None:
        seconds = max(now - self._start, 1e-9)
        self._bar.set_postfix_str(
            f"input: {self._num_read / seconds:.1f} tok/s, output: {self._num_written / seconds:.1f} tok/s"
        )


def _tqdm() -> Callable[..., Any]:
    from tqdm import tqdm

    return cast("Callable[..., Any]", tqdm)
