"""`interleaf chat` on the fake engine, from a pipe and as from a terminal."""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Iterator

import pytest

from interleaf.cli import chat
from interleaf.params import SamplingParams
from tests.cli.conftest import Run, Setup

FIRST = "u:hi;a:"
SECOND = "u:hi;a:hello;u:yo;a:"


@pytest.fixture
def setup(setup: Setup) -> Setup:
    setup.client.script = {FIRST: "hello", SECOND: "again", "u:yo;a:": "anew", "s:be;u:hi;a:": "told"}
    return setup


def prompts(setup: Setup) -> list[str]:
    return ["".join(map(chr, request.prompt_token_ids)) for request in setup.client.requests]


def test_lines_from_a_pipe_are_one_conversation(run: Run, setup: Setup) -> None:
    assert run("chat", stdin="hi\n\nyo\n") == (0, "hello\nagain\n", "")
    assert prompts(setup) == [FIRST, SECOND]


def test_reset_and_exit_work_in_a_pipe(run: Run, setup: Setup) -> None:
    assert run("chat", stdin="hi\n/reset\nyo\n/exit\nhi\n")[1] == "hello\nanew\n"


def test_a_system_message(run: Run, setup: Setup) -> None:
    assert run("chat", "--system", "be", stdin="hi\n/reset\nhi\n")[1] == "told\ntold\n"


def test_an_error_in_a_pipe_ends_it(run: Run, setup: Setup) -> None:
    status, out, err = run("chat", stdin="hi\n" + "x" * 100 + "\nyo\n")
    assert (status, out) == (1, "hello\n") and "context" in err


def test_a_model_without_template_cannot_chat(run: Run, setup: Setup) -> None:
    setup.tokenizer.chat_template = None
    status, _, err = run("chat", stdin="hi\n")
    assert status == 1 and "chat template" in err


def talk(setup: Setup, monkeypatch: pytest.MonkeyPatch, *lines: str | BaseException) -> None:
    """Type lines at a terminal; an exception stands for a key, and the end is Ctrl-D."""
    typed: Iterator[str | BaseException] = iter([*lines, EOFError()])

    def read(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", read)
    chat._talk(chat.Conversation(setup.make_llm(), SamplingParams(max_tokens=20), None))


def test_at_a_terminal(setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    talk(setup, monkeypatch, "/stats", "hi", "", KeyboardInterrupt(), "/stats", "yo", "/what", "/reset", "yo", "/exit")
    out = capsys.readouterr().out
    assert out.count(chat.HELP) == 2
    assert "Nothing was answered yet." in out and "prompt: 7 tokens, 0 of them cached" in out
    assert prompts(setup) == [FIRST, SECOND, "u:yo;a:"]


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(number: int) -> None:
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    setup.client.on_step = interrupt
    talk(setup, monkeypatch, "hi", "yo")
    assert prompts(setup)[0] == FIRST
    assert prompts(setup)[1] == "u:hi;a:he;u:yo;a:"
    assert setup.client.aborted == [setup.client.requests[0].request_id]


def test_a_full_context_is_told_and_the_talk_goes_on(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(setup, monkeypatch, "hi", "x" * 100, "yo")
    assert "/reset begins a new one" in capsys.readouterr().out
    assert prompts(setup) == [FIRST, SECOND]
