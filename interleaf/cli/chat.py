"""`interleaf chat`: a conversation. Each turn's prompt begins with the last one, which the KV cache still holds."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from interleaf.cli.flags import add_engine_flags, add_sampling_flags, engine_options, sampling_params
from interleaf.errors import EngineError, PromptTooLongError, RequestError
from interleaf.params import SamplingParams

if TYPE_CHECKING:
    from interleaf.llm import LLM
    from interleaf.outputs import RequestOutput

DEFAULT_MAX_TOKENS = 512
HELP = "/reset begins anew, /stats tells of the last answer, /exit or Ctrl-D ends; Ctrl-C stops an answer."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = HELP + " Lines from a pipe are taken as one message each."
    parser.add_argument("--system", metavar="TEXT", help="a system message at the start")
    add_sampling_flags(parser, DEFAULT_MAX_TOKENS)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    sampling_params(args, SamplingParams(), DEFAULT_MAX_TOKENS)
    from interleaf.llm import LLM

    with LLM(**engine_options(args)) as llm:
        params = sampling_params(args, llm.get_default_sampling_params(), DEFAULT_MAX_TOKENS)
        if not (hasattr(args, "chat_template") or llm.get_tokenizer().chat_template):
            raise RequestError("This model has no chat template: give one with --chat-template, or use generate.")
        conversation = Conversation(llm, params, args.system)
        if sys.stdin.isatty():
            _talk(conversation)
        else:
            _answer_lines(conversation)
    return 0


class Conversation:
    """The messages so far, and how to answer them.

    Fields:
        statistics: a line about the last answer.
    """

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self.statistics = "Nothing was answered yet."
        self._llm = llm
        self._params = params
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._messages: list[dict[str, str]] = list(self._system)

    def reset(self) -> None:
        """Forget all but the system message."""
        self._messages = list(self._system)

    def answer(self, text: str) -> Iterator[str]:
        """Yield the answer to a message in pieces. What was yielded stays in the conversation, even if it is cut off.

        Raises:
            PromptTooLongError: the conversation does not fit the context; the message is taken back.
        """
        messages = [*self._messages, {"role": "user", "content": text}]
        start = time.monotonic()
        deltas = self._llm.stream(self._llm.render_chat(messages), self._params)
        answer, num_tokens = "", 0
        try:
            for delta in deltas:
                [completion] = delta.outputs
                if completion.finish_reason == "error":
                    raise EngineError("A fault in the engine ended this answer: the log above tells which.")
                answer += completion.text
                num_tokens += len(completion.token_ids)
                self.statistics = _statistics(delta, num_tokens, time.monotonic() - start)
                yield completion.text
        finally:
            deltas.close()
            self._messages = [*messages, {"role": "assistant", "content": answer}]


def _statistics(delta: RequestOutput, num_tokens: int, seconds: float) -> str:
    first = delta.metrics.first_token_time - delta.metrics.arrival_time
    speed = (num_tokens - 1) / (seconds - first) if num_tokens > 1 and seconds > first else 0.0
    return (
        f"prompt: {len(delta.prompt_token_ids)} tokens, {delta.num_cached_tokens} of them cached; first token after "
        f"{first:.2f} s; answer: {num_tokens} tokens, {speed:.0f} a second"
    )


def _talk(conversation: Conversation) -> None:
    """Read messages from a terminal until its end."""
    import readline  # noqa: F401 (input() then has line editing and history)

    print(HELP)
    while True:
        try:
            text = input("> ").strip()
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        if text == "/exit":
            return
        _obey_or_answer(conversation, text)


def _obey_or_answer(conversation: Conversation, text: str) -> None:
    if not text:
        return
    if text == "/reset":
        conversation.reset()
    elif text == "/stats":
        print(conversation.statistics)
    elif text.startswith("/"):
        print(HELP)
    else:
        try:
            _print_answer(conversation, text)
        except KeyboardInterrupt:
            print()
        except PromptTooLongError:
            print("The conversation no longer fits the context: /reset begins a new one.")
        except RequestError as error:
            print(error)


def _answer_lines(conversation: Conversation) -> None:
    """One message a line, from a pipe or file; the first error ends it."""
    for line in sys.stdin:
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
        elif text:
            _print_answer(conversation, text)


def _print_answer(conversation: Conversation, text: str) -> None:
    for piece in conversation.answer(text):
        print(piece, end="", flush=True)
    print()
