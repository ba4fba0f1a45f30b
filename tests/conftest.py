from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def builtin_gguf() -> Path:
    """The built-in model's file, fetched once."""
    from interleaf.config import BUILTIN_MODEL
    from interleaf.loader import builtin

    return builtin.path_of(BUILTIN_MODEL)


@pytest.fixture
def drafts_at_any_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tiny model a step with drafts may take twice the time of one without, and would not be worth it."""
    from interleaf.worker.spec_decode import pace

    monkeypatch.setattr(pace, "LEAST_GAIN", 0.0)
