"""Native ops that run as they are called, in place of being recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import interleaf._native as _native
from interleaf.ops import StepSize


class ImmediateProgram:
    """Takes the calls that a native `Program` takes, and runs each at once for a step of `size`.

    `run(program, size)` runs a program of one op.
    """

    def __init__(self, run: Callable[[_native.Program, StepSize], None], size: StepSize) -> None:
        self._run = run
        self._size = size

    def __getattr__(self, op: str) -> Callable[..., None]:
        def call(**arguments: Any) -> None:
            program = _native.Program()
            getattr(program, op)(**arguments)
            self._run(program, self._size)

        return call
