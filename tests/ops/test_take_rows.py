from __future__ import annotations

import pytest
import torch

from interleaf import _native
from interleaf.ops.reference import ReferenceOps
from tests.ops.native import LEVELS, activation, cpu_ops, model_input, run


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [_native.DType.float32, _native.DType.bfloat16], ids=["float32", "bfloat16"])
def test_take_rows(level: str, dtype: _native.DType) -> None:
    torch.manual_seed(0)
    ops, reference, inputs = cpu_ops(level, "bfloat16"), ReferenceOps("bfloat16"), model_input()
    for width, wanted in [(50, [29, 0, 7, 7]), (1, [3]), (37, list(range(29, -1, -1)))]:
        x = torch.randn(30, width).bfloat16().float()
        inputs.logits_index[: len(wanted)] = wanted
        inputs.size.num_logits = len(wanted)
        source = activation(ops, x, dtype)
        actual = run(ops, lambda s=source: ops.take_rows(s, inputs), len(wanted), inputs)
        assert torch.equal(actual, reference.take_rows(x, inputs))
