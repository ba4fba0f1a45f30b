"""The pages: at `/` a chat and a live view of the engine, at `/docs` the API.

They are plain files that need nothing from elsewhere.
"""

from __future__ import annotations

import base64
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from interleaf.server.errors import ApiError
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.state import state_of
from interleaf.server.streaming import json_response

router = APIRouter(route_class=JsonRoute, tags=["Page"])

TYPES = {
    "page.css": "text/css; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "docs.css": "text/css; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@router.get("/", responses=responses(media_type="text/html"))
async def page() -> Response:
    """The page."""
    return _html("index.html")


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The API, read from the OpenAPI document."""
    if not state_of(request).options.serve_docs:
        raise ApiError(404, "There is nothing at this path.")
    return _html("docs.html")


@router.get("/page/{name}", include_in_schema=False)
async def page_file(name: str) -> Response:
    """What the pages are made of."""
    if name not in TYPES:
        raise ApiError(404, "There is nothing at this path.")
    return Response(_content(name), headers=HEADERS, media_type=TYPES[name])


@router.get("/live", responses=responses(media_type="application/json"))
async def live(request: Request) -> Response:
    """What the engine does now.

    `blocks` has a byte for each block of the KV cache, in base64: 0 free, 1 cached, 2 used, 3 shared.
    """
    engine = state_of(request).engine
    if not engine.is_ready:
        raise ApiError(503, "The engine is not running at the moment.", code="engine_unavailable")
    stats = await engine.get_stats()
    blocks = base64.b64encode(await engine.block_map()).decode()
    told = {name: getattr(stats, name) for name in stats.__struct_fields__}
    return json_response({"stats": told, "blocks": blocks})


def _html(name: str) -> Response:
    return Response(_content(name), headers=HEADERS, media_type="text/html; charset=utf-8")


def _content(name: str) -> bytes:
    return files("interleaf.server").joinpath("page", name).read_bytes()
