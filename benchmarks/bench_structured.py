"""Time per token with and without a grammar, in turns; and how long ordinary schemas take to compile.

python benchmarks/bench_structured.py --batch-size 16
"""

from __future__ import annotations

import argparse
import statistics
import time
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
PEOPLE = {"type": "array", "minItems": 50, "items": PERSON}
KINDS = ("free", "held", "held, with forced drafts")
TOKENS = 64


def seconds_per_token(llm: LLM, kind: str, batch_size: int) -> float:
    structured = None if kind == "free" else StructuredOutputsParams(json=PEOPLE)
    params = [
        SamplingParams(
            temperature=0.8,
            seed=seed,
            max_tokens=TOKENS,
            ignore_eos=True,
            speculative=None if kind == KINDS[2] else False,
            structured_outputs=structured,
        )
        for seed in range(batch_size)
    ]
    begin = time.perf_counter()
    outputs = llm.generate(["Write a list of people in JSON."] * batch_size, params, use_tqdm=False)
    return (time.perf_counter() - begin) / sum(len(output.outputs[0].token_ids) for output in outputs)


def compile_milliseconds(rounds: int) -> float:
    tokenizer = load_tokenizer(None)
    known = open_tokenizer(Vocabulary(tokenizer.backend.to_str(), len(tokenizer), [tokenizer.eos_token_id or 0]))
    times = []
    for i in range(rounds):
        schema = {**PERSON, "title": f"schema {i}"}
        begin = time.perf_counter()
        compile_grammar(known, grammar_source(StructuredOutputsParams(json=schema), []))
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    print(f"compile: {compile_milliseconds(20):.2f} ms")
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with LLM(kv_cache_memory_bytes=1 << 29) as llm:
        for kind in KINDS:
            seconds_per_token(llm, kind, args.batch_size)
        for _ in range(args.rounds):
            for kind in KINDS:
                found[kind].append(seconds_per_token(llm, kind, args.batch_size))
    free = statistics.median(found["free"])
    for kind in KINDS:
        median = statistics.median(found[kind])
        print(f"{kind}: {median * 1e6:.0f} us a token, {median / free:.3f} of free")


if __name__ == "__main__":
    main()
