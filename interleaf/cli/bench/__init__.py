"""`interleaf bench`: how fast a model runs here."""

from __future__ import annotations

import argparse
import importlib

KINDS = {
    "latency": "time to the first token, and from token to token, of one batch",
    "throughput": "tokens a second of many requests",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, summary in KINDS.items():
        subparser = kinds.add_parser(name, help=summary, description=summary.capitalize() + ".", allow_abbrev=False)
        importlib.import_module(f"interleaf.cli.bench.{name}").add_arguments(subparser)


def run(args: argparse.Namespace) -> int:
    return int(importlib.import_module(f"interleaf.cli.bench.{args.kind}").run(args))
