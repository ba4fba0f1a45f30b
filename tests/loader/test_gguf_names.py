"""GGUF's names and layout against Transformers' own loading of the same file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interleaf.errors import CorruptCheckpointError, UnsupportedModelError
from interleaf.host_tensor import BLOCK_TYPES, HostTensor
from interleaf.loader.checkpoint import open_checkpoint
from interleaf.loader.gguf import read_gguf
from interleaf.loader.gguf_names import (
    HuggingFaceTensors,
    hugging_face_name,
    llama3_factors,
    special_tokens,
    translate_config,
)
from interleaf.model_config import parse_model_config
from interleaf.ops.dequantize_reference import dequantize_f32
from tests.loader.tiny import tiny_gguf


def values(tensor: HostTensor) -> np.ndarray:
    if tensor.dtype in BLOCK_TYPES:
        return dequantize_f32(tensor.dtype, tensor.data).reshape(tensor.shape)
    return tensor.data.view({"float32": "<f4", "float16": "<f2"}[tensor.dtype]).reshape(tensor.shape)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_tensors_equal_transformers(tmp_path: Path, architecture: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tiny_gguf(tmp_path / "tiny.gguf", architecture, "q4_0")
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="tiny.gguf", dtype=torch.float32)
    state = model.state_dict()
    checkpoint = open_checkpoint(str(tmp_path / "tiny.gguf"))
    assert checkpoint.hf_config["architectures"] == [type(model).__name__]
    assert state.keys() == checkpoint.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(values(tensor), state[name].numpy(), err_msg=name)


@pytest.mark.parametrize("dtype", [*BLOCK_TYPES, "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"])
def test_rows_come_back_in_order(tmp_path: Path, architecture: str, dtype: str) -> None:
    expected = tiny_gguf(tmp_path / "tiny.gguf", architecture, dtype)
    with open_checkpoint(str(tmp_path / "tiny.gguf")) as checkpoint:
        assert checkpoint.tensors.keys() == expected.keys()
        for name, (stored, shape, raw) in expected.items():
            tensor = checkpoint.tensors[name]
            assert (tensor.dtype, tensor.shape, tensor.data.tobytes()) == (stored, shape, raw), name


def test_builtin_config(builtin_path: Path) -> None:
    checkpoint = open_checkpoint(str(builtin_path))
    model = parse_model_config(checkpoint.hf_config)
    assert (model.architecture, model.hidden_size, model.intermediate_size) == ("LlamaForCausalLM", 576, 1536)
    assert (model.num_layers, model.num_heads, model.num_kv_heads, model.head_dim) == (30, 9, 3, 64)
    assert (model.vocab_size, model.norm_eps, model.max_position_embeddings) == (49152, 1e-5, 8192)
    assert model.tie_word_embeddings and model.rope.theta == 100000.0 and model.rope.kind == "default"
    assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def metadata(**changes: Any) -> dict[str, Any]:
    facts = {
        "general.architecture": "llama",
        "llama.context_length": 131072,
        "llama.embedding_length": 256,
        "llama.block_count": 2,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 2,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.rope.freq_base": 500000.0,
    }
    changed = facts | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in changed.items() if value is not None}


EMBEDDING = {"token_embd.weight": HostTensor("float16", (384, 256), np.zeros(384 * 512, np.uint8))}


def test_defaults() -> None:
    config = translate_config(metadata(), EMBEDDING)
    assert config["num_key_value_heads"] == 2 and config["head_dim"] == 128 and config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] and "rope_scaling" not in config and "partial_rotary_factor" not in config


def test_rotary_scaling_from_metadata() -> None:
    linear = translate_config(
        metadata(llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0), EMBEDDING
    )
    assert linear["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    yarn = metadata(
        llama__rope__scaling__type="yarn",
        llama__rope__scaling__factor=4.0,
        llama__rope__scaling__original_context_length=32768,
    )
    assert translate_config(yarn, EMBEDDING)["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    }
    assert translate_config(metadata(llama__rope__dimension_count=64), EMBEDDING)["partial_rotary_factor"] == 0.5
    with pytest.raises(UnsupportedModelError, match="longrope"):
        translate_config(metadata(llama__rope__scaling__type="longrope"), EMBEDDING)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recognized(factor: float) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors = llama3_factors(scaling, 500000.0, 128).astype("<f4")
    tensors = EMBEDDING | {"rope_freqs.weight": HostTensor("float32", (64,), factors.view(np.uint8))}
    assert translate_config(metadata(), tensors)["rope_scaling"] == scaling
    ones = {"rope_freqs.weight": HostTensor("float32", (64,), np.ones(64, "<f4").view(np.uint8))}
    assert "rope_scaling" not in translate_config(metadata(), EMBEDDING | ones)
    odd = {"rope_freqs.weight": HostTensor("float32", (64,), (factors * factors).view(np.uint8))}
    with pytest.raises(UnsupportedModelError, match="rule"):
        translate_config(metadata(), EMBEDDING | odd)
    short = {"rope_freqs.weight": HostTensor("float32", (32,), np.ones(32, "<f4").view(np.uint8))}
    with pytest.raises(CorruptCheckpointError, match="rope_freqs"):
        translate_config(metadata(), EMBEDDING | short)


def test_llama3_factors_equal_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters=scaling | {"rope_theta": 500000.0},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, None)
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(plain / scaled.double().numpy(), llama3_factors(scaling, 500000.0, 128), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"general__architecture": "mamba"}, UnsupportedModelError, "those supported are llama, qwen2, qwen3"),
        ({"general__architecture": None}, UnsupportedModelError, "None"),
        ({"general__architecture": 3}, UnsupportedModelError, "3"),
        ({"llama__expert_count": 8}, UnsupportedModelError, "experts"),
        ({"llama__attention__head_count": np.array([2, 3])}, UnsupportedModelError, "per layer"),
        ({"llama__attention__key_length": 64, "llama__attention__value_length": 32}, UnsupportedModelError, "values"),
        ({"llama__block_count": None}, CorruptCheckpointError, "block_count"),
        ({"llama__attention__head_count": 0}, CorruptCheckpointError, "head_count"),
        ({"llama__attention__head_count": 1000}, CorruptCheckpointError, "key_length"),
        ({"llama__embedding_length": "many"}, CorruptCheckpointError, "embedding_length"),
        ({"llama__rope__freq_base": math.inf}, CorruptCheckpointError, "freq_base"),
        ({"llama__rope__freq_base": math.nan}, CorruptCheckpointError, "freq_base"),
    ],
)
def test_bad_metadata_is_refused(changes: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        translate_config(metadata(**changes), EMBEDDING)


def gemma_metadata(kind: str, **changes: Any) -> dict[str, Any]:
    facts = {name.replace("llama.", f"{kind}."): value for name, value in metadata().items()}
    del facts[f"{kind}.rope.freq_base"]
    return facts | {"general.architecture": kind, f"{kind}.block_count": 12, **changes}


def test_gemma3_from_metadata() -> None:
    config = translate_config(gemma_metadata("gemma3", **{"gemma3.attention.sliding_window": 512}), EMBEDDING)
    model = parse_model_config(config)
    assert model.architecture == "Gemma3ForCausalLM" and model.windows == (512,) * 5 + (0,) + (512,) * 5 + (0,)
    assert model.local_rope is not None and (model.rope.theta, model.local_rope.theta) == (1e6, 1e4)
    assert config["query_pre_attn_scalar"] == model.head_dim and config["final_logit_softcapping"] is None
    scaled = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0, "gemma3.block_count": 62}
    large = translate_config(gemma_metadata("gemma3", **scaled), EMBEDDING)
    model = parse_model_config(large)
    assert model.local_rope is not None and (model.rope.kind, model.local_rope.kind) == ("linear", "default")
    assert large["query_pre_attn_scalar"] == model.hidden_size // model.num_heads


def test_gemma2_from_metadata() -> None:
    caps = {"gemma2.attn_logit_softcapping": 50.0, "gemma2.final_logit_softcapping": 30.0}
    config = translate_config(gemma_metadata("gemma2", **caps), EMBEDDING)
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (50.0, 30.0)
    assert parse_model_config(config).windows == (4096, 0) * 6


def test_gemmas_turns_end_with_a_token_that_its_files_do_not_name() -> None:
    tokens = ["<pad>", "<eos>", "<bos>", "<end_of_turn>"]
    facts = {"general.architecture": "gemma3", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": 1}
    assert special_tokens(facts) == {"eos_token_id": [1, 3]}
    assert special_tokens(facts | {"tokenizer.ggml.eos_token_id": 3}) == {"eos_token_id": 3}
    assert special_tokens(facts | {"general.architecture": "llama"}) == {"eos_token_id": 1}


def test_gemmas_norms_must_be_plain(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "tiny.gguf", "gemma3")
    file = read_gguf(tmp_path / "tiny.gguf")
    file.tensors["output_norm.weight"] = HostTensor("float16", (256,), np.zeros(512, np.uint8))
    tensors = HuggingFaceTensors("gemma3", file.tensors, translate_config(file.metadata, file.tensors))
    with pytest.raises(UnsupportedModelError, match="norms must be float32"):
        tensors["model.norm.weight"]


def test_sliding_window_makes_it_mistral() -> None:
    config = translate_config(metadata(llama__attention__sliding_window=4096), EMBEDDING)
    assert config["architectures"] == ["MistralForCausalLM"] and config["sliding_window"] == 4096


def test_several_end_tokens() -> None:
    ids = {f"tokenizer.ggml.{name}_token_id": value for name, value in (("eos", 9), ("eot", 7), ("eom", 9))}
    assert special_tokens(ids) == {"eos_token_id": [9, 7]}
    assert special_tokens({"tokenizer.ggml.eos_token_id": "2"}) == {}


@pytest.mark.parametrize("name", ["blk.0.ssm_a.weight", "blk.x.attn_q.weight", "v.patch_embd.weight", "blk.0.attn_q"])
def test_unknown_tensor_names(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"ssm|blk|patch"):
        hugging_face_name(name, "llama")


def test_heads_that_do_not_share_the_rows(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "tiny.gguf")
    file = read_gguf(tmp_path / "tiny.gguf")
    file.tensors["blk.0.attn_k.weight"] = HostTensor("float32", (129,), np.zeros(516, np.uint8))
    with pytest.raises(CorruptCheckpointError, match="129 rows"):
        HuggingFaceTensors("llama", file.tensors, translate_config(file.metadata, file.tensors))
