"""`POST /v1/embeddings`: texts as vectors, made of a decoder's hidden states."""

from __future__ import annotations

import base64
import struct
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from interleaf.errors import RequestError
from interleaf.outputs import EmbeddingRequestOutput
from interleaf.server.generation import Context, UsageCounter, context_of, generated, identifier, tokenized
from interleaf.server.protocol.common import PromptTokensDetails
from interleaf.server.protocol.embeddings import Embedding, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage
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
    model = context.state.check_model(body.model)
    params = body.pooling_params()
    special = body.add_special_tokens is not False
    prompts = [await tokenized(context.engine, one, special) for one in body.prompts()]
    counter = UsageCounter(len(prompts))
    data: list[Embedding] = []
    try:
        async with aclosing(generated(context, body, prompts, params, identifier("embd", context, body))) as outputs:
            async for number, output in outputs:
                counter.add(number, output)
                values = EmbeddingRequestOutput.from_output(output).outputs.embedding
                data.append(Embedding(number, _base64(values) if body.encoding_format == "base64" else values))
    except RequestError as error:
        if error.param in PROMPT_FIELDS:
            error.param = "input"
        raise
    data.sort(key=lambda one: one.index)
    usage = EmbeddingUsage(counter.prompt_tokens, counter.prompt_tokens, PromptTokensDetails(counter.cached_tokens))
    return EmbeddingResponse(model, data, usage)


def _base64(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
