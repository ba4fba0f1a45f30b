"""Opening a model, whatever it is given as: a built-in name, a directory, a GGUF file, a hub name.

Opening reads headers only. Tensors are views into mapped files until somebody touches them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from interleaf.config import BUILTIN_MODEL, DTYPE_BYTES
from interleaf.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, UnsupportedModelError
from interleaf.host_tensor import BLOCK_TYPES, HostTensor, num_bytes
from interleaf.loader import builtin, hub
from interleaf.loader.gguf import read_gguf
from interleaf.loader.gguf_names import HuggingFaceTensors, special_tokens, translate_config
from interleaf.loader.safetensors import read_directory

MAX_CONFIG_BYTES = 16_000_000

TokenizerSource = Path | Mapping[str, Any]
"""A directory with tokenizer files, or a GGUF file's metadata."""


@dataclass(slots=True)
class Checkpoint:
    """An opened model.

    Fields:
        name: what the user called it; the built-in model's name if nothing.
        hf_config: config.json, or a GGUF file's metadata under the same names.
        generation_config: generation_config.json; for GGUF the special token ids; {} if there is none.
        tensors: Hugging Face name -> tensor.
        tokenizer_source: what `frontend.tokenizer` builds the tokenizer from.
    """

    name: str
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: Mapping[str, HostTensor]
    tokenizer_source: TokenizerSource
    _stored: Counter[str] = field(default_factory=Counter)

    def weight_bytes(self, dtype: str, dequantize: bool = False) -> int:
        """Memory that the weights will take when computing in `dtype` ("bfloat16" or "float32").

        Quantized tensors keep their own type unless `dequantize` is set.
        """
        total = 0
        for stored, num_values in self._stored.items():
            keeps = stored in BLOCK_TYPES and not dequantize
            total += num_bytes(stored, num_values) if keeps else DTYPE_BYTES[dtype] * num_values
        return total

    def close(self) -> None:
        """Let go of the files. A tensor that somebody still holds keeps its own file mapped."""
        self.tensors = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(model: str | None, revision: str | None = None) -> Checkpoint:
    """Open a model.

    Args:
        model: None or a built-in name, a directory in Hugging Face layout, a .gguf file, or a hub
            name "organization/model".
        revision: branch, tag or commit of a hub model.

    Raises:
        CheckpointNotFoundError: there is no such model, or it cannot be fetched.
        CorruptCheckpointError: its files are truncated, contradict themselves or are hostile.
        UnsupportedModelError: its format or architecture is not implemented.
    """
    path = locate(model, revision, hub.MODEL_FILES)
    name = model or BUILTIN_MODEL
    return _open_gguf(name, path) if path.is_file() else _open_directory(name, path)


def locate(model: str | None, revision: str | None = None, patterns: Sequence[str] = hub.MODEL_FILES) -> Path:
    """The GGUF file or directory that `model` stands for, fetched first where it must be.

    A directory that holds one GGUF file and no config.json stands for that file.

    Raises:
        CheckpointNotFoundError: there is none.
    """
    if model is None or model in builtin.MODELS:
        return builtin.path_of(model or BUILTIN_MODEL)
    path = Path(model).expanduser()
    if _exists(path, model):
        if path.is_dir():
            files = sorted(path.glob("*.gguf"))
            return files[0] if len(files) == 1 and not (path / "config.json").exists() else path
        if path.suffix == ".gguf":
            return path
        raise UnsupportedModelError(f"{model} is no .gguf file: give one, or a model directory.")
    if not hub.is_hub_name(model) or path.suffix == ".gguf":
        raise CheckpointNotFoundError(
            f"There is no file or directory {model}: give a model directory, a .gguf file, a hub name "
            f'("organization/model") or a built-in name ({", ".join(builtin.MODELS)}).'
        )
    return hub.fetch(model, revision, patterns)


def _exists(path: Path, model: str) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        raise CheckpointNotFoundError(f"{model[:100]!r} is no path that can be opened.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CorruptCheckpointError: it is malformed or absurdly large.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CorruptCheckpointError(f"{path.name} is larger than {MAX_CONFIG_BYTES} bytes.")
        parsed = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"{path.parent} has no {path.name}: give a whole model directory.") from None
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError):
        raise CorruptCheckpointError(f"{path.name} is not well-formed JSON: fetch it again.") from None
    if not isinstance(parsed, dict):
        raise CorruptCheckpointError(f"{path.name} is not a JSON object.")
    return parsed


def _open_directory(name: str, directory: Path) -> Checkpoint:
    config = read_json(directory / "config.json")
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UnsupportedModelError(
            f"{name} is quantized with {method}, which is not supported: give the original model or a .gguf file."
        )
    generation = directory / "generation_config.json"
    tensors = read_directory(directory)
    return Checkpoint(
        name=name,
        hf_config=config,
        generation_config=read_json(generation) if generation.exists() else {},
        tensors=tensors,
        tokenizer_source=directory,
        _stored=_count(tensors.values()),
    )


def _open_gguf(name: str, path: Path) -> Checkpoint:
    file = read_gguf(path)
    config = translate_config(file.metadata, file.tensors)
    tensors = HuggingFaceTensors(str(file.metadata["general.architecture"]), file.tensors, config)
    return Checkpoint(
        name=name,
        hf_config=config,
        generation_config=special_tokens(file.metadata),
        tensors=tensors,
        tokenizer_source=file.metadata,
        _stored=_count(tensors.stored()),
    )


def _count(tensors: Iterable[HostTensor]) -> Counter[str]:
    """Values per stored type."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.num_values
    return counts
