"""Tiny checkpoints with random weights, for tests: directories in Hugging Face layout and GGUF files."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from interleaf.host_tensor import BLOCK_TYPES

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = (
    """The quick brown fox jumps over the lazy dog. The dog sleeps, and the fox runs into the forest again.
def add(left, right):\n    return left + right\n\nfor index in range(10):\n    print(index, add(index, 1))
Numbers like 1234567890 and words like naïve, café, straße, 日本語 and Привет are in here as well.\n"""
    * 4
)


@lru_cache(maxsize=4)
def byte_level_bpe(vocab_size: int = 384) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer` with exactly `vocab_size` tokens, special ones first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    assert tokenizer.get_vocab_size() == vocab_size
    return tokenizer


def write_tokenizer(directory: Path, vocab_size: int = 384) -> None:
    """tokenizer.json and tokenizer_config.json, with a ChatML template."""
    directory.mkdir(parents=True, exist_ok=True)
    byte_level_bpe(vocab_size).save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def tiny_llama(directory: Path, **config: Any) -> Path:
    """A LlamaForCausalLM checkpoint; `config` overrides the tiny sizes."""
    return _write_model(directory, "LlamaConfig", "LlamaForCausalLM", config)


def tiny_mistral(directory: Path, **config: Any) -> Path:
    """A MistralForCausalLM checkpoint, without a sliding window unless `config` gives one."""
    return _write_model(directory, "MistralConfig", "MistralForCausalLM", {"sliding_window": None, **config})


def tiny_qwen2(directory: Path, **config: Any) -> Path:
    """A Qwen2ForCausalLM checkpoint: biases on q, k and v."""
    return _write_model(directory, "Qwen2Config", "Qwen2ForCausalLM", config)


def tiny_qwen3(directory: Path, **config: Any) -> Path:
    """A Qwen3ForCausalLM checkpoint: norms on the heads of q and k, heads wider than hidden / heads."""
    return _write_model(directory, "Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32, **config})


GEMMA: dict[str, Any] = {"head_dim": 32, "tie_word_embeddings": True}


def tiny_gemma(directory: Path, **config: Any) -> Path:
    """A GemmaForCausalLM checkpoint."""
    return _write_model(directory, "GemmaConfig", "GemmaForCausalLM", GEMMA | config)


def tiny_gemma2(directory: Path, **config: Any) -> Path:
    """A Gemma2ForCausalLM checkpoint: soft caps that bite, a window of 20 in the first of two layers."""
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    return _write_model(directory, "Gemma2Config", "Gemma2ForCausalLM", GEMMA | caps | {"sliding_window": 20, **config})


def tiny_gemma3(directory: Path, **config: Any) -> Path:
    """A Gemma3ForCausalLM checkpoint: windows of 24 in all layers but every third."""
    sizes = {"sliding_window": 24, "sliding_window_pattern": 3, "num_hidden_layers": 4, "query_pre_attn_scalar": 40}
    return _write_model(directory, "Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA | sizes | config)


def _write_model(directory: Path, config_name: str, model_name: str, overrides: dict[str, Any]) -> Path:
    """Overrides beyond the model's config: `dtype` of the file, `seed`, `max_shard_size`."""
    import torch
    import transformers

    options = {"dtype": "bfloat16", "seed": 0, "max_shard_size": "50GB"}
    options |= {name: overrides.pop(name) for name in list(overrides) if name in options}
    sizes: dict[str, Any] = {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(options["seed"])
        model = getattr(transformers, model_name)(getattr(transformers, config_name)(**(sizes | overrides)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    # Norms all of ones and biases all of zeros would hide their being left out.
                    parameter.copy_(torch.rand_like(parameter) + (0.5 if "norm" in name else -0.5))
    model.to(getattr(torch, str(options["dtype"]))).save_pretrained(directory, max_shard_size=options["max_shard_size"])
    write_tokenizer(directory, model.config.vocab_size)
    return directory


def random_tensor(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random values as they lie in a file: uint8 [shape[0], ..., bytes a row]."""
    rows, columns = shape[:-1], shape[-1]
    if dtype == "float32":
        return rng.normal(0, 0.2, shape).astype("<f4").view(np.uint8)
    if dtype == "float16":
        return rng.normal(0, 0.2, shape).astype("<f2").view(np.uint8)
    if dtype == "bfloat16":
        return np.ascontiguousarray(rng.normal(0, 0.2, shape).astype("<f4").view("<u2")[..., 1::2]).view(np.uint8)
    values, size = BLOCK_TYPES[dtype]
    raw = rng.integers(0, 256, (*rows, columns // values, size), dtype=np.uint8)
    # Scales of any bits would be infinite now and then: make them small and finite.
    half = np.array([0.01], "<f2").view(np.uint8)
    places = {"q6_k": [208], "q4_1": [0, 2], "q5_1": [0, 2], "q4_k": [0, 2], "q5_k": [0, 2]}.get(dtype, [0])
    for place in places:
        raw[..., place : place + 2] = half
    return raw.reshape(*rows, -1)


def tiny_gguf(
    path: Path,
    architecture: str = "llama",
    dtype: str = "q8_0",
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    tied: bool = False,
) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Write a GGUF file as llama.cpp's converter would.

    Returns: Hugging Face name -> (dtype, shape, bytes in Hugging Face's order of rows).
    """
    import gguf

    rng = np.random.default_rng(seed)
    hidden, inner, heads, kv_heads, vocab, layers = 256, 512, 4, 2, 384, 2
    # Heads of Qwen3 are wider than hidden / heads; 128 is what Transformers takes a GGUF file of it to have.
    head_dim = 128 if architecture in ("qwen3", "gemma3") else hidden // heads
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(head_dim)
    if architecture in ("qwen3", "gemma3"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    _add_vocabulary(writer, vocab)
    for key, value in (metadata or {}).items():
        {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](
            key, value
        )
    tensors = {}
    for name, hugging_face_name, shape in _tensor_table(
        architecture, hidden, inner, heads, kv_heads, head_dim, vocab, layers
    ):
        if tied and name == "output.weight":
            continue
        stored = "float32" if len(shape) == 1 else dtype
        raw = random_tensor(rng, stored, shape)
        tensors[hugging_face_name] = stored, shape, raw.tobytes()
        if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
            raw = interleave(raw, heads if ".attn_q." in name else kv_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            raw = (raw.view("<f4") + np.float32(1.0)).view(np.uint8)
            tensors[hugging_face_name] = stored, shape, (raw.view("<f4") - np.float32(1.0)).tobytes()
        kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(stored, stored.upper())
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def interleave(raw: np.ndarray, heads: int) -> np.ndarray:
    """What the converter does to the rows of q and k: halves of a head become neighbours."""
    rows = raw.shape[0]
    cut = raw.reshape(heads, 2, rows // heads // 2, -1) if raw.ndim > 1 else raw.view("<f4").reshape(heads, 2, -1, 1)
    return np.ascontiguousarray(cut.swapaxes(1, 2)).reshape(raw.view("<f4").shape if raw.ndim == 1 else raw.shape)


def _tensor_table(
    architecture: str, hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int, vocab: int, layers: int
) -> list[tuple[str, str, tuple[int, ...]]]:
    """(GGUF name, Hugging Face name, shape)."""
    table: list[tuple[str, str, tuple[int, ...]]] = [
        ("token_embd.weight", "model.embed_tokens.weight", (vocab, hidden)),
        ("output_norm.weight", "model.norm.weight", (hidden,)),
        ("output.weight", "lm_head.weight", (vocab, hidden)),
    ]
    for layer in range(layers):
        entries: list[tuple[str, str, tuple[int, ...]]] = [
            ("attn_norm.weight", "input_layernorm.weight", (hidden,)),
            ("ffn_norm.weight", "post_attention_layernorm.weight", (hidden,)),
            ("attn_q.weight", "self_attn.q_proj.weight", (heads * head_dim, hidden)),
            ("attn_k.weight", "self_attn.k_proj.weight", (kv_heads * head_dim, hidden)),
            ("attn_v.weight", "self_attn.v_proj.weight", (kv_heads * head_dim, hidden)),
            ("attn_output.weight", "self_attn.o_proj.weight", (hidden, heads * head_dim)),
            ("ffn_gate.weight", "mlp.gate_proj.weight", (inner, hidden)),
            ("ffn_up.weight", "mlp.up_proj.weight", (inner, hidden)),
            ("ffn_down.weight", "mlp.down_proj.weight", (hidden, inner)),
        ]
        if architecture == "qwen2":
            entries += [
                ("attn_q.bias", "self_attn.q_proj.bias", (heads * head_dim,)),
                ("attn_k.bias", "self_attn.k_proj.bias", (kv_heads * head_dim,)),
                ("attn_v.bias", "self_attn.v_proj.bias", (kv_heads * head_dim,)),
            ]
        if architecture in ("gemma2", "gemma3"):
            entries[1] = ("ffn_norm.weight", "pre_feedforward_layernorm.weight", (hidden,))
            entries += [
                ("post_attention_norm.weight", "post_attention_layernorm.weight", (hidden,)),
                ("post_ffw_norm.weight", "post_feedforward_layernorm.weight", (hidden,)),
            ]
        if architecture in ("qwen3", "gemma3"):
            entries += [
                ("attn_q_norm.weight", "self_attn.q_norm.weight", (head_dim,)),
                ("attn_k_norm.weight", "self_attn.k_norm.weight", (head_dim,)),
            ]
        table += [(f"blk.{layer}.{gguf}", f"model.layers.{layer}.{hf}", shape) for gguf, hf, shape in entries]
    return table


def _add_vocabulary(writer: Any, vocab_size: int) -> None:
    state = json.loads(byte_level_bpe(vocab_size).to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in state["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_safetensors(path: Path, header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> Path:
    """A safetensors file from its parts, right or wrong."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path
