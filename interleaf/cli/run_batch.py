"""`interleaf run-batch`: answers to a file of requests in OpenAI's batch format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from interleaf.cli.flags import ANSWER_OPTIONS, add_answer_flags, add_engine_flags, engine_options
from interleaf.config import BUILTIN_MODEL, engine_args
from interleaf.errors import ConfigError

if TYPE_CHECKING:
    from interleaf.server.batch import Result
    from interleaf.server.launch import StartableEngine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-i", "--input-file", required=True, metavar="FILE", help="requests, one JSON object a line")
    add(
        "-o",
        "--output-file",
        required=True,
        metavar="FILE",
        help="answers, as they come; requests that it answers already are not done again",
    )
    add("--served-model-name", nargs="+", metavar="NAME", help="what requests call the model (default: as in --model)")
    add_answer_flags(parser)
    add_engine_flags(parser)
    add("--seed", type=int, default=argparse.SUPPRESS, help="of the noise of requests that bring no seed (default: 0)")


def run(args: argparse.Namespace) -> int:
    import asyncio

    import uvloop

    try:
        lines = open(args.input_file, "rb")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"The input file {args.input_file!r} cannot be read ({error.strerror}).") from None
    with lines, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(args, lines))


async def _run(args: argparse.Namespace, lines: BinaryIO) -> int:
    from interleaf.server.batch import ResultFile

    try:
        results = ResultFile(Path(args.output_file))
    except OSError as error:
        raise ConfigError(f"The output file {args.output_file!r} cannot be written ({error.strerror}).") from None
    num_before = len(results.done)
    engine = make_engine(args)
    try:
        await engine.start()
        names = tuple(args.served_model_name or [getattr(args, "model", BUILTIN_MODEL)])
        await _answer(engine, names, lines, results, args)
    finally:
        results.close()
        await engine.shutdown(0)
    print(
        f"{results.num_ok} requests were answered and {results.num_failed} refused"
        f"{f'; {num_before} of them earlier' if num_before else ''}.",
        file=sys.stderr,
    )
    return 0


def make_engine(args: argparse.Namespace) -> StartableEngine:
    """The engine that the flags ask for, not started yet."""
    from interleaf.frontend.async_engine import AsyncEngine

    return AsyncEngine(engine_args(engine_options(args)))


async def _answer(
    engine: StartableEngine, names: tuple[str, ...], lines: BinaryIO, results: Any, args: argparse.Namespace
) -> None:
    from tqdm import tqdm

    from interleaf.server.batch import read_lines, run_batch
    from interleaf.server.chat_prompt import template_text
    from interleaf.server.options import ServerOptions
    from interleaf.server.state import ServerState

    template = template_text(getattr(args, "chat_template", None), engine.tokenizer.chat_templates)
    answers = {name: getattr(args, name) for name in ANSWER_OPTIONS if hasattr(args, name)}
    state = ServerState(engine, ServerOptions(names, chat_template=template, **answers))
    total = sum(1 for _ in read_lines(lines))
    lines.seek(0)
    with tqdm(total=total, initial=len(results.done), unit="request", disable=not sys.stderr.isatty()) as progress:

        def add(result: Result) -> None:
            results.add(result)
            progress.update()

        try:
            await run_batch(state, read_lines(lines), results.done, add)
        finally:
            await state.close()
