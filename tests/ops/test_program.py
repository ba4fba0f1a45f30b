"""What measures a recorded pass: it computes what a plain run computes, and names and times each op."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import interleaf._native as _native
from interleaf.ops import StepSize
from tests.ops.native import LEVELS, MAX_TOKENS, activation, cpu_ops, host_tensor, model_input, read, write


def test_a_profile_runs_the_program_op_by_op() -> None:
    torch.manual_seed(0)
    ops, inputs = cpu_ops(LEVELS[-1], "float32"), model_input()
    source = activation(ops, torch.randn(5, 32))
    norm, weight = (
        ops.vector(host_tensor(torch.rand(32), "float32")),
        ops.linear_weight([host_tensor(torch.randn(40, 32))]),
    )
    kept = []

    def forward():
        kept.append(ops.linear(ops.rms_norm(source, norm, 1e-5), weight))
        return kept[0]

    graph = ops.graph(forward, inputs, logits=False)
    graph.run(StepSize(5, 1, 0))
    plain = read(kept[0], 5).clone()
    write(kept[0], torch.zeros(5, 40))
    nanoseconds = ops.runtime.profile(ops.program, 5, 0, 1)
    assert ops.program.names() == ["rms_norm", "linear"]
    assert len(nanoseconds) == len(ops.program) == 2
    assert min(nanoseconds) > 0
    assert torch.equal(read(kept[0], 5), plain)


def test_the_read_probe_gives_a_plausible_rate() -> None:
    assert 0.1 < _native.Runtime(1, LEVELS[-1]).read_probe(16 << 20) < 1000


NEIGHBOUR = """
import time
print(flush=True)
while True:
    end = time.monotonic() + 0.003
    while time.monotonic() < end:
        pass
    time.sleep(0.003)
"""


@pytest.mark.parametrize("threads", [2, 3])
def test_a_team_that_gives_way_computes_the_same(threads: int) -> None:
    torch.manual_seed(0)
    ops, inputs = cpu_ops(LEVELS[-1], "float32", threads), model_input()
    source = activation(ops, torch.randn(MAX_TOKENS, 64))
    weight = ops.linear_weight([host_tensor(torch.randn(64, 64) / 8)])
    kept = []

    def forward():
        kept.append(source)
        for _ in range(300):
            kept.append(ops.linear(kept[-1], weight))
        return kept[-1]

    graph = ops.graph(forward, inputs, logits=False)
    size = StepSize(MAX_TOKENS, 1, 0)
    graph.run(size)
    alone = read(kept[-1], MAX_TOKENS).clone()
    with subprocess.Popen([sys.executable, "-c", NEIGHBOUR], stdout=subprocess.PIPE) as neighbour:
        assert neighbour.stdout is not None
        neighbour.stdout.readline()
        ops.runtime.give_way_to(neighbour.pid)
        for _ in range(20):
            write(kept[-1], torch.zeros(MAX_TOKENS, 64))
            graph.run(size)
            assert torch.equal(read(kept[-1], MAX_TOKENS), alone)
        neighbour.kill()
    graph.run(size)
    assert torch.equal(read(kept[-1], MAX_TOKENS), alone)
