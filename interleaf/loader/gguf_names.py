"""From GGUF's names to Hugging Face's: metadata to a config.json, tensors to a state dict.

The converter that writes GGUF files reorders the rows of the query and key projections of the
"llama" architecture so that rotary pairs lie side by side; here they are put back, so that models
see one layout whatever the file. Blocks of quantized types lie within a row, so whole rows move. In Gemma's files
it has added the 1 that the weights of norms lack; here it is taken off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from reprlib import repr as shortened
from typing import Any

import numpy as np

from interleaf.errors import CorruptCheckpointError, UnsupportedModelError
from interleaf.host_tensor import HostTensor

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
MODEL_TYPES = {"gemma3": "gemma3_text"}
"""Where Hugging Face's model_type is not GGUF's name of the architecture."""
GEMMAS = ("gemma", "gemma2", "gemma3")

TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS_ON_BOTH_SIDES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Names that Gemma 2 and 3 have beside, or in place of, those of `LAYER_NAMES`."""

WIDE_QUERY_LAYERS = {"gemma2": 46, "gemma3": 62}
"""Gemmas with so many layers (27B) scale queries by width / heads, others by the size of a head. No file says it."""

ROPE_FACTORS = "rope_freqs.weight"
END_OF_TURN = "<end_of_turn>"
LAYER_PATTERN = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)")

LLAMA3_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every published model with llama3 rotary scaling has; its file only lists the resulting factors."""


class HuggingFaceTensors(Mapping[str, HostTensor]):
    """A GGUF file's tensors under Hugging Face names; those that the converter changed are made when they are fetched.

    Raises:
        UnsupportedModelError: a tensor has a name that no supported architecture has, or a norm a type that none has.
        CorruptCheckpointError: a projection's rows are no whole number of heads.
    """

    def __init__(self, architecture: str, tensors: Mapping[str, HostTensor], config: Mapping[str, Any]) -> None:
        self._tensors = {
            hugging_face_name(name, architecture): tensor for name, tensor in tensors.items() if name != ROPE_FACTORS
        }
        self._norms_count_one = architecture in GEMMAS
        self._heads: dict[str, int] = {}
        if architecture == "llama":
            for name, tensor in self._tensors.items():
                heads = _interleaved_heads(name, config)
                if heads:
                    _check_heads(name, tensor, heads)
                    self._heads[name] = heads

    def __getitem__(self, name: str) -> HostTensor:
        tensor = self._tensors[name]
        heads = self._heads.get(name)
        if self._norms_count_one and name.endswith("norm.weight"):
            return _less_one(name, tensor)
        return undo_rotary_interleave(tensor, heads) if heads else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def stored(self) -> Iterator[HostTensor]:
        """The tensors as they lie in the file: cheap, for sizes and types."""
        return iter(self._tensors.values())


def hugging_face_name(name: str, architecture: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    names = LAYER_NAMES | NORMS_ON_BOTH_SIDES if architecture in ("gemma2", "gemma3") else LAYER_NAMES
    match = LAYER_PATTERN.fullmatch(name)
    if match is None or match[2] not in names:
        raise UnsupportedModelError(f"The GGUF file has a tensor {name}, which no supported architecture knows.")
    return f"model.layers.{int(match[1])}.{names[match[2]]}.{match[3]}"


def _less_one(name: str, tensor: HostTensor) -> HostTensor:
    if tensor.dtype != "float32":
        raise UnsupportedModelError(f"Tensor {name} has the type {tensor.dtype}: norms must be float32.")
    return HostTensor("float32", tensor.shape, (tensor.data.view("<f4") - np.float32(1.0)).view(np.uint8))


def undo_rotary_interleave(tensor: HostTensor, heads: int) -> HostTensor:
    """Bring rows from pairs side by side, [heads, size / 2, 2], to halves, [heads, 2, size / 2]."""
    half = tensor.shape[0] // heads // 2
    rows = tensor.data.reshape(heads, half, 2, -1)
    return HostTensor(tensor.dtype, tensor.shape, np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1))


def _interleaved_heads(name: str, config: Mapping[str, Any]) -> int:
    """Heads of a tensor whose rows the converter reordered; 0 for any other."""
    if ".self_attn.q_proj." in name:
        return int(config["num_attention_heads"])
    if ".self_attn.k_proj." in name:
        return int(config["num_key_value_heads"])
    return 0


def _check_heads(name: str, tensor: HostTensor, heads: int) -> None:
    rows = tensor.shape[0] if tensor.shape else 0
    if not rows or rows % (2 * heads):
        raise CorruptCheckpointError(f"Tensor {name} has {rows} rows, which {heads} attention heads cannot share.")


def translate_config(metadata: Mapping[str, Any], tensors: Mapping[str, HostTensor]) -> dict[str, Any]:
    """The config.json that the file's metadata amounts to.

    Raises:
        UnsupportedModelError: the architecture, or a feature of it, is not implemented.
        CorruptCheckpointError: a fact is missing or of the wrong kind.
    """
    kind = _architecture(metadata)
    facts = _Facts(metadata, kind)
    if facts.integer("expert_count", 0, low=0):
        raise UnsupportedModelError("GGUF files of mixture-of-experts models are not supported.")
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CorruptCheckpointError("The GGUF file has no token embedding of two dimensions.")
    hidden_size, heads = facts.integer("embedding_length"), facts.integer("attention.head_count")
    head_dim = facts.integer("attention.key_length", hidden_size // heads)
    if facts.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError("GGUF files whose keys and values differ in size are not supported.")
    config = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": MODEL_TYPES.get(kind, kind),
        "hidden_size": hidden_size,
        "intermediate_size": facts.integer("feed_forward_length"),
        "num_hidden_layers": facts.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": facts.integer("context_length"),
        "rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": facts.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        **special_tokens(metadata),
    }
    rotary_dim = facts.integer("rope.dimension_count", head_dim)
    if rotary_dim != head_dim:
        config["partial_rotary_factor"] = rotary_dim / head_dim
    if kind in GEMMAS:
        config |= _gemma_config(facts, config)
    window = facts.integer("attention.sliding_window", 0, low=0)
    if window and kind == "llama":
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    scaling = _rope_scaling(facts, tensors.get(ROPE_FACTORS), config["rope_theta"], rotary_dim)
    if scaling:
        config["rope_scaling"] = scaling
    return config


def _architecture(metadata: Mapping[str, Any]) -> str:
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"The GGUF architecture {shortened(kind)} is not supported: those supported are {', '.join(ARCHITECTURES)}."
        )
    return kind


def _gemma_config(facts: _Facts, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the Gemmas have beyond all others."""
    found: dict[str, Any] = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": config["head_dim"]}
    if facts.prefix == "gemma":
        return found
    if config["num_hidden_layers"] == WIDE_QUERY_LAYERS[facts.prefix]:
        found["query_pre_attn_scalar"] = config["hidden_size"] // config["num_attention_heads"]
    found["sliding_window"] = facts.integer("attention.sliding_window", 4096)
    found["final_logit_softcapping"] = facts.number_or_none("final_logit_softcapping")
    found["attn_logit_softcapping"] = facts.number_or_none("attn_logit_softcapping")
    if facts.prefix == "gemma2":
        return found | {"sliding_window_pattern": 2}
    found["rope_theta"] = facts.number("rope.freq_base", 1e6)
    found["rope_local_base_freq"] = facts.number("rope.freq_base_swa", 1e4)
    return found | {"sliding_window_pattern": facts.integer("attention.sliding_window_pattern", 6)}


def special_tokens(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`bos_token_id`, `eos_token_id` (a list where several end a turn) and `pad_token_id`, where given."""

    def token(name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if type(value) is int and 0 <= value < 2**31 else None

    ends = list(dict.fromkeys(value for name in ("eos", "eot", "eom") if (value := token(name)) is not None))
    if metadata.get("general.architecture") in GEMMAS:
        ends = list(dict.fromkeys([*ends, *_end_of_turn(metadata.get("tokenizer.ggml.tokens"))]))
    found = {
        "bos_token_id": token("bos"),
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": token("padding"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _end_of_turn(tokens: Any) -> list[int]:
    """The token that ends a turn, which Gemma's files do not name as such."""
    return [tokens.index(END_OF_TURN)] if isinstance(tokens, list) and END_OF_TURN in tokens else []


class _Facts:
    """The metadata of one architecture, each value checked as it is read."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str) -> None:
        self.metadata = metadata
        self.prefix = prefix

    def get(self, name: str, default: Any, accept: Callable[[Any], bool]) -> Any:
        key = f"{self.prefix}.{name}"
        value = self.metadata.get(key, default)
        if isinstance(value, (list, np.ndarray)):
            raise UnsupportedModelError(f"The GGUF file gives {key} per layer, which is not supported.")
        if not accept(value):
            raise CorruptCheckpointError(f"The GGUF file has no usable {key} (found {shortened(value)}).")
        return value

    def integer(self, name: str, default: int | None = None, low: int = 1) -> int:
        return int(self.get(name, default, lambda value: type(value) is int and low <= value < 2**31))

    def number(self, name: str, default: float | None = None) -> float:
        """A float32 as the shortest decimal that gives it: 1e-05, not 9.999999747378752e-06."""
        value = self.get(name, default, lambda value: type(value) in (int, float) and 0 < value < math.inf)
        return float(str(np.float32(value)))

    def number_or_none(self, name: str) -> float | None:
        return self.number(name) if f"{self.prefix}.{name}" in self.metadata else None

    def string(self, name: str, default: str) -> str:
        return str(self.get(name, default, lambda value: isinstance(value, str)))


def _rope_scaling(facts: _Facts, factors: HostTensor | None, theta: float, rotary_dim: int) -> dict[str, Any] | None:
    """The `rope_scaling` entry, from the metadata or from a tensor of factors per frequency."""
    if factors is not None:
        return _llama3_scaling(factors, theta, rotary_dim)
    kind = facts.string("rope.scaling.type", "linear" if f"{facts.prefix}.rope.scale_linear" in facts.metadata else "")
    if kind in ("", "none"):
        return None
    factor = facts.number("rope.scaling.factor", facts.number("rope.scale_linear", 1.0))
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None
    if kind != "yarn":
        raise UnsupportedModelError(f"The GGUF file's rotary scaling {shortened(kind)} is not supported.")
    original = facts.integer("rope.scaling.original_context_length", facts.integer("context_length"))
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}


def _llama3_scaling(tensor: HostTensor, theta: float, rotary_dim: int) -> dict[str, Any] | None:
    """Find the llama3 parameters that give these factors, one per rotary frequency, float32 [rotary_dim / 2]."""
    if tensor.dtype != "float32" or tensor.num_values != rotary_dim // 2:
        raise CorruptCheckpointError(f"Tensor {ROPE_FACTORS} is not {rotary_dim // 2} values of float32.")
    factors = tensor.data.view("<f4").astype(np.float64)
    if np.all(factors == 1.0):
        return None
    scaling = {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA3_BANDS}
    if not np.allclose(factors, llama3_factors(scaling, theta, rotary_dim), rtol=1e-4, atol=0.0):
        raise UnsupportedModelError(f"Tensor {ROPE_FACTORS} scales the rotary embedding by a rule that is not known.")
    return scaling


def llama3_factors(scaling: Mapping[str, Any], theta: float, rotary_dim: int) -> np.ndarray:
    """What llama3 scaling divides each rotary frequency by, float64 [rotary_dim / 2].

    Wavelengths up to `original / high` stay, those from `original / low` on are divided by
    `factor`, and between the two the frequency is interpolated.
    """
    frequencies = theta ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - share) / scaling["factor"] + share))
