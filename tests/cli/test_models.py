"""`interleaf models`, with a cache that is a dictionary."""

from __future__ import annotations

from pathlib import Path

import pytest

from interleaf.config import BUILTIN_MODEL
from interleaf.errors import CheckpointNotFoundError
from interleaf.loader import builtin
from tests.cli.conftest import Run


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    cached: dict[str, Path] = {}

    def pull(name: str) -> Path:
        if name not in builtin.MODELS:
            raise CheckpointNotFoundError(f"There is no built-in model {name!r}.")
        return cached.setdefault(name, Path("/cache") / name)

    monkeypatch.setattr(builtin, "pull", pull)
    monkeypatch.setattr(builtin, "remove", lambda name: cached.pop(name, None) is not None)
    monkeypatch.setattr(
        builtin, "list_cached", lambda: [builtin.CachedModel(name, path, 1, "x") for name, path in cached.items()]
    )
    return cached


@pytest.mark.parametrize("arguments", [[], ["list"]])
def test_list(run: Run, cache: dict[str, Path], arguments: list[str]) -> None:
    _, out, _ = run("models", *arguments)
    assert f"interleaf models pull {BUILTIN_MODEL}" in out
    run("models", "pull", BUILTIN_MODEL)
    _, out, _ = run("models", *arguments)
    assert f"/cache/{BUILTIN_MODEL}" in out


def test_pull_and_remove(run: Run, cache: dict[str, Path]) -> None:
    assert run("models", "pull", BUILTIN_MODEL) == (0, f"/cache/{BUILTIN_MODEL}\n", "")
    assert "was removed" in run("models", "remove", BUILTIN_MODEL)[1]
    assert "was not in the cache" in run("models", "remove", BUILTIN_MODEL)[1]


def test_an_unknown_model(run: Run, cache: dict[str, Path]) -> None:
    assert run("models", "pull", "gpt-9") == (1, "", "interleaf: error: There is no built-in model 'gpt-9'.\n")
    assert run("models", "pull")[0] == 2
