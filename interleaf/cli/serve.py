"""`interleaf serve`: an HTTP server with OpenAI's API."""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interleaf.cli.flags import ANSWER_OPTIONS, add_answer_flags, add_engine_flags, engine_options, size_in_bytes
from interleaf.cli.http_flags import add_http_flags, http_options
from interleaf.config import BUILTIN_MODEL, engine_args
from interleaf.errors import ConfigError
from interleaf.observe import LOG_LEVELS, LogSettings, configure_logging, share_log

if TYPE_CHECKING:
    from interleaf.server.options import Listen, ServerOptions

KEY_VARIABLE = "INTERLEAF_API_KEY"
DEFAULT_SHUTDOWN_TIMEOUT = 30.0
MAX_API_SERVERS = 256
SAME_OPTIONS = (
    "chat_template",
    "root_path",
    "max_body_size",
    "max_file_size",
    "request_timeout",
    "trust_request_chat_template",
    *ANSWER_OPTIONS,
)
"""Flags that are fields of ServerOptions."""
FRONT_END_OPTIONS = ("max_num_queued_reqs", "max_num_queued_tokens", "otlp_traces_endpoint")
"""Flags that AsyncEngine has under the same names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model_argument", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help="the same as --model"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with flags, such as `port: 9000`; the command line goes before it"
    )
    group = parser.add_argument_group("server", argument_default=argparse.SUPPRESS)
    _add_address_flags(group)
    _add_access_flags(group)
    _add_operation_flags(group)
    add_http_flags(parser)
    add_answer_flags(parser)
    add_engine_flags(parser)
    parser.add_argument(
        "--seed", type=int, default=argparse.SUPPRESS, help="of the noise of requests that bring no seed (default: 0)"
    )


def _add_address_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--host", help="address to listen at (default: 127.0.0.1, which only this machine reaches)")
    add("--port", type=int, help="0 takes a free one (default: 8000)")
    add("--uds", metavar="PATH", help="listen at a Unix socket in place of a port")
    add("--root-path", metavar="PATH", help="where a proxy in front has put the server")
    add("--ssl-keyfile", metavar="FILE")
    add("--ssl-certfile", metavar="FILE", help="serve HTTPS")
    add("--served-model-name", nargs="+", action="extend", metavar="NAME", help="what requests call the model")


def _add_access_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--api-key",
        nargs="+",
        action="extend",
        metavar="KEY",
        help=f"keys that open every path but the health probes (also taken from {KEY_VARIABLE})",
    )
    add(
        "--allowed-origins",
        nargs="+",
        action="extend",
        metavar="ORIGIN",
        help="web origins whose pages may call the server; '*' is every one (default: none)",
    )
    add("--trust-request-chat-template", action="store_true", help="run chat templates that requests bring")
    add("--max-body-size", type=size_in_bytes, metavar="SIZE", help="of a request (default: 32M)")
    add("--max-file-size", type=size_in_bytes, metavar="SIZE", help="of an uploaded file (default: 256M)")


def _add_operation_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--api-server-count",
        type=_count,
        metavar="N",
        help="processes for HTTP, tokens and text, all on one engine (default: 1)",
    )
    add("--request-timeout", type=_seconds, metavar="SECONDS", help="that a request may take (default: no limit)")
    add(
        "--shutdown-timeout",
        type=_seconds,
        metavar="SECONDS",
        help=f"for running requests to end after SIGTERM (default: {DEFAULT_SHUTDOWN_TIMEOUT:g})",
    )
    add("--max-num-queued-reqs", type=int, help="that may wait for the engine; more are refused (default: no limit)")
    add("--max-num-queued-tokens", type=int, help="of their prompts that may wait (default: no limit)")
    add("--response-store", metavar="FILE", help="SQLite file that keeps /v1/responses (default: memory)")
    add("--files-dir", metavar="DIR", help="keeps uploaded files and batches (default: gone with the server)")
    add("--log-format", choices=["text", "json"])
    add("--log-level", choices=[level.lower() for level in LOG_LEVELS], type=str.lower, help="(default: info)")
    add("--otlp-traces-endpoint", metavar="URL", help="OpenTelemetry collector that is sent a span for each request")
    add("--disable-access-log", action="store_true", help="write no line for each request")


def run(args: argparse.Namespace) -> int:
    given = given_flags(args)
    log_level = _log_level(given)
    configure_logging(LogSettings(log_level, given.get("log_format") == "json"), default_level="INFO")
    for name in ("uvicorn", "opentelemetry"):
        share_log(name)
    _serve(given)
    return 0


def _log_level(given: dict[str, Any]) -> str | None:
    """Of the log; `--uvicorn-log-level` is what vLLM calls it."""
    level = given.get("log_level") or given.get("uvicorn_log_level")
    return "DEBUG" if level == "trace" else level and level.upper()


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of the command line, and those of the configuration file that it does not set.

    Raises:
        ConfigError: the file cannot be read, or has a flag that does not exist or a value that cannot work.
    """
    given = {**(config_file_flags(args.config) if args.config else {}), **vars(args)}
    if "model_argument" in given:
        if "model" in vars(args) and args.model != given["model_argument"]:
            raise ConfigError("The model is given twice: leave out --model or the argument.")
        given["model"] = given.pop("model_argument")
    return given


def config_file_flags(path: str) -> dict[str, Any]:
    """The flags that a YAML file sets: a mapping of their names to values, lists or true."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"The configuration file {path!r} cannot be read ({cause}).") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigError(f"The configuration file {path!r} must be a mapping of flags to values.")
    parser = _ConfigParser(path)
    add_arguments(parser)
    return {name: value for name, value in vars(parser.parse_args(_as_arguments(content))).items() if name != "config"}


class _ConfigParser(argparse.ArgumentParser):
    """Parses what came from a file, and says so where it is wrong."""

    def __init__(self, path: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False, prog="interleaf serve")
        self._path = path

    def error(self, message: str) -> Any:
        raise ConfigError(f"The configuration file {self._path!r} has a mistake: {message}.")


def _as_arguments(content: dict[str, Any]) -> list[str]:
    arguments: list[str] = []
    for name, value in content.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            arguments.append(flag)
        elif value is False:
            # A switch that is off is the default; the others have a form for it.
            arguments += ["--no-" + flag[2:]] if name.replace("_", "-").startswith("enable-") else []
        elif isinstance(value, list):
            arguments += [flag, *map(str, value)]
        elif value is not None:
            arguments += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return arguments


def _serve(given: dict[str, Any]) -> None:
    import asyncio

    import uvloop

    from interleaf.server.launch import bind
    from interleaf.server.options import Listen

    listen = Listen(**{name: given[name] for name in Listen.__dataclass_fields__ if name in given})
    if bool(listen.ssl_keyfile) != bool(listen.ssl_certfile):
        raise ConfigError("HTTPS needs both --ssl-keyfile and --ssl-certfile.")
    for path in filter(None, (listen.ssl_keyfile, listen.ssl_certfile, listen.ssl_ca_certs)):
        if not Path(path).is_file():
            raise ConfigError(f"There is no file {path!r} for HTTPS.")
    with bind(listen) as bound, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_start(given, listen, bound))


async def _start(given: dict[str, Any], listen: Listen, bound: socket.socket) -> None:
    args = engine_args(engine_options(argparse.Namespace(**given)))
    options = server_options(given)
    front_end = {name: given[name] for name in FRONT_END_OPTIONS if name in given}
    timeout = given.get("shutdown_timeout", DEFAULT_SHUTDOWN_TIMEOUT)
    count = given.get("api_server_count", 1)
    if count > 1:
        from interleaf.server.front_end import FrontEndOptions
        from interleaf.server.front_ends import serve_many

        await serve_many(count, args, bound, listen, options, FrontEndOptions(timeout, **front_end))
        return
    from interleaf.frontend.async_engine import AsyncEngine
    from interleaf.server.launch import serve

    engine = AsyncEngine(args, served_model_name=options.served_model_names[0], **front_end)
    await serve(engine, bound, listen, options, timeout)


def server_options(given: dict[str, Any]) -> ServerOptions:
    """`interleaf.server.options.ServerOptions` from flags."""
    from interleaf.server.options import ServerOptions

    fields: dict[str, Any] = {name: given[name] for name in SAME_OPTIONS if name in given}
    fields |= {name: Path(given[name]) for name in ("response_store", "files_dir") if name in given}
    fields["served_model_names"] = tuple(given.get("served_model_name") or [given.get("model", BUILTIN_MODEL)])
    fields["api_keys"] = (*given.get("api_key", ()), *filter(None, [os.environ.get(KEY_VARIABLE)]))
    fields["allowed_origins"] = _origins(given.get("allowed_origins", ()))
    fields["log_requests"] = given.keys().isdisjoint({"disable_access_log", "disable_uvicorn_access_log"})
    fields |= http_options(given)
    return ServerOptions(**fields)


def _origins(given: Sequence[str]) -> tuple[str, ...]:
    """Origins, which may come as one JSON list as well."""
    if len(given) == 1 and given[0].startswith("["):
        try:
            return tuple(map(str, json.loads(given[0])))
        except ValueError:
            raise ConfigError(f"--allowed-origins {given[0]!r} is no JSON list.") from None
    return tuple(given)


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MAX_API_SERVERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1 and {MAX_API_SERVERS}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds")
    return value
