"""What the process takes, against what it was told it may take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CACHE_BYTES = 128 << 20
WEIGHT_BYTES = 134_515_008 * 2
"""The built-in model in bfloat16."""
ALLOWANCE = 300 << 20
LOAD = """
import sys
from pathlib import Path

from interleaf import LLM, SamplingParams

options = {"kv_cache_dtype": sys.argv[2]}
prompts = [{"prompt_token_ids": [(7 * i + j) % 40000 + 3 for j in range(300)]} for i in range(24)]
with LLM(kv_cache_memory_bytes=int(sys.argv[1]), **options) as llm:
    llm.generate(prompts, SamplingParams(max_tokens=16, ignore_eos=True, logprobs=1), use_tqdm=False)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_peak_memory_is_weights_and_cache_and_little_more(builtin_gguf: Path, kv_cache_dtype: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(CACHE_BYTES), kv_cache_dtype], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < WEIGHT_BYTES + CACHE_BYTES + ALLOWANCE
