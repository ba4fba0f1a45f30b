"""Flags that several subcommands share: those of the engine, and those of sampling.

A flag that was not given is absent from the parsed arguments, so that its default is chosen in one
place: `EngineArgs` for the engine; the checkpoint and the subcommand for sampling.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import fields
from typing import Any

from interleaf.config import DTYPES, QUANTIZATIONS, EngineArgs
from interleaf.params import SamplingParams
from interleaf.vllm_options import NAMES, OPTIONAL_VALUES, SWITCHES_WITHOUT_EFFECT

VLLM_SHORT = {
    "tensor_parallel_size": ("-tp",),
    "pipeline_parallel_size": ("-pp",),
    "data_parallel_size": ("-dp",),
    "compilation_config": ("-cc",),
    "optimization_level": ("-O",),
}
TOKEN_UNITS = {"": 1, "k": 1000, "K": 1 << 10, "m": 1000**2, "M": 1 << 20}
SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size_in_bytes(text: str) -> int:
    """Bytes of "4G", "512M", "1.5GiB" or "1000000"; units are powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", text.strip().upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 4G, 512M or 1000000")
    return int(float(match[1]) * SIZE_UNITS[match[2]])


def context_length(text: str) -> int | None:
    """Tokens of "4096", "32k" (32,000) or "32K" (32,768); None for "auto" or "-1"."""
    if text.lower() in ("auto", "-1"):
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens such as 4096 or 32K")
    return int(float(match[1]) * TOKEN_UNITS[match[2]])


def token_ids(text: str) -> list[int]:
    """The list of "1,2,3"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of token ids such as 1,2,3") from None


def logit_bias(text: str) -> dict[str, float]:
    """The mapping of '{"42": -100}'; SamplingParams checks what is in it."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object such as {{"42": -100}}')
    return parsed


def json_object(text: str) -> dict[str, Any]:
    """The object of '{"method": "ngram"}'; whoever it is for checks what is in it."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object such as {{"method": "ngram"}}')
    return parsed


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of EngineArgs but `seed`, whose meaning differs between subcommands."""
    group = parser.add_argument_group("engine", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    add("--model", help="a model directory, .gguf file, hub name or built-in name (default: the built-in model)")
    add("--tokenizer", help="the same choices (default: the model's own)")
    add("--revision", help="branch, tag or commit of a hub model")
    add("--chat-template", help="Jinja text, a file with it, or the name of one of the model's templates")
    add("--dtype", choices=list(DTYPES), help="of the arithmetic")
    add("--kv-cache-dtype", help="of keys and values: auto (as --dtype) or int8 (one scale a token and head)")
    add("--quantization", choices=QUANTIZATIONS, help="of the weights; gguf: as the file has them")
    add(
        "--max-model-len",
        type=context_length,
        metavar="TOKENS",
        help="longest context, prompt and output together, such as 4096 or 32K; auto: what fits",
    )
    add("--max-num-seqs", type=int, help="sequences that run at once")
    add("--max-num-batched-tokens", type=int, help="tokens computed in one step")
    add("--block-size", type=int, help="tokens in a KV block, a multiple of 16")
    add("--kv-cache-memory-bytes", type=size_in_bytes, metavar="SIZE", help="of the KV cache, such as 4G or 512M")
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction, help="reuse KV blocks of equal prefixes")
    add("--enable-chunked-prefill", action=argparse.BooleanOptionalAction, help="cut long prompts into steps")
    add("--long-prefill-token-threshold", type=int, help="most tokens of one prompt in a step; 0 is no such limit")
    add("--scheduling-policy", choices=["fcfs", "priority"], help="which request runs first")
    add("--max-logprobs", type=int, help="most logprobs that may be asked for; -1 is the whole vocabulary")
    add("--logits-processors", nargs="+", metavar="MODULE:CLASS", help="custom logits processors to import")
    add(
        "--generation-config",
        metavar="DIR",
        help="whose sampling defaults apply: auto: the model's; vllm: none; or those of a directory",
    )
    add("--override-generation-config", type=json_object, metavar="JSON", help='such as {"temperature": 0.2}')
    add("--speculative-config", type=json_object, metavar="JSON", help='drafts, such as {"method": "ngram"}')
    add("--threads", type=int, help="of computation (default: every core)")
    _add_vllm_flags(group)


def _add_vllm_flags(group: argparse._ArgumentGroup) -> None:
    """Flags that only vLLM has a use for, left out of the help; `interleaf.vllm_options` says what becomes of them."""
    for name in NAMES:
        flags = [*VLLM_SHORT.get(name, ()), "--" + name.replace("_", "-")]
        if name in SWITCHES_WITHOUT_EFFECT:
            group.add_argument(*flags, action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)
        elif name in OPTIONAL_VALUES:
            group.add_argument(*flags, nargs="?", const="true", help=argparse.SUPPRESS)
        else:
            group.add_argument(*flags, nargs="+" if name == "lora_modules" else None, help=argparse.SUPPRESS)


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The engine flags that were given (and `seed`, if the subcommand has it), as keyword arguments of `LLM`."""
    names = {field.name for field in fields(EngineArgs)} | NAMES
    return {name: value for name, value in vars(args).items() if name in names}


ANSWER_OPTIONS = (
    "enable_auto_tool_choice",
    "tool_call_parser",
    "tool_parser_plugin",
    "reasoning_parser",
    "reasoning_parser_plugin",
)
"""Flags of `add_answer_flags`; they are fields of ServerOptions."""


def add_answer_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say how tool calls and reasoning are found in answers."""
    group = parser.add_argument_group("tools and reasoning", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    add(
        "--enable-auto-tool-choice",
        action=argparse.BooleanOptionalAction,
        help="look for calls in answers to requests with tools (default: yes)",
    )
    add("--tool-call-parser", metavar="NAME", help="how this model writes calls; none, or auto: by its chat template")
    add("--tool-parser-plugin", metavar="FILE", help="Python file that registers further parsers of calls")
    add("--reasoning-parser", metavar="NAME", help="how it writes reasoning; none, or auto: by its chat template")
    add("--reasoning-parser-plugin", metavar="FILE", help="Python file that registers further parsers of reasoning")


def add_sampling_flags(parser: argparse.ArgumentParser, default_max_tokens: int) -> None:
    """Flags for the fields of SamplingParams that shape one text."""
    group = parser.add_argument_group("sampling", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    add("--max-tokens", type=int, help=f"of the answer (default: {default_max_tokens})")
    add("--min-tokens", type=int, help="do not end before this many")
    add("--temperature", type=float, help="0 takes the likeliest token each time (default: 0)")
    add("--top-p", type=float, help="keep the smallest set of tokens with this probability")
    add("--top-k", type=int, help="keep this many tokens; 0 is all")
    add("--min-p", type=float, help="drop tokens less likely than this share of the likeliest")
    add("--seed", dest="sampling_seed", type=int, metavar="SEED", help="of the sampling noise")
    add("--presence-penalty", type=float)
    add("--frequency-penalty", type=float)
    add("--repetition-penalty", type=float)
    add("--stop", action="append", metavar="TEXT", help="end before this text (may be repeated)")
    add("--stop-token-ids", type=token_ids, metavar="IDS", help="end at any of these tokens, such as 1,2,3")
    add("--include-stop-str-in-output", action="store_true", help="keep what ended the text")
    add("--ignore-eos", action="store_true", help="go on behind the end-of-sequence token")
    add("--logit-bias", type=logit_bias, metavar="JSON", help='added to logits, such as {"42": -100}')
    add("--allowed-token-ids", type=token_ids, metavar="IDS", help="sample only these tokens")
    add("--bad-words", action="append", metavar="TEXT", help="never write this text (may be repeated)")
    add("--truncate-prompt-tokens", type=int, metavar="K", help="keep only the last K tokens of a prompt")
    add("--speculative", action=argparse.BooleanOptionalAction, help="with --no-: not for these prompts")
    add("--skip-special-tokens", action=argparse.BooleanOptionalAction, help="leave special tokens out")
    add("--spaces-between-special-tokens", action=argparse.BooleanOptionalAction, help="where they are kept")


def sampling_params(args: argparse.Namespace, defaults: SamplingParams, max_tokens: int) -> SamplingParams:
    """SamplingParams from the flags that were given.

    Args:
        defaults: the checkpoint's, for what has no flag; but temperature is 0 unless a flag sets it.
        max_tokens: unless a flag sets it.

    Raises:
        ParameterError: a value is out of range.
    """
    given = vars(args)
    values = {name: getattr(defaults, name) for name in SamplingParams.__struct_fields__}
    values |= {"temperature": 0.0, "max_tokens": max_tokens}
    values |= {name: given[name] for name in SamplingParams.__struct_fields__ if name in given}
    if "sampling_seed" in given:
        values["seed"] = given["sampling_seed"]
    return SamplingParams(**values)
