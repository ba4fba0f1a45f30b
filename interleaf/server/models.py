"""`GET /v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from interleaf.server.protocol.models import Model, ModelList
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.state import ServerState, state_of
from interleaf.server.streaming import json_response

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.get("/v1/models", responses=responses(ModelList))
async def list_models(request: Request) -> Response:
    """The names under which the model is served."""
    state = state_of(request)
    return json_response(ModelList([_model(state, name) for name in state.options.served_model_names]))


@router.get("/v1/models/{model_id:path}", responses=responses(Model))
async def retrieve_model(model_id: str, request: Request) -> Response:
    """One of them."""
    state = state_of(request)
    return json_response(_model(state, state.check_model(model_id)))


def _model(state: ServerState, name: str) -> Model:
    max_model_len = state.engine.config.scheduler.max_model_len
    return Model(name, state.started, state.model_name, max_model_len)
