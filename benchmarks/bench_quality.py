"""What quantization costs: the mean logprob of held-out text, against bfloat16 weights and KV cache.

    python benchmarks/bench_quality.py [TEXT_FILE ...] [--model MODEL] [--tokens 8000]

Without files the text is this project's own documentation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from interleaf import LLM, SamplingParams
from interleaf.config import QUANTIZATIONS

CONTEXT = 1024
"""The text is cut into pieces of this many tokens, each a prompt of its own."""


def mean_logprob(args: argparse.Namespace, text: str, **options: str) -> tuple[float, int]:
    with LLM(args.model, kv_cache_memory_bytes=1 << 29, **options) as llm:
        tokens = llm.get_tokenizer().encode(text)[: args.tokens]
        pieces = [tokens[begin : begin + CONTEXT] for begin in range(0, len(tokens), CONTEXT)]
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        outputs = llm.generate([piece for piece in pieces if len(piece) > 1], params, use_tqdm=False)
    logprobs = [
        entry[token].logprob
        for output in outputs
        for token, entry in zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=True)
        if entry is not None
    ]
    return sum(logprobs) / len(logprobs), len(logprobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="*")
    parser.add_argument("--model", help="default: the built-in model")
    parser.add_argument("--tokens", type=int, default=8000)
    args = parser.parse_args()
    files = args.texts or sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    text = "\n\n".join(path.read_text() for path in files)
    base, count = mean_logprob(args, text)
    print(f"{count} tokens\n{'weights':10} {'KV cache':10} {'mean logprob':>13} {'against bfloat16':>17}")
    print(f"{'bfloat16':10} {'bfloat16':10} {base:13.4f}")
    rows = [("bfloat16", "int8", {"kv_cache_dtype": "int8"})]
    rows += [(name, "bfloat16", {"quantization": name}) for name in QUANTIZATIONS]
    for weights, cache, options in rows:
        value, _ = mean_logprob(args, text, **options)
        print(f"{weights:10} {cache:10} {value:13.4f} {value / base - 1:+17.2%}")


if __name__ == "__main__":
    main()
