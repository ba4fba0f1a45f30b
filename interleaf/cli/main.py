"""The command `interleaf`: chooses the subcommand, and turns errors into one line and an exit status.

Only the chosen subcommand's module is imported, so that `--help` is there in a blink.

Exit status: 0; 1 after an error; 2 for wrong usage; 130 after Ctrl-C; 141 when the reader of a
pipe went away.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from interleaf import __version__

COMMANDS = {
    "generate": "answer prompts, or write on from them",
    "chat": "talk with a model",
    "serve": "serve a model over HTTP with OpenAI's API",
    "run-batch": "answer a file of requests",
    "models": "list, pull or remove the built-in models",
    "bench": "measure latency or throughput",
}

DEBUG_VARIABLE = "INTERLEAF_DEBUG"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser(arguments).parse_args(arguments)
    try:
        status = _run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if getattr(args, "debug", False) or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
            traceback.print_exc()
        print(f"interleaf: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return status


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    """The parser, in which only the subcommand that `arguments` names has its flags."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser = argparse.ArgumentParser(
        prog="interleaf", description="LLM inference on a paged KV cache.", parents=[common], allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"interleaf {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((argument for argument in arguments if argument in COMMANDS), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=summary, description=summary.capitalize() + ".", parents=[common], allow_abbrev=False
        )
        if name == chosen:
            _module(name).add_arguments(subparser)
    return parser


def _run(args: argparse.Namespace) -> int:
    from interleaf.observe import configure_logging

    configure_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character shows "?" in its place.
        sys.stdout.reconfigure(errors="replace")
    return int(_module(args.command).run(args))


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"interleaf.cli.{command.replace('-', '_')}")


def _one_line(error: Exception) -> str:
    """An error's message; those that are not ours are named, since they are faults to report."""
    from interleaf.errors import InterleafError

    message = " ".join(str(error).split())
    if isinstance(error, InterleafError):
        return message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {message} (--debug shows where)"
