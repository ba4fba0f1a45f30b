"""The commands run on the fake engine: `run` takes a command line and gives (status, stdout, stderr)."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from interleaf import llm as llm_module
from interleaf.cli.main import main
from tests.fake_engine import FakeClient, FakeTokenizer

Run = Callable[..., tuple[int, str, str]]


class Setup:
    """What a command was given and what it used.

    Attributes:
        options: keyword arguments of the LLM that the command made; None if it made none.
    """

    def __init__(self) -> None:
        self.client = FakeClient()
        self.tokenizer = FakeTokenizer()
        self.generation_config: dict[str, Any] = {}
        self.options: dict[str, Any] | None = None

    def make_llm(self, **options: Any) -> llm_module.LLM:
        self.options = options
        return REAL_LLM.from_client(self.client, self.tokenizer, self.generation_config)  # type: ignore[arg-type]


REAL_LLM = llm_module.LLM


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    setup = Setup()
    monkeypatch.setattr(llm_module, "LLM", setup.make_llm)
    return setup


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        try:
            status = main(arguments)
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else 1
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
