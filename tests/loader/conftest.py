from __future__ import annotations

from pathlib import Path

import pytest

from interleaf.config import BUILTIN_MODEL
from interleaf.loader import builtin


@pytest.fixture(scope="session")
def builtin_path() -> Path:
    """The built-in model's GGUF file, fetched if the cache lacks it."""
    return builtin.path_of(BUILTIN_MODEL)
