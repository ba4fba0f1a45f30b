"""Flags of `interleaf serve` that shape HTTP and the answers of every request, under vLLM's names."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from interleaf.cli.flags import json_object
from interleaf.errors import ConfigError
from interleaf.observe import get_logger

logger = get_logger(__name__)

ANSWER_DEFAULTS = (
    "response_role",
    "return_tokens_as_token_ids",
    "default_chat_template_kwargs",
    "allow_credentials",
)
"""Flags of this file that are fields of ServerOptions."""

ALWAYS_SO = {
    "enable_request_id_headers": "every answer has an X-Request-Id",
    "enable_prompt_tokens_details": "usage always tells the cached tokens",
    "enable_server_load_tracking": "/load always tells the load",
    "exclude_tools_when_tool_choice_none": "the prompt has no tools then",
    "enable_offline_docs": "/docs needs nothing from another host",
}
"""Switches of vLLM whose meaning is always given here -> how."""


def add_http_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers and HTTP", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    add("--response-role", metavar="ROLE", help="of the messages in answers (default: assistant)")
    add("--return-tokens-as-token-ids", action="store_true", help='tell tokens of logprobs as "token_id:123"')
    add("--default-chat-template-kwargs", type=json_object, metavar="JSON", help="that requests need not bring")
    add("--enable-force-include-usage", action="store_true", help="end every stream with its usage")
    add("--chat-template-content-format", choices=["auto"], help="the template decides")
    add("--middleware", action="append", metavar="MODULE.NAME", help="ASGI middleware to import: a class or a function")
    add("--allow-credentials", action="store_true", help="of the web pages of --allowed-origins")
    for name in ("methods", "headers"):
        add(f"--allowed-{name}", type=_texts, metavar="JSON", help=f"of their requests (default: all {name})")
    add("--disable-fastapi-docs", action="store_true", help="serve neither /docs nor /openapi.json")
    add("--ssl-ca-certs", metavar="FILE", help="certificates that those of clients must go back to")
    add("--ssl-cert-reqs", type=int, choices=[0, 1, 2], help="clients bring none, may bring one, must bring one")
    add(
        "--uvicorn-log-level",
        choices=["critical", "error", "warning", "info", "debug", "trace"],
        help=argparse.SUPPRESS,
    )
    add("--disable-uvicorn-access-log", action="store_true", help=argparse.SUPPRESS)
    for name in ALWAYS_SO:
        flag = "--" + name.replace("_", "-")
        add(flag, action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)


def http_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ServerOptions.

    Raises:
        ConfigError: a flag asks for something that cannot be had.
    """
    for name, reason in ALWAYS_SO.items():
        if given.get(name) is False:
            raise ConfigError(f"{name} cannot be turned off: {reason}.")
    fields = {name: given[name] for name in ANSWER_DEFAULTS if name in given}
    fields |= {
        name: tuple(given[name]) for name in ("middleware", "allowed_methods", "allowed_headers") if name in given
    }
    fields["force_include_usage"] = "enable_force_include_usage" in given
    fields["serve_docs"] = "disable_fastapi_docs" not in given
    return fields


def _texts(text: str) -> list[str]:
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, list) or not all(isinstance(one, str) for one in parsed):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON list such as ["GET", "POST"]')
    return parsed
