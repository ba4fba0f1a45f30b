"""`/v1/models`."""

from __future__ import annotations

from typing import Any

import msgspec


class Model(msgspec.Struct):
    """A model that requests may name; `root` is what it was loaded as."""

    id: str
    created: int
    root: str
    max_model_len: int
    object: str = "model"
    owned_by: str = "interleaf"
    parent: str | None = None
    permission: list[Any] = []


class ModelList(msgspec.Struct):
    data: list[Model]
    object: str = "list"


class AnthropicModel(msgspec.Struct):
    """A model as Anthropic's clients expect it."""

    id: str
    display_name: str
    created_at: str
    type: str = "model"


class AnthropicModelList(msgspec.Struct):
    data: list[AnthropicModel]
    first_id: str
    last_id: str
    has_more: bool = False
