"""Endpoints for whoever runs the server: probes, metrics, and switches of the engine."""

from __future__ import annotations

from fastapi import APIRouter, Query, Request, Response

from interleaf import __version__
from interleaf.errors import EngineError
from interleaf.frontend.board import Tally
from interleaf.server.errors import ApiError
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.state import state_of
from interleaf.server.streaming import json_response

HEALTH_TIMEOUT = 8.0
"""Seconds in which the engine must answer."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

router = APIRouter(route_class=JsonRoute, tags=["Operation"])


@router.get("/health", responses=responses())
async def health(request: Request) -> Response:
    """Whether the engine answers; asked of the engine each time."""
    try:
        await state_of(request).engine.check_health(HEALTH_TIMEOUT)
    except (EngineError, TimeoutError):
        raise ApiError(503, "The engine does not answer.", code="engine_unavailable") from None
    return Response()


@router.get("/ready", responses=responses())
async def ready(request: Request) -> Response:
    """Whether new requests would be answered now."""
    state = state_of(request)
    if state.draining or not state.engine.is_ready:
        raise ApiError(503, "The server takes no requests at the moment.", code="not_ready")
    return Response()


@router.get("/ping", responses=responses())
@router.post("/ping", responses=responses())
async def ping() -> Response:
    """Whether this process answers."""
    return Response()


@router.get("/version", responses=responses(media_type="application/json"))
async def version() -> Response:
    return json_response({"version": __version__})


@router.get("/load", responses=responses(media_type="application/json"))
async def load(request: Request) -> Response:
    """Requests in flight, at all front ends together."""
    return json_response({"server_load": state_of(request).peers.seat.total(Tally.IN_FLIGHT)})


@router.get("/metrics", responses=responses(media_type="text/plain"))
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(state_of(request).engine.metrics.render(), media_type=METRICS_TYPE)


@router.post("/reset_prefix_cache", responses=responses(media_type="application/json"))
async def reset_prefix_cache(request: Request) -> Response:
    """Forget all cached prefixes."""
    if not await state_of(request).engine.reset_prefix_cache():
        raise ApiError(409, "The prefix cache is in use: try again when no request runs.", code="cache_in_use")
    return json_response({"success": True})


@router.post("/sleep", responses=responses())
async def sleep(request: Request, level: int = Query(1, ge=1, le=2)) -> Response:
    """Free the KV cache (level 1), and the weights as well (level 2)."""
    await state_of(request).engine.sleep(level)
    return Response()


@router.post("/wake_up", responses=responses())
async def wake_up(request: Request) -> Response:
    """Take the memory again."""
    await state_of(request).engine.wake_up()
    return Response()


@router.get("/is_sleeping", responses=responses(media_type="application/json"))
async def is_sleeping(request: Request) -> Response:
    return json_response({"is_sleeping": await state_of(request).engine.is_sleeping()})
