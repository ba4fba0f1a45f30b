"""`interleaf bench` on the fake engine, and its workloads."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from interleaf.cli.bench import report, throughput, workloads
from interleaf.errors import ConfigError
from tests.cli.conftest import Run, Setup

# ---- workloads ----


def test_sharegpt_lengths_have_the_right_distribution() -> None:
    shapes = workloads.sharegpt(20_000, seed=1)
    prompts = [shape.prompt_tokens for shape in shapes]
    outputs = [shape.output_tokens for shape in shapes]
    assert 55 <= statistics.median(prompts) <= 61 and 130 <= statistics.mean(prompts) <= 144
    assert 460 <= statistics.median(outputs) <= 486 and 460 <= statistics.mean(outputs) <= 484
    assert min(prompts + outputs) >= 4 and max(prompts + outputs) <= 1024
    assert shapes[:50] == workloads.sharegpt(50, seed=1) != workloads.sharegpt(50, seed=2)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "prompt_tokens,output_tokens\n5,6\n7,8\n9,9\n", [(5, 6, 0), (7, 8, 0)]),
        (
            "b.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.7,9,1\n",
            [(374, 44, 0), (9, 1, 1.01941)],
        ),
        (
            "c.jsonl",
            '{"timestamp": 500, "input_length": 3, "output_length": 4, "hash_ids": []}\n'
            '{"timestamp": 2000, "input_length": 5, "output_length": 6}\n',
            [(3, 4, 0), (5, 6, 1.5)],
        ),
    ],
)
def test_traces(tmp_path: Path, name: str, content: str, expected: list[tuple[int, int, float]]) -> None:
    (tmp_path / name).write_text(content)
    shapes = workloads.trace(tmp_path / name, 2)
    assert [(shape.prompt_tokens, shape.output_tokens) for shape in shapes] == [row[:2] for row in expected]
    assert [shape.arrival for shape in shapes] == pytest.approx([row[2] for row in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a,b\n1,2\n", "Row 1"),
        ("a.csv", "prompt_tokens,output_tokens\n5,6\n0,6\n", "Row 2"),
        ("a.csv", "prompt_tokens,output_tokens\n5\n", "output_tokens"),
        ("a.csv", "prompt_tokens,output_tokens\n", "holds no request"),
        ("a.csv", "TIMESTAMP,prompt_tokens,output_tokens\nnoon,1,1\n", "noon"),
        ("a.jsonl", "[1]\n", "Row 1"),
        ("a.jsonl", "{\n", "Row 1"),
        ("a.csv", "\udcff", "cannot be read"),
    ],
)
def test_bad_traces(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        workloads.trace(tmp_path / name, 9)


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        workloads.trace(tmp_path / "none.csv", 9)


def test_random_prompts_avoid_special_tokens() -> None:
    [prompt] = workloads.random_prompts([workloads.Shape(500, 1)], 10, [0, 9], seed=0)
    assert set(prompt) == set(range(1, 9)) and len(prompt) == 500


def test_requests_beyond_the_context_are_left_out() -> None:
    shapes = [workloads.Shape(5, 5), workloads.Shape(6, 5)]
    assert workloads.fitting(shapes, 10) == shapes[:1]
    with pytest.raises(ConfigError, match="context of 9"):
        workloads.fitting(shapes, 9)


def test_percentiles() -> None:
    assert report.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert report.percentile([0.0, 1.0], 0.9) == pytest.approx(0.9)
    assert report.percentile([], 0.5) == 0.0 and report.summary([])["p99_ms"] == 0.0


# ---- throughput ----

SMALL = ("--num-prompts", "3", "--input-len", "10", "--output-len", "5")


def test_throughput_prints_a_table_and_writes_json(run: Run, setup: Setup, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    status, out, _ = run("bench", "throughput", *SMALL, "--seed", "3", "--output-json", str(file))
    assert status == 0 and setup.options == {"seed": 3}
    result = json.loads(file.read_text())
    assert (result["requests"], result["input_tokens"], result["output_tokens"], result["steps"]) == (3, 30, 15, 5)
    # Three sequences hold a block of 16 slots each, 12 of them used.
    assert result["kv_waste"] == pytest.approx(0.25)
    assert "25.00%" in out and "30 / 15" in out
    assert result["time_shares"] == {"scheduling": 0.25, "batch bookkeeping": 0.25, "kernels": 0.5, "frontend": 0.0}
    assert result["environment"]["model"] == "fake"
    assert all(request.params.ignore_eos for request in setup.client.requests)


def test_throughput_tells_where_the_time_goes() -> None:
    times = {"scheduling": 1.0, "kernels": 5.0}
    shares = throughput.Measurement(16, seconds=10.0, idle_seconds=2.0, engine_times=times).figures()["time_shares"]
    assert shares == {"scheduling": 0.125, "kernels": 0.625, "frontend": 0.25}


def test_sharegpt_workload(run: Run, setup: Setup) -> None:
    status, out, _ = run("bench", "throughput", "--workload", "sharegpt", "--num-prompts", "200")
    assert status == 0 and "left out" in out


@pytest.mark.parametrize("extra", [[], ["--realtime"]])
def test_trace_workload(run: Run, setup: Setup, tmp_path: Path, extra: list[str]) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("timestamp,prompt_tokens,output_tokens\n0.1,4,2\n0.15,3,2\n0.1,5,2\n")
    assert run("bench", "throughput", "--workload", "trace", "--trace", str(file), *extra)[0] == 0
    lengths = [len(request.prompt_token_ids) for request in setup.client.requests]
    assert lengths == ([4, 5, 3] if extra else [4, 3, 5])


@pytest.mark.parametrize(
    "arguments",
    [["--num-prompts", "0"], ["--input-len", "0"], ["--workload", "sharegpt", "--input-len", "5"],
     ["--workload", "trace"], ["--trace", "x"], ["--realtime"]],
)  # fmt: skip
def test_flags_that_make_no_sense_are_refused(run: Run, setup: Setup, arguments: list[str]) -> None:
    assert run("bench", "throughput", *arguments)[0] == 2
    assert setup.options is None


# ---- latency ----


def test_latency(run: Run, setup: Setup, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    arguments = ["--batch-size", "2", "--input-len", "6", "--output-len", "4", "--iterations", "3", "--warm-up", "1"]
    status, out, _ = run("bench", "latency", *arguments, "--output-json", str(file))
    assert status == 0 and "time to first token, p50" in out
    result = json.loads(file.read_text())
    assert result["time_per_token"]["p99_ms"] >= result["time_per_token"]["p50_ms"] >= 0
    assert len(setup.client.requests) == 8
    assert len({tuple(request.prompt_token_ids) for request in setup.client.requests}) == 8


def test_latency_refuses_nonsense(run: Run, setup: Setup) -> None:
    assert run("bench", "latency", "--batch-size", "0")[0] == 2
    assert run("bench", "latency", "--input-len", "100")[0] == 1
    assert run("bench")[0] == 2
