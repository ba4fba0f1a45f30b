"""The parts of the peer benchmark that need no peer."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers import compare, convert, engines, workloads
from interleaf.host_tensor import HostTensor

EXPECTED = {
    "one stream": (1, {128}, {128}, 1),
    "fixed": (64, {128}, {64}, 1),
    "decode-heavy": (64, {16}, {128}, 1),
    "prefill-heavy": (64, {512}, {2}, 1),
    "shared prefix": (64, {1040}, {16}, 1),
    "n=4": (16, {256}, {64}, 4),
    "long prompt": (1, {4096}, {2}, 1),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_workloads_have_their_sizes(name: str) -> None:
    job = workloads.WORKLOADS[name](random.Random(0))
    count, lengths, output_lens, n = EXPECTED[name]
    assert len(job.prompts) == len(job.output_lens) == count
    assert {len(prompt) for prompt in job.prompts} == lengths
    assert set(job.output_lens) == output_lens
    assert job.n == n
    assert job.num_tokens == count * (max(lengths) + n * max(output_lens))


def test_rounds_have_no_prompt_in_common_but_what_they_mean_to_share() -> None:
    for name, make in workloads.WORKLOADS.items():
        first, again, second = make(random.Random(0)), make(random.Random(0)), make(random.Random(1))
        assert first == again, name
        heads = [{tuple(prompt[:16]) for prompt in job.prompts if len(prompt) > 15} for job in (first, second)]
        assert not heads[0] & heads[1], name
    job = workloads.WORKLOADS["shared prefix"](random.Random(0))
    assert len({tuple(prompt[:1024]) for prompt in job.prompts}) == 1
    assert len({tuple(prompt[1024:]) for prompt in job.prompts}) == 64


def test_conversion_rounds_to_bfloat16_as_torch_does() -> None:
    values = np.random.default_rng(0).standard_normal((37, 64), np.float32)
    values[0, :4] = [1.00390625, 1.01171875, 0.0, -0.0]
    expected = torch.from_numpy(values).to(torch.bfloat16)
    bits = convert._bfloat16(values)
    assert np.array_equal(bits, expected.view(torch.uint16).numpy())
    tensor = HostTensor("bfloat16", values.shape, bits.view(np.uint8).reshape(-1))
    assert np.array_equal(convert._values(tensor), expected.float().numpy())


def test_a_driver_that_ends_is_an_error_and_one_that_lives_takes_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "protocol.py").write_text((compare.DRIVERS / "protocol.py").read_text())
    (tmp_path / "drive_fake.py").write_text(
        "import os\nfrom protocol import drive\n"
        "def load(model, precision, threads):\n"
        "    print('noise on standard output')\n"
        "    if precision == 'int4': os._exit(1)\n"
        "    return lambda job: lambda: job['n'] * sum(job['output_lens'])\n"
        "drive(load)\n"
    )
    monkeypatch.setattr(compare, "DRIVERS", tmp_path)
    monkeypatch.setattr(compare, "convert", lambda home, model, kind: tmp_path)
    monkeypatch.setattr(compare, "python_of", lambda home, name: Path(sys.executable))
    fake = engines.Engine((), {"bf16": "hf", "int4": "hf"}, environment={"CORES": "0-{last}"})
    monkeypatch.setitem(engines.PEERS, "fake", fake)
    with pytest.raises(RuntimeError, match="see its log"):
        compare.Driver(tmp_path, "fake", "model", "int4")
    driver = compare.Driver(tmp_path, "fake", "model", "bf16")
    try:
        assert driver.run(workloads.WORKLOADS["n=4"](random.Random(0))) >= 0
        assert comes_to_a_stop(driver.process.pid), "it is stopped while it is not its turn"
        assert driver.peak_bytes() > 0
        environment = Path(f"/proc/{driver.process.pid}/environ").read_text()
        assert f"CORES=0-{len(os.sched_getaffinity(0)) - 1}" in environment.split("\0")
    finally:
        driver.close()
    assert driver.process.returncode == -9


def comes_to_a_stop(process: int) -> bool:
    """A signal takes effect when its process next gets the processor."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
            return True
        time.sleep(0.01)
    return False


def test_tables_show_ratios_of_medians(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "model": "m",
        "precision": "bf16",
        "workload": "fixed",
        "tokens": 1000,
        "seconds": {"interleaf": [1.0, 2.0, 9.0], "openvino": [3.0, 100.0, 1.0]},
        "start_seconds": {"interleaf": 0.5, "openvino": 1.5},
        "peak_bytes": {"interleaf": 10**9, "openvino": 2 * 10**9},
        "read_gigabytes_per_second": 30.0,
    }
    (tmp_path / "r.json").write_text(json.dumps([result]))
    compare.print_tables(compare.read_results(tmp_path / "r.json"))
    rows = capsys.readouterr().out.splitlines()
    assert any("| openvino | 333 | 1.50x | 0.33-33.33 | 1.5 s | 2,000 MB |" in row for row in rows)


def test_help_is_printed_without_any_peer() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.peers", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "chart" in done.stdout
