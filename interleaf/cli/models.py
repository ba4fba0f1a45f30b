"""`interleaf models`: the built-in models in the cache."""

from __future__ import annotations

import argparse

MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="show what is cached, and what could be (the default)")
    for action, summary in (("pull", "fetch a model into the cache"), ("remove", "delete a model from the cache")):
        actions.add_parser(action, help=summary).add_argument("name", metavar="NAME")


def run(args: argparse.Namespace) -> int:
    from interleaf.loader import builtin

    if args.action == "pull":
        print(builtin.pull(args.name))
    elif args.action == "remove":
        print(f"{args.name} was removed." if builtin.remove(args.name) else f"{args.name} was not in the cache.")
    else:
        _list()
    return 0


def _list() -> None:
    from interleaf.loader import builtin

    cached = {model.name: model for model in builtin.list_cached()}
    width = max(map(len, builtin.MODELS))
    for name, model in builtin.MODELS.items():
        place = str(cached[name].path) if name in cached else f"not cached: interleaf models pull {name}"
        print(f"{name:{width}}  {model.size / MIB:6.0f} MiB  {model.license}  {place}")
