"""The same weights in every engine's format.

It begins with a GGUF file: a built-in model's, or one filled with random weights. All others derive from it:

    gguf-bf16                  its tensors, dequantized and rounded to bfloat16
    hf                         those, as interleaf's loader names them, with config and tokenizer
    gguf-q8_0, gguf-q4_0       from gguf-bf16, by llama.cpp's own quantizer
    openvino-bf16, -int8, -int4    from hf, by OpenVINO's own exporter
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.peers.engines import python_of
from benchmarks.peers.models import MODELS, RandomShape
from interleaf.host_tensor import PLAIN_BYTES, HostTensor
from interleaf.loader.builtin import path_of
from interleaf.loader.checkpoint import open_checkpoint
from interleaf.loader.gguf import read_gguf
from interleaf.loader.gguf_tokenizer import build_tokenizer, chat_templates, named_special_tokens
from interleaf.ops.dequantize_reference import dequantize_f32

LLAMA_QUANTIZE = """
import os, sys, llama_cpp as api
params = api.llama_model_quantize_default_params()
params.ftype, params.nthread = int(sys.argv[3]), 0
sys.exit(api.llama_model_quantize(os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]), params))
"""
LLAMA_FILE_TYPES = {"gguf-q8_0": 7, "gguf-q4_0": 2}
OPENVINO_FORMATS = {
    "openvino-bf16": ["--weight-format", "fp16"],
    "openvino-int8": ["--weight-format", "int8"],
    "openvino-int4": ["--weight-format", "int4", "--group-size", "32", "--ratio", "1.0"],
}


def convert(home: Path, model: str, kind: str) -> Path:
    """The path of `model` in the format `kind`, made first where it is missing."""
    target = home / "models" / model / (f"{kind}.gguf" if kind.startswith("gguf") else kind)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name("part-" + target.name)
    if part.is_dir():
        shutil.rmtree(part)
    print(f"converting {model} to {kind}", file=sys.stderr, flush=True)
    if kind == "gguf-bf16":
        _write_first(MODELS[model], part)
    elif kind == "hf":
        _write_hugging_face(convert(home, model, "gguf-bf16"), part)
    elif kind in LLAMA_FILE_TYPES:
        source = convert(home, model, "gguf-bf16")
        command = [python_of(home, "llama.cpp"), "-c", LLAMA_QUANTIZE, source, part, str(LLAMA_FILE_TYPES[kind])]
        subprocess.run(command, check=True, stdout=sys.stderr)
    else:
        exporter = python_of(home, "openvino").with_name("optimum-cli")
        command = [exporter, "export", "openvino", "--task", "text-generation-with-past", *OPENVINO_FORMATS[kind]]
        subprocess.run([*command, "-m", convert(home, model, "hf"), part], check=True, stdout=sys.stderr)
    part.rename(target)
    return target


def _write_first(model: str | RandomShape, target: Path) -> None:
    if isinstance(model, RandomShape):
        _write_random(model, target)
        return
    source = read_gguf(path_of(model))
    writer = gguf.GGUFWriter(target, str(source.metadata["general.architecture"]))
    _copy_metadata(writer, source.metadata)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, tensor in source.tensors.items():
        _add(writer, name, _values(tensor))
    _close(writer)


def _write_random(shape: RandomShape, target: Path) -> None:
    """Normal weights of deviation 0.02; the tokenizer is the default model's, filled up with words nobody writes."""
    writer = gguf.GGUFWriter(target, shape.architecture)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.embedding_length)
    writer.add_block_count(shape.block_count)
    writer.add_head_count(shape.head_count)
    writer.add_head_count_kv(shape.head_count_kv)
    writer.add_key_length(shape.key_length)
    writer.add_value_length(shape.key_length)
    writer.add_feed_forward_length(shape.feed_forward_length)
    writer.add_rope_dimension_count(shape.key_length)
    writer.add_rope_freq_base(shape.freq_base)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_vocab_size(shape.vocab_size)
    _copy_metadata(writer, _filled_vocabulary(shape.vocab_size))
    source = np.random.default_rng(0)
    for name, sizes in _random_tensors(shape).items():
        _add(writer, name, np.ones(sizes, np.float32) if len(sizes) == 1 else _normal(source, sizes))
    _close(writer)


def _normal(source: np.random.Generator, sizes: tuple[int, ...]) -> np.ndarray:
    return source.standard_normal(sizes, np.float32) * np.float32(0.02)


def _random_tensors(shape: RandomShape) -> dict[str, tuple[int, ...]]:
    hidden, q, kv = shape.embedding_length, shape.head_count * shape.key_length, shape.head_count_kv * shape.key_length
    layer = {
        "attn_norm": (hidden,),
        "attn_q": (q, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, q),
        "ffn_norm": (hidden,),
        "ffn_gate": (shape.feed_forward_length, hidden),
        "ffn_up": (shape.feed_forward_length, hidden),
        "ffn_down": (hidden, shape.feed_forward_length),
    }
    if shape.norms_of_heads:
        layer |= {"attn_q_norm": (shape.key_length,), "attn_k_norm": (shape.key_length,)}
    names = {f"blk.{i}.{name}.weight": sizes for i in range(shape.block_count) for name, sizes in layer.items()}
    return {"token_embd.weight": (shape.vocab_size, hidden), "output_norm.weight": (hidden,), **names}


def _filled_vocabulary(vocab_size: int) -> dict[str, Any]:
    metadata = read_gguf(path_of(str(MODELS["smollm2-135m"]))).metadata
    kept = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    missing = range(len(kept["tokenizer.ggml.tokens"]), vocab_size)
    kept["tokenizer.ggml.tokens"] = [*kept["tokenizer.ggml.tokens"], *(f"<unused_{i}>" for i in missing)]
    kinds = np.asarray(kept["tokenizer.ggml.token_type"])
    kept["tokenizer.ggml.token_type"] = np.concatenate([kinds, np.full(len(missing), 5, kinds.dtype)])
    return kept


def _copy_metadata(writer: gguf.GGUFWriter, metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        if key in ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment"):
            continue
        if isinstance(value, (list, np.ndarray)):
            writer.add_array(key, value if isinstance(value, list) else value.tolist())
        else:
            # llama.cpp insists on unsigned integers, which is what converters write.
            kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray) -> None:
    if values.ndim == 1:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, _bfloat16(values).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_hugging_face(source: Path, target: Path) -> None:
    target.mkdir()
    with open_checkpoint(str(source)) as checkpoint:
        metadata = checkpoint.tokenizer_source
        assert isinstance(metadata, Mapping)
        tensors = {
            name: torch.from_numpy(_values(tensor)).to(torch.bfloat16) for name, tensor in checkpoint.tensors.items()
        }
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        _write_json(target / "config.json", {**checkpoint.hf_config, "dtype": "bfloat16"})
        _write_json(target / "generation_config.json", checkpoint.generation_config)
    build_tokenizer(metadata).save(str(target / "tokenizer.json"))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", **named_special_tokens(metadata)}
    if template := chat_templates(metadata).get("default"):
        tokenizer["chat_template"] = template
    _write_json(target / "tokenizer_config.json", tokenizer)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))


def _values(tensor: HostTensor) -> np.ndarray:
    """As float32 [shape]."""
    if tensor.dtype == "bfloat16":
        return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)
    if tensor.dtype in PLAIN_BYTES:
        return tensor.data.view(tensor.dtype).astype(np.float32).reshape(tensor.shape)
    return dequantize_f32(tensor.dtype, tensor.data).reshape(tensor.shape)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even: uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
