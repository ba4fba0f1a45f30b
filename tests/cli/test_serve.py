"""The flags of `interleaf serve`; what a server does is tested in tests/server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interleaf.cli import serve
from interleaf.cli.main import main
from interleaf.config import BUILTIN_MODEL
from interleaf.observe import LogSettings
from tests.cli.conftest import Run


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would be served."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(serve, "_serve", found.update)
    monkeypatch.setattr(serve, "configure_logging", lambda settings, default_level: found.update(log=settings))
    monkeypatch.setattr(serve, "share_log", lambda name: None)
    monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)
    return found


def test_flags(served: dict[str, Any]) -> None:
    main(["serve", "tiny", "--port", "9", "--api-key", "a", "b", "--api-key", "c", "--max-model-len", "64"])
    assert served["model"] == "tiny" and served["port"] == 9 and served["max_model_len"] == 64
    options = serve.server_options(served)
    assert options.api_keys == ("a", "b", "c") and options.served_model_names == ("tiny",)
    assert options.allowed_origins == () and options.log_requests


def test_parsers_of_answers(served: dict[str, Any], tmp_path: Path) -> None:
    main(["serve", "tiny", "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"])
    options = serve.server_options(served)
    assert options.enable_auto_tool_choice
    assert (options.tool_call_parser, options.reasoning_parser) == ("hermes", "qwen3")
    served.clear()
    (tmp_path / "c.yaml").write_text("enable-auto-tool-choice: false\ntool-parser-plugin: x.py\n")
    main(["serve", "tiny", "--config", str(tmp_path / "c.yaml")])
    options = serve.server_options(served)
    assert not options.enable_auto_tool_choice and options.tool_parser_plugin == "x.py"
    assert (options.tool_call_parser, options.reasoning_parser) == ("auto", "auto")


def test_the_model_is_named_once(run: Run, served: dict[str, Any]) -> None:
    main(["serve", "--model", "tiny", "--served-model-name", "one", "two", "--disable-access-log"])
    options = serve.server_options(served)
    assert options.served_model_names == ("one", "two") and not options.log_requests
    status, _, told = run("serve", "tiny", "--model", "other")
    assert status == 1 and "twice" in told


@pytest.mark.parametrize(
    ("given", "name"),
    [([], BUILTIN_MODEL), (["tiny"], "tiny"), (["tiny", "--served-model-name", "one", "two"], "one")],
)
def test_what_the_engine_is_told(monkeypatch: pytest.MonkeyPatch, given: list[str], name: str) -> None:
    told: dict[str, Any] = {}

    async def serve_nothing(*args: Any) -> None:
        pass

    monkeypatch.setattr("interleaf.frontend.async_engine.AsyncEngine", lambda *args, **options: told.update(options))
    monkeypatch.setattr("interleaf.server.launch.serve", serve_nothing)
    monkeypatch.setattr(serve, "configure_logging", lambda settings, default_level: None)
    monkeypatch.setattr(serve, "share_log", lambda name: None)
    main(["serve", *given, "--port", "0", "--max-num-queued-reqs", "3", "--otlp-traces-endpoint", "http://x:1"])
    assert told == {"served_model_name": name, "max_num_queued_reqs": 3, "otlp_traces_endpoint": "http://x:1"}


@pytest.mark.parametrize("given", [["*"], ['["*"]']])
def test_origins(served: dict[str, Any], given: list[str]) -> None:
    main(["serve", "--allowed-origins", *given])
    assert serve.server_options(served).allowed_origins == ("*",)


def test_how_the_log_is_written(served: dict[str, Any]) -> None:
    main(["serve"])
    assert served["log"] == LogSettings()
    main(["serve", "--log-format", "json", "--log-level", "Debug"])
    assert served["log"] == LogSettings("DEBUG", json=True)


def test_a_key_from_the_environment(served: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serve.KEY_VARIABLE, "secret")
    main(["serve", "--api-key", "a"])
    assert serve.server_options(served).api_keys == ("a", "secret")


def test_a_configuration_file(served: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "model: tiny\nport: 9000\nserved_model_name: [a, b]\nmax-model-len: 128\nenable-prefix-caching: false\n"
        "disable-access-log: true\ntrust-request-chat-template: false\nkv-cache-memory-bytes: 64M\n"
    )
    main(["serve", "--config", str(path), "--port", "1"])
    assert served["port"] == 1 and served["model"] == "tiny" and served["max_model_len"] == 128
    assert served["served_model_name"] == ["a", "b"] and served["enable_prefix_caching"] is False
    assert served["disable_access_log"] is True and "trust_request_chat_template" not in served
    assert served["kv_cache_memory_bytes"] == 64 << 20
    main(["serve", "other", "--config", str(path)])
    assert served["model"] == "other"


@pytest.mark.parametrize("content", ["- a list", "portt: 1", "port: x", "a: [", "1: 2", "log-format: xml"])
def test_mistakes_in_a_configuration_file(run: Run, served: dict[str, Any], tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    status, _, told = run("serve", "--config", str(tmp_path / "config.yaml"))
    assert status == 1 and "onfiguration file" in told
    assert run("serve", "--config", str(tmp_path / "none"))[0] == 1


def test_https_needs_both_files(run: Run) -> None:
    status, _, told = run("serve", "--ssl-keyfile", "x")
    assert status == 1 and "--ssl-certfile" in told
    status, _, told = run("serve", "--ssl-keyfile", "nothing", "--ssl-certfile", "nothing")
    assert status == 1 and "no file 'nothing'" in told


def test_help_is_there_in_a_blink() -> None:
    code = (
        "import sys; from interleaf.cli.main import main\ntry: main(['serve', '--help'])\nfinally: print(*sys.modules)"
    )
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "--shutdown-timeout" in done.stdout
    assert not {"fastapi", "torch", "transformers", "numpy", "uvicorn"} & set(done.stdout.split())
