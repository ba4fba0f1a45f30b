"""`/tokenize` and `/detokenize`, as vLLM has them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from pydantic import Field

from interleaf.server.errors import bad_request
from interleaf.server.protocol.chat import ChatMessage, TemplateFields
from interleaf.server.protocol.common import ApiModel, FirstMistake, TokenIds


class TokenizeRequest(TemplateFields):
    """Either a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], FirstMistake()] = Field(default=[])
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = False

    def check_fields(self) -> None:
        super().check_fields()
        if (self.prompt is None) == (not self.messages):
            raise bad_request("Either prompt or messages must be given.", "prompt")


class TokenizeResponse(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str | None] | None = None


class DetokenizeRequest(ApiModel):
    model: str | None = None
    tokens: TokenIds


class DetokenizeResponse(msgspec.Struct):
    prompt: str
