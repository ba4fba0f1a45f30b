"""Time per token with and without a grammar, in turns; and how long ordinary schemas take to compile.

python benchmarks/bench_structured.py --batch-size 16
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from interleaf import LLM, SamplingParams, StructuredOutputsParams
from interleaf.core.structured import compile_grammar, open_tokenizer
from interleaf.frontend.grammar import grammar_source
from interleaf.frontend.tokenizer import load_tokenizer
from interleaf.messages import Vocabulary

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        "email": {"type": "string", "format": "email"},
    },
    "required": ["name", "age", "tags", "email"],
    "additionalProperties": False,
}
PARTS: tuple[dict[str, Any], ...] = (
    {"type": "string"},
    {"type": "number"},
    {"type": "boolean"},
    {"type": "string", "format": "date"},
    {"type": "array", "items": {"type": "string", "maxLength": 12}},
    {"anyOf": [{"type": "null"}, {"type": "integer"}]},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
)
NAMES = ("title", "price", "in_stock", "created", "authors", "rating", "code", "street", "city", "country")
SEEN = itertools.count()


def list_of(item: dict[str, Any]) -> dict[str, Any]:
    """A schema whose texts are longer than any run here."""
    return {"type": "array", "minItems": 50, "items": item}


def new_schema() -> dict[str, Any]:
    """A schema that nobody has seen before."""
    number = next(SEEN)
    names = [NAMES[(number + i) % len(NAMES)] for i in range(3 + number % 4)]
    properties = {name: PARTS[(number // 3 + i) % len(PARTS)] for i, name in enumerate(names)}
    return list_of({"type": "object", "title": str(number), "properties": properties, "required": names})


Schemas = Callable[[], dict[str, Any]]
KINDS: dict[str, tuple[Schemas | None, dict[str, Any]]] = {
    "free": (None, {}),
    "one schema": (lambda: list_of(PERSON), {}),
    "one schema, no forced drafts": (lambda: list_of(PERSON), {"speculative": False}),
    "a new schema for each request": (new_schema, {}),
    "free, top_p": (None, {"top_p": 0.9}),
    "one schema, top_p": (lambda: list_of(PERSON), {"top_p": 0.9}),
    "free, greedy": (None, {"temperature": 0.0}),
    "one schema, greedy": (lambda: list_of(PERSON), {"temperature": 0.0}),
}
"""What is compared with the last one before it that is free."""


def params_of(kind: str, batch_size: int, num_tokens: int) -> Iterator[SamplingParams]:
    schemas, options = KINDS[kind]
    for seed in range(batch_size):
        structured = None if schemas is None else StructuredOutputsParams(json=schemas())
        yield SamplingParams(
            seed=seed,
            max_tokens=num_tokens,
            ignore_eos=True,
            structured_outputs=structured,
            **{"temperature": 0.8, **options},
        )


def seconds_per_token(llm: LLM, kind: str, batch_size: int, num_tokens: int) -> float:
    params = list(params_of(kind, batch_size, num_tokens))
    begin = time.perf_counter()
    outputs = llm.generate(["Write a list of people in JSON."] * batch_size, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    count = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert count == batch_size * num_tokens, "both sides make the same number of tokens"
    return seconds / count


def compile_milliseconds(rounds: int) -> float:
    tokenizer = load_tokenizer(None)
    known = open_tokenizer(Vocabulary(tokenizer.backend.to_str(), len(tokenizer), [tokenizer.eos_token_id or 0]))
    times = []
    for i in range(rounds):
        schema = {**PERSON, "title": f"schema {i}"}
        begin = time.perf_counter()
        compile_grammar(known, grammar_source(StructuredOutputsParams(json=schema), {}))
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def compare(llm: LLM, batch_size: int, num_tokens: int, rounds: int) -> None:
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            found[kind].append(seconds_per_token(llm, kind, batch_size, num_tokens))
    free = 0.0
    for kind, times in found.items():
        median = statistics.median(times)
        free = median if KINDS[kind][0] is None else free
        print(f"{num_tokens} tokens, {kind}: {median * 1e6:.0f} us a token, {median / free:.3f} of free")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-tokens", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    print(f"compile: {compile_milliseconds(20):.2f} ms")
    with LLM(kv_cache_memory_bytes=1 << 29) as llm:
        for kind in KINDS:
            seconds_per_token(llm, kind, args.batch_size, 8)
        for num_tokens in args.num_tokens:
            compare(llm, args.batch_size, num_tokens, args.rounds)


if __name__ == "__main__":
    main()
