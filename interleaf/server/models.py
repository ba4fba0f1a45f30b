"""`GET /v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response

from interleaf.server.protocol.models import AnthropicModel, AnthropicModelList, Model, ModelList
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.state import ServerState, state_of
from interleaf.server.streaming import json_response

ANTHROPIC_HEADER = "anthropic-version"
"""What Anthropic's clients send with every request; they expect another form at the same path."""

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.get("/v1/models", responses=responses(ModelList))
async def list_models(request: Request) -> Response:
    """The names under which the model is served."""
    state = state_of(request)
    names = state.options.served_model_names
    if ANTHROPIC_HEADER in request.headers:
        return json_response(AnthropicModelList([_anthropic_model(state, name) for name in names], names[0], names[-1]))
    return json_response(ModelList([_model(state, name) for name in names]))


@router.get("/v1/models/{model_id:path}", responses=responses(Model))
async def retrieve_model(model_id: str, request: Request) -> Response:
    """One of them."""
    state = state_of(request)
    name = state.check_model(model_id)
    told = _anthropic_model(state, name) if ANTHROPIC_HEADER in request.headers else _model(state, name)
    return json_response(told)


def _anthropic_model(state: ServerState, name: str) -> AnthropicModel:
    created = datetime.fromtimestamp(state.started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return AnthropicModel(name, name, created)


def _model(state: ServerState, name: str) -> Model:
    max_model_len = state.engine.config.scheduler.max_model_len
    return Model(name, state.started, state.model_name, max_model_len)
