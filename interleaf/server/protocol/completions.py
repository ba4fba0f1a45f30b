"""`/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field, WithJsonSchema

from interleaf.server.errors import bad_request
from interleaf.server.protocol.common import MAX_N, MAX_PROMPTS, PromptLogprobsField, SamplingFields, Usage

PromptField = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                    "minItems": 1,
                },
            ]
        }
    ),
]
"""Checked by `listed_prompts`: unions of long lists make pydantic report every item."""


class CompletionRequest(SamplingFields):
    prompt: PromptField
    suffix: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = None
    echo: bool | None = False
    best_of: int | None = Field(None, ge=1, le=MAX_N)
    add_special_tokens: bool | None = True

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each as text or token ids.

        Raises:
            ApiError: `prompt` is neither text, token ids, nor a list of one kind of them.
        """
        return listed_prompts(self.prompt, "prompt")

    def check_fields(self) -> None:
        super().check_fields()
        if self.suffix:
            raise bad_request(
                "suffix is not supported: this server writes text behind prompts only.",
                "suffix",
                "unsupported_parameter",
            )
        if self.best_of is not None:
            if self.best_of < (self.n or 1):
                raise bad_request("best_of must not be less than n.", "best_of")
            if self.stream and self.best_of > (self.n or 1) and not self.use_beam_search:
                raise bad_request("best_of cannot be streamed: set stream to false.", "best_of")
        if self.logprobs is not None and self.logprobs < 0:
            raise bad_request("logprobs must be at least 0.", "logprobs")


class CompletionLogprobs(msgspec.Struct):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobsField | UnsetType = UNSET


class CompletionResponse(msgspec.Struct):
    """A whole completion, and a chunk of one: both are objects of the same name."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    object: str = "text_completion"


def listed_prompts(prompts: Any, name: str) -> list[str | list[int]]:
    """The prompts in a `PromptField`, each as text or token ids.

    Raises:
        ApiError: the field `name` is neither text, token ids, nor a list of one kind of them.
    """
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, list) and prompts:
        if _all(prompts, int):
            return [prompts]
        if len(prompts) > MAX_PROMPTS:
            raise bad_request(f"{name} has {len(prompts)} entries, but {MAX_PROMPTS} is the most.", name)
        if _all(prompts, str) or all(isinstance(one, list) and one and _all(one, int) for one in prompts):
            return prompts
    raise bad_request(f"{name} must be a string, or a list of strings or of token ids.", name)


def _all(values: list[Any], kind: type) -> bool:
    return all(type(value) is kind for value in values)
