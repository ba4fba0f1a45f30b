"""Times as OpenAI's API writes them."""

from __future__ import annotations

import time


def now() -> int:
    """Seconds of the Unix epoch."""
    return int(time.time())
