"""`/pooling`, `/score` and `/rerank`: what vLLM has beside embeddings for models that embed.

A score is the cosine of two texts' embeddings.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from interleaf.server.embeddings import embedding_usage, in_base64, vectors
from interleaf.server.generation import Context, UsageCounter, context_of, identifier
from interleaf.server.protocol.embeddings import EmbeddingRequest
from interleaf.server.protocol.scoring import (
    Pooled,
    PoolingResponse,
    Ranked,
    RankedDocument,
    RerankRequest,
    RerankResponse,
    Score,
    ScoreRequest,
    ScoreResponse,
    ScoringFields,
)
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.streaming import json_response, until_gone

router = APIRouter(route_class=JsonRoute, tags=["vLLM"])


@router.post("/pooling", responses=responses(PoolingResponse))
async def pool(body: EmbeddingRequest, request: Request) -> Response:
    """Embeddings, in another form."""
    return json_response(await until_gone(request.receive, _pooled(body, context_of(request))))


@router.post("/score", responses=responses(ScoreResponse))
@router.post("/v1/score", responses=responses(ScoreResponse))
async def score(body: ScoreRequest, request: Request) -> Response:
    """How much each text of one side is like that of the other."""
    return json_response(await until_gone(request.receive, scores(body, context_of(request))))


@router.post("/rerank", responses=responses(RerankResponse))
@router.post("/v1/rerank", responses=responses(RerankResponse))
@router.post("/v2/rerank", responses=responses(RerankResponse))
async def rerank(body: RerankRequest, request: Request) -> Response:
    """Documents, those that are most like a query first."""
    return json_response(await until_gone(request.receive, ranks(body, context_of(request))))


async def _pooled(body: EmbeddingRequest, context: Context) -> PoolingResponse:
    body.check_fields()
    model, name = context.state.check_model(body.model), identifier("pool", context, body)
    found, counter = await vectors(context, body, body.prompts(), body.pooling_params(), name, "input")
    coded = [in_base64(one) if body.encoding_format == "base64" else one for one in found]
    return PoolingResponse(name, model, [Pooled(*one) for one in enumerate(coded)], embedding_usage(counter))


async def scores(body: ScoreRequest, context: Context) -> ScoreResponse:
    """
    Raises:
        ApiError, InterleafError: the request is refused, or could not be finished.
    """
    body.check_fields()
    model, name = context.state.check_model(body.model), identifier("score", context, body)
    found, counter = await _cosines(body, context, *body.sides(), name, "text_1")
    return ScoreResponse(name, model, [Score(*one) for one in enumerate(found)], embedding_usage(counter))


async def ranks(body: RerankRequest, context: Context) -> RerankResponse:
    """
    Raises:
        ApiError, InterleafError: the request is refused, or could not be finished.
    """
    body.check_fields()
    model, name = context.state.check_model(body.model), identifier("rerank", context, body)
    texts = body.texts()
    found, counter = await _cosines(body, context, [body.query] * len(texts), texts, name, "documents")
    results = [Ranked(*one) for one in enumerate(found)]
    results.sort(key=lambda one: one.relevance_score, reverse=True)
    if body.return_documents is not False:
        for one in results:
            one.document = RankedDocument(texts[one.index])
    return RerankResponse(name, model, embedding_usage(counter), results[: body.top_n or None])


async def _cosines(
    body: ScoringFields, context: Context, first: Sequence[str], second: Sequence[str], name: str, param: str
) -> tuple[list[float], UsageCounter]:
    """Of each pair; a text that is there several times is embedded once."""
    texts = list(dict.fromkeys([*first, *second]))
    found, counter = await vectors(context, body, texts, body.pooling_params(), name, param)
    by_text = dict(zip(texts, found, strict=True))
    pairs = [(by_text[one], by_text[other]) for one, other in zip(first, second, strict=True)]
    return [_cosine(one, other) for one, other in pairs], counter


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """In double precision: lengths in float32 are not quite 1."""
    product = math.fsum(map(operator.mul, one, other))
    lengths = math.hypot(*one) * math.hypot(*other)
    return max(-1.0, min(1.0, product / lengths)) if lengths else 0.0
