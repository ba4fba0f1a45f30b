"""`POST /tokenize` and `/detokenize`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from interleaf.server.chat_prompt import chat_prompt
from interleaf.server.errors import bad_request
from interleaf.server.generation import tokenized
from interleaf.server.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.state import state_of
from interleaf.server.streaming import json_response

router = APIRouter(route_class=JsonRoute, tags=["Tokens"])


@router.post("/tokenize", responses=responses(TokenizeResponse))
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The tokens of a prompt or of a conversation."""
    body.check_fields()
    state = state_of(request)
    state.check_model(body.model)
    if body.prompt is None:
        prompt = await chat_prompt(state, body)
    else:
        prompt = await tokenized(state.engine, body.prompt, body.add_special_tokens is not False)
    tokens = prompt["prompt_token_ids"]
    response = TokenizeResponse(len(tokens), state.engine.config.scheduler.max_model_len, tokens)
    if body.return_token_strs:
        response.token_strs = state.engine.tokenizer.convert_ids_to_tokens(tokens)
    return json_response(response)


@router.post("/detokenize", responses=responses(DetokenizeResponse))
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of tokens."""
    body.check_fields()
    state = state_of(request)
    state.check_model(body.model)
    vocab_size = state.engine.config.model.vocab_size
    for token in body.tokens:
        if not 0 <= token < vocab_size:
            raise bad_request(f"tokens has {token}, but token ids go from 0 to {vocab_size - 1}.", "tokens")
    return json_response(DetokenizeResponse(state.engine.tokenizer.decode(body.tokens)))
