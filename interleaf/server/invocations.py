"""`POST /invocations`: any of the endpoints at one path, as SageMaker calls it; the body tells which."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from interleaf.server.chat import create_chat_completion
from interleaf.server.completions import create_completion
from interleaf.server.embeddings import create_embedding
from interleaf.server.errors import bad_request, validated
from interleaf.server.protocol.chat import ChatCompletionRequest
from interleaf.server.protocol.completions import CompletionRequest
from interleaf.server.protocol.embeddings import EmbeddingRequest
from interleaf.server.routing import JsonRoute, responses

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/invocations", responses=responses(media_type="application/json"))
async def invoke(body: dict[str, Any], request: Request) -> Response:
    """A chat if the body has `messages`, a completion if it has `prompt`, embeddings if it has `input`."""
    if "messages" in body:
        return await create_chat_completion(validated(ChatCompletionRequest, body), request)
    if "prompt" in body:
        return await create_completion(validated(CompletionRequest, body), request)
    if "input" in body:
        return await create_embedding(validated(EmbeddingRequest, body), request)
    raise bad_request("The body needs messages, a prompt or an input.")
