"""`POST /v1/embeddings`: texts as vectors, made of a decoder's hidden states."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from interleaf.errors import RequestError
from interleaf.outputs import EmbeddingRequestOutput
from interleaf.params import PoolingParams
from interleaf.server.generation import Context, UsageCounter, context_of, generated, identifier, tokenized
from interleaf.server.protocol.common import PromptTokensDetails
from interleaf.server.protocol.embeddings import (
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    EmbeddingUsage,
    PoolingFields,
)
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.streaming import json_response, until_gone

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

PROMPT_FIELDS = ("prompt", "prompt_token_ids")
"""What the engine calls an input that is wrong."""


@router.post("/v1/embeddings", responses=responses(EmbeddingResponse))
async def create_embedding(body: EmbeddingRequest, request: Request) -> Response:
    """Make embeddings of texts."""
    return json_response(await until_gone(request.receive, embeddings(body, context_of(request))))


async def embeddings(body: EmbeddingRequest, context: Context) -> EmbeddingResponse:
    """
    Raises:
        ApiError, InterleafError: the request is refused, or could not be finished.
    """
    body.check_fields()
    model, name = context.state.check_model(body.model), identifier("embd", context, body)
    found, counter = await vectors(context, body, body.prompts(), body.pooling_params(), name, "input")
    coded = [in_base64(one) if body.encoding_format == "base64" else one for one in found]
    return EmbeddingResponse(model, [Embedding(*one) for one in enumerate(coded)], embedding_usage(counter))


async def vectors(
    context: Context,
    body: PoolingFields,
    texts: Sequence[str | list[int]],
    params: PoolingParams,
    request_id: str,
    param: str,
) -> tuple[list[list[float]], UsageCounter]:
    """The embeddings of texts or token ids, and their tokens.

    Args:
        param: the field that they came in.

    Raises:
        ApiError, InterleafError: the request is refused, or could not be finished.
    """
    prompts = [await tokenized(context.engine, one, body.add_special_tokens is not False) for one in texts]
    counter = UsageCounter(len(prompts))
    found: dict[int, list[float]] = {}
    try:
        async with aclosing(generated(context, body, prompts, params, request_id)) as outputs:
            async for number, output in outputs:
                counter.add(number, output)
                found[number] = EmbeddingRequestOutput.from_output(output).outputs.embedding
    except RequestError as error:
        if error.param in PROMPT_FIELDS:
            error.param = param
        raise
    return [found[number] for number in range(len(prompts))], counter


def embedding_usage(counter: UsageCounter) -> EmbeddingUsage:
    """What the texts took."""
    return EmbeddingUsage(counter.prompt_tokens, counter.prompt_tokens, PromptTokensDetails(counter.cached_tokens))


def in_base64(values: list[float]) -> str:
    """Numbers as base64 of little-endian float32."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
