"""Options of vLLM that have no meaning here."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from interleaf.cli.flags import add_engine_flags, engine_options
from interleaf.config import EngineArgs, engine_args
from interleaf.errors import ConfigError
from interleaf.frontend.generation_config import generation_config
from interleaf.vllm_options import NAMES, ONE_VALUE, SWITCHES_WITHOUT_EFFECT, WITHOUT_EFFECT


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    logger = logging.getLogger("interleaf.vllm_options")
    monkeypatch.setattr(logger, "warning", lambda text, *values: found.append(text % values))
    return found


def flags(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    add_engine_flags(parser)
    return engine_options(parser.parse_args(words))


def test_what_scripts_for_vllm_bring(warnings: list[str]) -> None:
    args = engine_args(
        {
            "model": "m",
            "max_model_len": 64,
            "gpu_memory_utilization": 0.9,
            "enforce_eager": True,
            "trust_remote_code": False,
            "swap_space": None,
            "tensor_parallel_size": 1,
            "load_format": "auto",
            "enable_lora": False,
            "hf_token": None,
        }
    )
    assert args == EngineArgs(model="m", max_model_len=64)
    assert [line.split()[2] for line in warnings] == ["gpu_memory_utilization", "enforce_eager"]


def test_the_same_as_flags(warnings: list[str]) -> None:
    words = "--gpu-memory-utilization 0.9 --enforce-eager --no-trust-remote-code -tp 1 -O3 --max-model-len 2K"
    args = engine_args(flags(*words.split()))
    assert args == EngineArgs(max_model_len=2048)
    assert len(warnings) == 3 and all(" has no effect: " in line and line.endswith(".") for line in warnings)
    assert flags("--max-model-len", "2k")["max_model_len"] == 2000
    assert flags("--max-model-len", "auto")["max_model_len"] is None


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_is_a_flag(name: str) -> None:
    flag = "--" + name.replace("_", "-")
    if name in SWITCHES_WITHOUT_EFFECT:
        assert flags(flag) == {name: True} and flags("--no-" + flag[2:]) == {name: False}
    else:
        assert flags(flag, "x")[name] in ("x", ["x"])


def test_none_is_an_option_of_ours() -> None:
    assert not NAMES & EngineArgs.__dataclass_fields__.keys()
    assert len(NAMES) == len(WITHOUT_EFFECT) + len(SWITCHES_WITHOUT_EFFECT) + len(ONE_VALUE)


@pytest.mark.parametrize("name", sorted(ONE_VALUE))
def test_what_cannot_be_had_is_refused(name: str, warnings: list[str]) -> None:
    values, reason = ONE_VALUE[name]
    for value in values:
        engine_args({name: {"none": None, "false": False}.get(value, value)})
    with pytest.raises(ConfigError) as refusal:
        engine_args({name: "something else"})
    assert name in str(refusal.value) and reason in str(refusal.value)
    assert not warnings


def test_what_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="gpu_memory_utilisation"):
        engine_args({"gpu_memory_utilisation": 0.5})
    with pytest.raises(argparse.ArgumentError):
        flags("--max-model-len", "long")


def test_whose_sampling_defaults_apply(tmp_path: Path) -> None:
    own = {"temperature": 0.6, "top_k": 20, "eos_token_id": 2}

    def chosen(**options: Any) -> dict[str, Any]:
        return generation_config(engine_args(options), own)

    assert chosen() == own
    assert chosen(generation_config="vllm") == {"eos_token_id": 2}
    assert chosen(override_generation_config={"top_k": 5}) == {**own, "top_k": 5}
    assert chosen(generation_config="vllm", override_generation_config='{"top_p": 0.5}') == {
        "eos_token_id": 2,
        "top_p": 0.5,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_p": 0.9}))
    assert chosen(generation_config=str(tmp_path)) == {"eos_token_id": 2, "top_p": 0.9}
    for refused in ({"generation_config": str(tmp_path / "none")}, {"override_generation_config": "[1]"}):
        with pytest.raises(ConfigError):
            chosen(**refused)
