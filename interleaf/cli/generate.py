"""`interleaf generate`: answers to prompts, on the terminal as they are written, or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from interleaf.cli.flags import add_engine_flags, add_sampling_flags, engine_options, sampling_params
from interleaf.errors import EngineError, RequestError
from interleaf.params import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from interleaf.frontend.processor import Prompt
    from interleaf.llm import LLM
    from interleaf.outputs import Logprob, RequestOutput

DEFAULT_MAX_TOKENS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help='"-", or none at all, reads one prompt from standard input'
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message before each prompt")
    parser.add_argument("--raw", action="store_true", help="write on from the bare prompt: no chat template")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each prompt")
    parser.set_defaults(usage_error=parser.error)
    add_sampling_flags(parser, DEFAULT_MAX_TOKENS)
    more = parser.add_argument_group("more sampling", argument_default=argparse.SUPPRESS)
    more.add_argument("--n", type=int, help="answers for each prompt")
    more.add_argument("--logprobs", type=int, metavar="K", help="of the K likeliest tokens; needs --json")
    more.add_argument("--prompt-logprobs", type=int, metavar="K", help="the same of the prompt; needs --json")
    more.add_argument("--no-detokenize", dest="detokenize", action="store_false", help="no text; needs --json")
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    _check_usage(args)
    # Once without the model: a bad value is found before anything is loaded.
    sampling_params(args, SamplingParams(), DEFAULT_MAX_TOKENS)
    texts = _texts(args.prompts)
    from interleaf.llm import LLM

    with LLM(**engine_options(args)) as llm:
        params = sampling_params(args, llm.get_default_sampling_params(), DEFAULT_MAX_TOKENS)
        prompts = [_prompt(llm, text, args) for text in texts]
        if args.json:
            show_bar = len(prompts) > 1 and sys.stderr.isatty()
            for output in llm.generate(prompts, params, use_tqdm=show_bar):
                print(json.dumps(_as_json(output), ensure_ascii=False))
        else:
            _stream(llm, texts, prompts, params)
    return 0


def _check_usage(args: argparse.Namespace) -> None:
    if args.raw and (args.system is not None or hasattr(args, "chat_template")):
        args.usage_error("--raw uses no chat template: leave out --system and --chat-template")
    for name in ("logprobs", "prompt_logprobs", "detokenize"):
        if hasattr(args, name) and not args.json:
            args.usage_error(f"--{'no-' * (name == 'detokenize')}{name.replace('_', '-')} needs --json")


def _texts(prompts: list[str]) -> list[str]:
    texts = [_standard_input() if prompt == "-" else prompt for prompt in prompts or ["-"]]
    if not all(texts):
        raise RequestError("The prompt is empty: give it at least one character.", "prompt")
    return texts


def _standard_input() -> str:
    if sys.stdin.isatty():
        print("Type the prompt, and end it with Ctrl-D on a new line.", file=sys.stderr)
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise RequestError("Standard input is not valid UTF-8 text.", "prompt") from None


def _prompt(llm: LLM, text: str, args: argparse.Namespace) -> Prompt:
    """The text in the model's chat template where it has one."""
    if args.raw or not (hasattr(args, "chat_template") or llm.get_tokenizer().chat_template):
        if args.system is not None:
            raise RequestError("This model has no chat template, so it takes no system message.", "system")
        return text
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    return llm.render_chat([*system, {"role": "user", "content": text}])


def _stream(llm: LLM, texts: list[str], prompts: list[Prompt], params: SamplingParams) -> None:
    """Run all prompts at once, and print their answers one after the other as they are written."""
    request_ids = llm.enqueue(prompts, params, output_kind=RequestOutputKind.DELTA)
    writer = _Writer(texts, params.n)
    try:
        while not writer.done:
            llm.step()
            for position, request_id in enumerate(request_ids):
                for output in llm.collect(request_id):
                    writer.add(position, output)
    except BaseException:
        llm.abort(request_ids)
        raise


class _Writer:
    """Prints several growing answers in order: the first live, the next ones when it is done."""

    def __init__(self, titles: list[str], n: int) -> None:
        count = len(titles) * n
        self._n = n
        self._titles = [title for title in titles for _ in range(n)] if count > 1 else [None]
        self._waiting = [""] * count
        self._ended = [False] * count
        self._current = 0
        self._begun = False

    @property
    def done(self) -> bool:
        return self._current == len(self._ended)

    def add(self, position: int, output: RequestOutput) -> None:
        """Take what is new of the answers to prompt number `position`."""
        for completion in output.outputs:
            if completion.finish_reason == "error":
                raise EngineError("A fault in the engine ended this answer: the log above tells which.")
            slot = position * self._n + completion.index
            self._waiting[slot] += completion.text
            self._ended[slot] = completion.finished
        while not self.done and self._write_current():
            self._current += 1
            self._begun = False

    def _write_current(self) -> bool:
        """Print what the current answer has; True once it is complete."""
        title = self._titles[self._current]
        if title is not None and not self._begun:
            print(f"{chr(10) * (self._current > 0)}=== {title}")
        self._begun = True
        text, self._waiting[self._current] = self._waiting[self._current], ""
        print(text, end="\n" if self._ended[self._current] else "", flush=True)
        return self._ended[self._current]


def _as_json(output: RequestOutput) -> dict[str, Any]:
    """The first answer's fields at the top; all answers in "outputs" where there are several."""
    answers = [
        {
            "text": one.text,
            "token_ids": one.token_ids,
            "finish_reason": one.finish_reason,
            "stop_reason": one.stop_reason,
            **({} if one.logprobs is None else {"logprobs": [_logprobs(entry) for entry in one.logprobs]}),
        }
        for one in output.outputs
    ]
    completion_tokens = sum(len(one.token_ids) for one in output.outputs)
    result: dict[str, Any] = {"prompt": output.prompt, **answers[0]}
    if len(answers) > 1:
        result["outputs"] = answers
    if output.prompt_logprobs is not None:
        result["prompt_logprobs"] = [None if entry is None else _logprobs(entry) for entry in output.prompt_logprobs]
    result["usage"] = {
        "prompt_tokens": len(output.prompt_token_ids),
        "completion_tokens": completion_tokens,
        "total_tokens": len(output.prompt_token_ids) + completion_tokens,
        "cached_tokens": output.num_cached_tokens,
    }
    return result


def _logprobs(entry: dict[int, Logprob]) -> list[dict[str, Any]]:
    return [
        {"token_id": token, "token": one.decoded_token, "logprob": one.logprob, "rank": one.rank}
        for token, one in entry.items()
    ]
