"""What a model argument may be, and what is said where it is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from interleaf.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    InterleafError,
    UnsupportedModelError,
)
from interleaf.loader import hub
from interleaf.loader.checkpoint import open_checkpoint
from interleaf.model_config import parse_model_config
from tests.loader import tiny


@pytest.mark.parametrize(
    ("write", "architecture"),
    [
        (tiny.tiny_llama, "LlamaForCausalLM"),
        (tiny.tiny_mistral, "MistralForCausalLM"),
        (tiny.tiny_qwen2, "Qwen2ForCausalLM"),
        (tiny.tiny_qwen3, "Qwen3ForCausalLM"),
    ],
)
def test_directories_that_transformers_wrote(tmp_path: Path, write: object, architecture: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    write(tmp_path)  # type: ignore[operator]
    state = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()
    checkpoint = open_checkpoint(str(tmp_path))
    assert parse_model_config(checkpoint.hf_config).architecture == architecture
    assert checkpoint.generation_config["eos_token_id"] == 2
    assert checkpoint.tensors.keys() == state.keys()
    for name, tensor in checkpoint.tensors.items():
        assert tensor.dtype == "bfloat16" and tensor.shape == tuple(state[name].shape)
        assert tensor.data.tobytes() == state[name].view(torch.uint8).numpy().tobytes()


def test_sharded_directories(tmp_path: Path) -> None:
    tiny.tiny_llama(tmp_path / "whole")
    tiny.tiny_llama(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    whole = open_checkpoint(str(tmp_path / "whole"))
    sharded = open_checkpoint(str(tmp_path / "sharded"))
    assert {name: t.data.tobytes() for name, t in whole.tensors.items()} == {
        name: t.data.tobytes() for name, t in sharded.tensors.items()
    }


def test_weight_bytes(tmp_path: Path) -> None:
    tiny.tiny_gguf(tmp_path / "x.gguf", dtype="q8_0")
    checkpoint = open_checkpoint(str(tmp_path / "x.gguf"))
    matrices = sum(t.num_values for t in checkpoint.tensors.values() if t.dtype == "q8_0")
    vectors = sum(t.num_values for t in checkpoint.tensors.values() if t.dtype == "float32")
    assert checkpoint.weight_bytes("bfloat16") == matrices // 32 * 34 + vectors * 2
    assert checkpoint.weight_bytes("float32") == matrices // 32 * 34 + vectors * 4
    assert checkpoint.weight_bytes("bfloat16", dequantize=True) == (matrices + vectors) * 2


def test_tensors_outlive_the_checkpoint(tmp_path: Path) -> None:
    expected = tiny.tiny_gguf(tmp_path / "x.gguf")
    with open_checkpoint(str(tmp_path / "x.gguf")) as checkpoint:
        tensor = checkpoint.tensors["lm_head.weight"]
    assert not checkpoint.tensors
    assert tensor.data.tobytes() == expected["lm_head.weight"][2]


def test_a_directory_with_one_gguf_file(tmp_path: Path) -> None:
    tiny.tiny_gguf(tmp_path / "x.gguf", "qwen3")
    assert open_checkpoint(str(tmp_path)).hf_config["architectures"] == ["Qwen3ForCausalLM"]


def test_the_builtin_model(builtin_path: Path) -> None:
    for name in (None, "smollm2-135m-instruct"):
        checkpoint = open_checkpoint(name)
        assert checkpoint.name == "smollm2-135m-instruct" and len(checkpoint.tensors) == 272


@pytest.mark.parametrize(
    "name", ["/no/such/place", "./nothing", "nothing.gguf", "a/b.gguf", "a/b/c", "nothing", "a b/c"]
)
def test_no_such_model(name: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="There is no file or directory"):
        open_checkpoint(name)


@pytest.mark.parametrize("name", ["nul\0byte", "x" * 5000])
def test_names_that_are_no_paths(name: str) -> None:
    with pytest.raises(CheckpointNotFoundError):
        open_checkpoint(name)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"pickle")
    with pytest.raises(UnsupportedModelError, match=r"no \.gguf file"):
        open_checkpoint(str(tmp_path / "model.bin"))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, CheckpointNotFoundError),
        ("{", CorruptCheckpointError),
        ("[1]", CorruptCheckpointError),
        ("[" * 100_000, CorruptCheckpointError),
        ('{"quantization_config": {"quant_method": "gptq"}}', UnsupportedModelError),
        ('{"quantization_config": "x"}', UnsupportedModelError),
    ],
)
def test_bad_configs(tmp_path: Path, content: str | None, error: type[InterleafError]) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(error):
        open_checkpoint(str(tmp_path))


def test_hub_names() -> None:
    assert hub.is_hub_name("org/model-1.5_B")
    for name in ("org", "org/model/file", "../x", "org/", "/model", "org/mo del", "org/.."):
        assert not hub.is_hub_name(name)


def test_offline_a_hub_name_fails_at_once(tmp_path: Path) -> None:
    """In a process of its own, since the hub's client reads its settings when it is imported."""
    code = (
        "import time\nfrom interleaf.loader.checkpoint import open_checkpoint\nbegin = time.monotonic()\n"
        "try:\n    open_checkpoint('organization/model')\n"
        "except Exception as error:\n    print(type(error).__name__, time.monotonic() - begin < 15, error)"
    )
    for settings in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        environment = {"HF_HOME": str(tmp_path), "PATH": "", "NO_PROXY": "*", **settings}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.startswith("CheckpointNotFoundError True"), run.stdout
        assert "give a model directory or a .gguf file, or connect" in run.stdout


def test_offline_the_hub_cache_is_used(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--organization--model"
    tiny.tiny_llama(repository / "snapshots" / "0123456789012345678901234567890123456789")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789012345678901234567890123456789")
    code = (
        "from interleaf.loader.checkpoint import open_checkpoint\n"
        "print(len(open_checkpoint('organization/model').tensors))"
    )
    environment = {"HF_HOME": str(tmp_path), "PATH": "", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "21", run.stderr


def test_opening_imports_nothing_heavy(builtin_path: Path) -> None:
    code = (
        "import sys\nfrom interleaf.loader.checkpoint import open_checkpoint\nfrom interleaf.frontend.tokenizer import "
        "load_tokenizer\ncheckpoint = open_checkpoint(sys.argv[1])\nload_tokenizer(checkpoint).encode('Hello')\n"
        "print(sorted({'torch', 'transformers', 'huggingface_hub', 'tqdm', 'jinja2', 'scipy'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(builtin_path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))

    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        open_checkpoint(str(tmp_path))
