"""The app: routes, layers around them, and the OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response
from starlette.middleware.cors import CORSMiddleware

from interleaf import __version__
from interleaf.server import (
    anthropic,
    chat,
    completions,
    embeddings,
    files_batches,
    invocations,
    models,
    operations,
    responses,
    scoring,
    stored_chats,
    tokenize,
    web_page,
)
from interleaf.server.engine import Engine
from interleaf.server.errors import install_handlers
from interleaf.server.middleware import Edge, add_middleware
from interleaf.server.options import ServerOptions
from interleaf.server.peers import Peers
from interleaf.server.state import ServerState

FAMILIES = (
    completions,
    chat,
    stored_chats,
    responses,
    embeddings,
    scoring,
    invocations,
    files_batches,
    anthropic,
    models,
    tokenize,
    operations,
    web_page,
)


def create_app(engine: Engine, options: ServerOptions, peers: Peers | None = None) -> FastAPI:
    """An app on an engine that runs already and is shut down by whoever started it.

    Args:
        peers: the server's other front ends; None if this is the only one.
    """
    state = ServerState(engine, options, peers)
    files_batches.answer_peers(state)
    responses.answer_peers(state)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await state.peers.open()
        if state.peers.is_owner:
            files_batches.resume_all(state)
        yield
        await state.close()

    app = FastAPI(
        title="interleaf",
        version=__version__,
        lifespan=lifespan,
        # The framework's own pages load scripts from elsewhere; ours is in web_page.
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if options.serve_docs else None,
        # Endpoints return responses; the document shall not claim JSON where there is none.
        default_response_class=Response,
    )
    app.state.server = state
    for family in FAMILIES:
        app.include_router(family.router)
    install_handlers(app, [route for family in FAMILIES for route in family.router.routes])
    app.add_middleware(Edge, state=state)
    for name in options.middleware:
        add_middleware(app, name)
    if options.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.allowed_origins,
            allow_methods=options.allowed_methods,
            allow_headers=options.allowed_headers,
            allow_credentials=options.allow_credentials,
            expose_headers=["X-Request-Id"],
        )
    return app
