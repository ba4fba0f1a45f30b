"""Ctrl-C in programs that compute in their own process."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class InterruptLater:
    """Holds Ctrl-C back while the state of the engine changes; a second one gets through at once.

    It may be entered again within itself, which costs next to nothing; what was held back then comes at the end of the
    inner one.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._installed = False
        self._interrupted = False

    def __enter__(self) -> None:
        if self._depth == 0:
            self._interrupted = False
            self._installed = (
                threading.current_thread() is threading.main_thread()
                and signal.getsignal(signal.SIGINT) is signal.default_int_handler
            )
            if self._installed:
                signal.signal(signal.SIGINT, self._note)
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0 and self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._interrupted and error is None:
            self._interrupted = False
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
