"""`interleaf run-batch` on the fake engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from interleaf.cli import run_batch
from interleaf.config import SchedulerConfig
from interleaf.frontend.processor import Processor
from tests.cli.conftest import Run
from tests.fake_engine import engine_config
from tests.server.fake_async_engine import FakeAsyncEngine


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeAsyncEngine:
    engine = FakeAsyncEngine()
    engine.client.script = {"hi": "hello there"}
    monkeypatch.setattr(run_batch, "make_engine", lambda args: engine)
    return engine


def write(path: Path, *names: str, **body: Any) -> Path:
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {"prompt": "hi", **body}}
        for name in names
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_file_is_answered(run: Run, engine: FakeAsyncEngine, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    status, printed, told = run("run-batch", "-i", str(write(tmp_path / "in", "a", "b")), "-o", str(out))
    assert (status, printed, told) == (0, "", "2 requests were answered and 0 refused.\n")
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert {one["custom_id"] for one in results} == {"a", "b"}
    assert results[0]["response"]["body"]["choices"][0]["text"] == "hello there"
    assert engine.calls[0][0] == "start" and engine.calls[-1][0] == "shutdown"
    told = run("run-batch", "-i", str(write(tmp_path / "in", "a", "b", "c")), "-o", str(out))[2]
    assert told == "3 requests were answered and 0 refused; 2 of them earlier.\n"
    assert len(engine.client.requests) == 3


def test_calls_and_reasoning(run: Run, engine: FakeAsyncEngine, tmp_path: Path) -> None:
    engine.client.script = {"u:hi;t1;a:": '<think>a</think><tool_call>{"name": "f"}</tool_call>'}
    engine.client.config = engine_config(scheduler=SchedulerConfig(8, 64, 256))
    engine.processor = Processor(engine.config, engine.tokenizer, {})
    out = tmp_path / "out.jsonl"
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": tools}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "in").write_text(json.dumps(line))
    assert run("run-batch", "-i", str(tmp_path / "in"), "-o", str(out), "--reasoning-parser", "qwen3")[0] == 0
    [choice] = json.loads(out.read_text())["response"]["body"]["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["reasoning"] == "a"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


def test_names_of_the_model(run: Run, engine: FakeAsyncEngine, tmp_path: Path) -> None:
    source = str(write(tmp_path / "in", "a", model="mine"))
    assert "1 refused" in run("run-batch", "-i", source, "-o", str(tmp_path / "1"))[2]
    told = run("run-batch", "-i", source, "-o", str(tmp_path / "2"), "--served-model-name", "mine")[2]
    assert "1 requests were answered" in told


def test_files_that_are_not_there(run: Run, engine: FakeAsyncEngine, tmp_path: Path) -> None:
    status, _, told = run("run-batch", "-i", str(tmp_path / "none"), "-o", str(tmp_path / "out"))
    assert status == 1 and "cannot be read" in told
    status, _, told = run("run-batch", "-i", str(write(tmp_path / "in", "a")), "-o", str(tmp_path / "no" / "out"))
    assert status == 1 and "cannot be written" in told
