"""`/v1/embeddings`."""

from __future__ import annotations

from typing import Literal

import msgspec
from pydantic import Field

from interleaf.params import Pooling, PoolingParams
from interleaf.server.protocol.common import PromptTokensDetails, RequestFields
from interleaf.server.protocol.completions import PromptField, listed_prompts


class PoolingFields(RequestFields):
    """How texts become vectors."""

    pooling: Pooling | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = True


class EmbeddingRequest(PoolingFields):
    input: PromptField
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(None, ge=1)
    normalize: bool | None = True

    def prompts(self) -> list[str | list[int]]:
        """The inputs, each as text or token ids.

        Raises:
            ApiError: `input` is neither text, token ids, nor a list of one kind of them.
        """
        return listed_prompts(self.input, "input")

    def pooling_params(self) -> PoolingParams:
        """
        Raises:
            ParameterError: a value is out of range.
        """
        return PoolingParams(self.pooling, self.dimensions, self.normalize is not False, self.truncate_prompt_tokens)


class Embedding(msgspec.Struct):
    """`embedding` is a list of numbers, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class EmbeddingResponse(msgspec.Struct):
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
    object: str = "list"
