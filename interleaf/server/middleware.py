"""What happens to every request before and behind its endpoint: ids, keys, limits, the log, last errors."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib
import inspect
import re
import time
import uuid
from collections.abc import Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interleaf.errors import ConfigError
from interleaf.observe import get_logger
from interleaf.server.errors import ApiError, error_response
from interleaf.server.state import ServerState
from interleaf.server.streaming import DIRECT_SEND, ClientGoneError

logger = get_logger(__name__)

PROBES = frozenset({"/health", "/ready", "/ping"})
"""Paths that load balancers ask: they need no key and are answered while the server drains."""
PAGES = frozenset({"/", "/docs"})
FILES_PATH = "/v1/files"
MULTIPART_OVERHEAD = 1 << 16
"""Bytes that a form may have around the file in it."""
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Edge:
    """The outermost layer of the app.

    Gives each request an id (the client's `X-Request-Id`, or a new one), asks for a key, refuses
    work while the server drains and bodies that are too long, counts what is in flight, and turns
    whatever exception is left into a response.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state
        self._keys = KeyRing(state.options.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        try:
            self._admit(exchange)
            receive = _limited(receive, exchange.headers, self._max_bytes(exchange.path))
            if exchange.method == "POST":
                with self._state.work():
                    await self._app(scope, receive, exchange.send)
            else:
                await self._app(scope, receive, exchange.send)
        except ClientGoneError:
            pass
        except Exception as error:
            if exchange.status is None:
                await error_response(error, exchange.path)(scope, receive, exchange.send)
            else:
                logger.error("Request %s broke off", exchange.request_id, exc_info=error)
        finally:
            if self._state.options.log_requests and exchange.path not in PROBES:
                exchange.log()

    def _admit(self, exchange: _Exchange) -> None:
        if exchange.path in PROBES:
            return
        if not self._keys.opens(exchange.headers):
            raise ApiError(
                401,
                "A valid API key is needed, sent as Authorization: Bearer KEY.",
                code="invalid_api_key",
                # A browser asks its user for the key, which is sent as a password from then on.
                headers={"WWW-Authenticate": f'{"Basic" if exchange.path in PAGES else "Bearer"} realm="interleaf"'},
            )
        if self._state.draining and exchange.method == "POST":
            raise ApiError(503, "The server is shutting down.", code="shutting_down", headers={"Retry-After": "5"})

    def _max_bytes(self, path: str) -> int:
        options = self._state.options
        return options.max_file_size + MULTIPART_OVERHEAD if path == FILES_PATH else options.max_body_size


def add_middleware(app: Starlette, name: str) -> None:
    """Put a layer of the operator's own around the app.

    Args:
        name: "module.name" of a class that wraps an ASGI app, or of an async function (request, call_next).

    Raises:
        ConfigError: it cannot be imported, or is neither.
    """
    module, _, attribute = name.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ConfigError(
            f"The middleware {name!r} cannot be imported ({type(error).__name__}: {error}): name it as module.name."
        ) from None
    is_class, is_function = inspect.isclass(found), inspect.iscoroutinefunction(found)
    if not is_class and not is_function:
        raise ConfigError(f"The middleware {name!r} is neither a class nor an async function.")
    if is_class:
        app.add_middleware(found)
    else:
        app.add_middleware(BaseHTTPMiddleware, dispatch=found)


class KeyRing:
    """API keys, compared in a time that does not depend on them."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def opens(self, headers: Headers) -> bool:
        """Whether the request brings one of the keys (as OpenAI's clients, Anthropic's or browsers send it)."""
        if not self._digests:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = {"bearer": token.strip(), "basic": _password(token)}.get(scheme.lower(), headers.get("x-api-key", ""))
        digest = _digest(given)
        # Every key is compared, so that the time tells neither which one matched nor how far.
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0


class _Exchange:
    """A request and what has been answered so far."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.headers = Headers(scope=scope)
        self.path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        self.method: str = scope["method"]
        given = self.headers.get("x-request-id", "")
        self.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.status: int | None = None
        self._send = send
        self._start = time.perf_counter()
        scope.setdefault("state", {})["request_id"] = self.request_id
        scope[DIRECT_SEND] = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        await self._send(message)

    def log(self) -> None:
        """One line for the request; the path is quoted, since it may hold anything."""
        logger.info(
            "%s %.200r %s %.1f ms id=%s",
            self.method,
            self.path,
            self.status or "client gone",
            (time.perf_counter() - self._start) * 1000,
            self.request_id,
        )


def _password(credentials: str) -> str:
    """The password of `Basic` authorization, under any name."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _limited(receive: Receive, headers: Headers, max_bytes: int) -> Receive:
    """`receive` that refuses a body as soon as it is known to be too long."""
    too_large = ApiError(413, f"The body is longer than {max_bytes:,} bytes.", code="request_too_large")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise too_large
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise too_large
        return message

    return limited
