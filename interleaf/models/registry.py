"""Which class runs which architecture. Families are imported when one of them is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from interleaf.errors import UnsupportedModelError
from interleaf.layers.weights import Weights
from interleaf.model_config import ModelConfig
from interleaf.ops import Array, LayerCache, ModelInput, Ops

_FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "llama",
    "Qwen3ForCausalLM": "llama",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma",
    "Gemma3ForCausalLM": "gemma",
}


class CausalModel(Protocol):
    """What the worker needs of a model.

    `recordable`: every step calls the same ops. Else the passes are not recorded but gone through in each step, where
    they may look at `inputs`.
    """

    recordable: bool

    def forward(self, inputs: ModelInput, caches: Sequence[LayerCache]) -> Any:
        """Compute a step up to where tokens need one another no more; what the other two go on from."""

    def logits(self, state: Any, inputs: ModelInput) -> Array: ...

    def hidden(self, state: Any, inputs: ModelInput) -> Array: ...


def supported_architectures() -> list[str]:
    return sorted(_FAMILIES)


def check_architecture(architecture: str) -> None:
    """
    Raises:
        UnsupportedModelError: no family here implements it.
    """
    if architecture not in _FAMILIES:
        raise UnsupportedModelError(
            f"The architecture {architecture!r} is not supported; supported are {', '.join(supported_architectures())}."
        )


def load_model(config: ModelConfig, ops: Ops, weights: Weights, max_positions: int) -> CausalModel:
    """Build the model that `config.architecture` names, with its weights in the platform's layout."""
    check_architecture(config.architecture)
    family = importlib.import_module(f"interleaf.models.{_FAMILIES[config.architecture]}")
    model: CausalModel = getattr(family, config.architecture)(config, ops, weights, max_positions)
    return model
