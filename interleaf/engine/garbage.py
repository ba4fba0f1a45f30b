"""Python's collector of reference cycles, in programs that serve for days."""

from __future__ import annotations

import gc

THRESHOLDS = (5_000, 5, 2)
"""Containers that came and did not go, before the youngest of them are looked through; how often before older ones.

The oldest are few, as what was there at the start is set aside; looked through rarely, they would hold the memory of
requests that ended long ago.
"""


def settle() -> None:
    """Say that what the program holds by now is there to stay.

    The collector would look through modules, schemas and token tables again and again; while it does, no other
    thread of the program runs Python.
    """
    gc.collect()
    gc.freeze()
    # The collector spares the oldest generation until it has grown by a quarter of what it counted last.
    gc.collect()
    gc.set_threshold(*THRESHOLDS)
