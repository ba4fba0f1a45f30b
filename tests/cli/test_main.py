"""The entry point: speed of `--help`, error lines and exit statuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from interleaf import __version__
from interleaf.errors import ConfigError
from tests.cli.conftest import Run, Setup

HEAVY = ("torch", "numpy", "tokenizers", "jinja2", "tqdm", "transformers", "huggingface_hub", "interleaf._native")


def interleaf(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "interleaf", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


def test_help_is_there_in_a_blink() -> None:
    best = float("inf")
    for _ in range(3):
        start = time.monotonic()
        assert interleaf("--help").returncode == 0
        best = min(best, time.monotonic() - start)
    assert best < 0.3


@pytest.mark.parametrize("arguments", [[], ["generate"], ["chat"], ["models"], ["bench", "throughput"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from interleaf.cli.main import main\n"
        f"try: main({[*arguments, '--help']!r})\n"
        f"except SystemExit: sys.exit(any(name in sys.modules for name in {HEAVY!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_help_lists_the_commands_and_each_has_its_own(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for command in ("generate", "chat", "models", "bench"):
        assert command in out
        assert run(command, "--help")[0] == 0


def test_the_version(run: Run) -> None:
    assert run("--version") == (0, f"interleaf {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [[], ["sing"], ["generate", "x", "--no-such-flag"], ["generate", "x", "--n", "a"]]
)
def test_wrong_usage_is_status_2(run: Run, setup: Setup, arguments: list[str]) -> None:
    status, _, err = run(*arguments)
    assert status == 2 and "usage:" in err and setup.options is None


def test_an_error_is_one_line(run: Run, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise ConfigError("This cannot work:\n do that.")

    monkeypatch.setattr("interleaf.llm.LLM", fail)
    assert run("generate", "x") == (1, "", "interleaf: error: This cannot work: do that.\n")
    status, _, err = run("generate", "x", "--debug")
    assert status == 1 and "Traceback" in err
    monkeypatch.setenv("INTERLEAF_DEBUG", "1")
    assert "Traceback" in run("generate", "x")[2]


def test_a_fault_of_ours_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("interleaf.llm.LLM", fail)
    status, _, err = run("generate", "x")
    assert (status, err) == (1, "interleaf: error: unexpected KeyError: 'oops' (--debug shows where)\n")


def test_ctrl_c_is_quiet(run: Run, setup: Setup) -> None:
    def interrupt(number: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    setup.client.on_step = interrupt
    status, _, err = run("generate", "x")
    assert (status, err) == (130, "")
    assert setup.client.num_closed == 1 and not setup.client.has_unfinished()


def test_a_reader_that_goes_away_is_quiet() -> None:
    code = (
        "import sys\n"
        "from interleaf.cli import main, models\n"
        "models.run = lambda args: [print('x' * 100) for _ in range(10000)] and 0\n"
        "sys.exit(main.main(['models']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (141, b"")
    process.stderr.close()


def test_a_bad_log_level_is_an_error(run: Run, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLEAF_LOG_LEVEL", "loud")
    status, _, err = run("generate", "x")
    assert status == 1 and "INTERLEAF_LOG_LEVEL" in err
