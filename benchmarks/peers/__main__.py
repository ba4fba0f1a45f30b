"""Measure interleaf against its peers.

    python -m benchmarks.peers install              every peer, each in a virtual environment of its own
    python -m benchmarks.peers convert              every model, for every peer
    python -m benchmarks.peers run --output r.json  take turns, and print ratios of medians
    python -m benchmarks.peers chart r.json chart.png

Run from the root of the repository; needs the extras `dev` and `peers`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from benchmarks.peers import engines, models, workloads

DEFAULT_HOME = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "interleaf-peers"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME, help=f"where all files go (default: {DEFAULT_HOME})")
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="install peers")
    install.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(engines.PEERS)} (default: all)")
    convert = commands.add_parser("convert", help="convert models for all peers")
    convert.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(models.MODELS)} (default: all)")
    _add_run(commands.add_parser("run", help="measure"))
    table = commands.add_parser("table", help="print the tables of a result again")
    table.add_argument("result", type=Path)
    chart = commands.add_parser("chart", help="draw a result as a PNG")
    chart.add_argument("result", type=Path)
    chart.add_argument("image", type=Path)
    args = parser.parse_args()
    # Ended from outside, it must still end the engines, which may be stopped.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    {"install": _install, "convert": _convert, "run": _run, "table": _table, "chart": _chart}[args.command](args)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=models.MODELS, default="smollm2-135m")
    parser.add_argument("--precisions", nargs="+", choices=engines.PRECISIONS, default=list(engines.PRECISIONS))
    parser.add_argument("--engines", nargs="+", choices=["interleaf", *engines.PEERS], metavar="ENGINE")
    parser.add_argument("--workloads", nargs="+", choices=workloads.WORKLOADS, default=list(workloads.WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True, help="JSON file; results are added to it")


def _install(args: argparse.Namespace) -> None:
    from benchmarks.peers.install import install

    for peer in args.peers or engines.PEERS:
        install(args.home, peer)


def _convert(args: argparse.Namespace) -> None:
    from benchmarks.peers.convert import convert

    for model in args.models or models.MODELS:
        for kind in engines.weights_needed():
            print(convert(args.home, model, kind), flush=True)


def _run(args: argparse.Namespace) -> None:
    from benchmarks.peers.compare import compare

    compare(
        args.home,
        args.model,
        args.precisions,
        args.engines or ["interleaf", *engines.PEERS],
        args.workloads,
        args.rounds,
        args.output,
    )


def _table(args: argparse.Namespace) -> None:
    from benchmarks.peers.compare import print_tables, read_results

    print_tables(read_results(args.result))


def _chart(args: argparse.Namespace) -> None:
    from benchmarks.peers.chart import draw

    draw(args.result, args.image)


if __name__ == "__main__":
    main()
