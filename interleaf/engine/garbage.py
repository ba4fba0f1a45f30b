"""Python's collector of reference cycles, in programs that serve for days."""

from __future__ import annotations

import gc

THRESHOLDS = (20_000, 20, 50)
"""Containers that came and did not go, before the youngest of them are looked through; how often before older ones."""


def settle() -> None:
    """Say that what the program holds by now is there to stay.

    The collector would look through modules, schemas and token tables again and again; while it does, no other
    thread of the program runs Python.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
