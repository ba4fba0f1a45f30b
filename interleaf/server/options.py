"""What the server itself can be told; the engine's options are `interleaf.config.EngineArgs`."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Settings of the HTTP side.

    Fields:
        served_model_names: names that requests may give the model; the first is the one shown.
        api_keys: any of these opens the server; none leaves it open.
        allowed_origins: web origins whose pages may call it; "*" is every one.
        root_path: where a proxy in front has put the server.
        max_body_size: longest body of a request, but for uploads of files.
        max_file_size: longest uploaded file.
        response_store: SQLite file of stored responses; None keeps the last ones in memory.
        max_stored_responses: of which older ones are forgotten; None keeps all that a file holds.
        files_dir: directory of uploaded files and batches; None is one that goes with the server.
        chat_template: takes the place of the model's own: Jinja text, or a name of one of the model's.
        trust_request_chat_template: let requests bring their own chat template.
        request_timeout: seconds that any request may take; None is no limit.
        enable_auto_tool_choice: look for calls in answers to requests with tools.
        tool_call_parser: of `interleaf.server.tool_parsers`; "auto" goes by the chat template, "none" looks for none.
        reasoning_parser: of `interleaf.server.reasoning_parsers`; the same.
        tool_parser_plugin, reasoning_parser_plugin: Python files that register further ones.
        log_requests: write one line to the log for each request.
        response_role: of the messages in answers.
        return_tokens_as_token_ids: for requests that don't say.
        default_chat_template_kwargs: variables of the template that requests need not bring.
        force_include_usage: every stream ends with its usage.
        middleware: names of ASGI middleware to import, "module.name" of a class or of a function (request, next).
        allow_credentials, allowed_methods, allowed_headers: of requests from `allowed_origins`.
        serve_docs: there are /docs and /openapi.json.
    """

    served_model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    root_path: str = ""
    max_body_size: int = 32 * MIB
    max_file_size: int = 256 * MIB
    response_store: Path | None = None
    max_stored_responses: int | None = None
    files_dir: Path | None = None
    chat_template: str | None = None
    trust_request_chat_template: bool = False
    request_timeout: float | None = None
    enable_auto_tool_choice: bool = True
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    tool_parser_plugin: str | None = None
    reasoning_parser_plugin: str | None = None
    log_requests: bool = True
    response_role: str = "assistant"
    return_tokens_as_token_ids: bool = False
    default_chat_template_kwargs: dict[str, Any] | None = None
    force_include_usage: bool = False
    middleware: tuple[str, ...] = ()
    allow_credentials: bool = False
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    serve_docs: bool = True


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: at a host and port, or at a Unix socket."""

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: int = 0

    def address(self, bound: socket.socket) -> str:
        """What a user types to get there."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.ssl_certfile else ''}://{host}:{bound.getsockname()[1]}"
