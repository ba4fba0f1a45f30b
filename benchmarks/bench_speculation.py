"""Speculation on texts that repeat their prompt: tokens a second with drafts, and that the texts are the same.

    python benchmarks/bench_speculation.py
    python benchmarks/bench_speculation.py --config '{"method": "suffix"}' --batch 16

Two engines of the built-in model, one with drafts and one without, take turns at the same chats: to repeat a text word
for word, or to give it back with its errors corrected.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from interleaf import LLM, SamplingParams

ASKED = (
    "Repeat the following text exactly, word for word:",
    "Write the following text again, without any change:",
    "Correct spelling errors in this text and give the whole text back:",
)
TEXTS = (
    "The harbour of Oldmere was built in 1827 by the engineer Thomas Reed. It has two stone piers, a lighthouse and a "
    "dry dock. Each spring the fishing boats are painted blue and white, and on the first Sunday of May the town holds "
    "a festival with music, grilled fish and a race of small sailing boats. In winter the harbour is quiet, and only "
    "the ferry to the islands leaves once a day. The lighthouse keeper, Anna Holt, writes down the weather every "
    "morning and sends it to the newspaper in the city.",
    "def total_price(items, tax):\n    result = 0.0\n    for item in items:\n        price = item['price']\n"
    "        count = item['count']\n        result = result + price * count\n    result = result * (1.0 + tax)\n"
    "    return round(result, 2)\n\ndef print_bill(items, tax):\n    for item in items:\n"
    "        print(item['name'], item['count'], item['price'])\n    print('total:', total_price(items, tax))\n",
    "Meeting notes, 14 March. Present: Maria Lopez, John Smith, Wei Chen. Maria Lopez reported that the new warehouse "
    "in Rotterdam will open on 2 May. John Smith said that the budget for the warehouse is 1.2 million euros, of which "
    "0.4 million are spent. Wei Chen asked for two more forklifts. It was decided to order one forklift now and "
    "another one in July. The next meeting is on 28 March at ten o'clock in room 4.",
)


def chats(batch: int) -> list[list[dict[str, str]]]:
    """As many chats as are sent at once, and at least one for each text."""
    return [
        [{"role": "user", "content": f"{ASKED[i // len(TEXTS) % len(ASKED)]}\n\n{TEXTS[i % len(TEXTS)]}"}]
        for i in range(max(batch, len(TEXTS)))
    ]


def run(llm: LLM, batch: int, params: SamplingParams) -> tuple[list[Any], float]:
    """Tokens and logprobs of all chats, sent `batch` at a time to an empty cache; and tokens a second."""
    found: list[Any] = []
    seconds = 0.0
    everything = chats(batch)
    for begin in range(0, len(everything), batch):
        llm.reset_prefix_cache()
        start = time.perf_counter()
        outputs = llm.chat(everything[begin : begin + batch], params, use_tqdm=False)
        seconds += time.perf_counter() - start
        found += [(output.outputs[0].token_ids, output.outputs[0].cumulative_logprob) for output in outputs]
    return found, sum(len(tokens) for tokens, _ in found) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=json.loads, default={"method": "ngram", "num_speculative_tokens": 8})
    parser.add_argument("--model")
    parser.add_argument("--quantization")
    parser.add_argument("--batch", type=int, default=1, help="requests at once (default: 1)")
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    params = SamplingParams(temperature=args.temperature, seed=5, max_tokens=args.max_tokens, logprobs=0)
    options = {"quantization": args.quantization, "kv_cache_memory_bytes": 1 << 29}
    with LLM(args.model, **options) as plain, LLM(args.model, speculative_config=args.config, **options) as drafting:
        texts = [run(llm, args.batch, params)[0] for llm in (plain, drafting)]
        speeds: dict[LLM, list[float]] = {plain: [], drafting: []}
        for number in range(args.rounds):
            for llm in (plain, drafting) if number % 2 else (drafting, plain):
                speeds[llm].append(run(llm, args.batch, params)[1])
        stats = drafting.client.stats()
    without, with_drafts = (statistics.median(speeds[llm]) for llm in (plain, drafting))
    print(f"the same tokens and logprobs: {texts[0] == texts[1]}")
    print(f"tokens a second: {without:.0f} without, {with_drafts:.0f} with drafts, {with_drafts / without:.2f} times")
    print(f"accepted {stats.num_accepted_tokens} of {stats.num_draft_tokens} draft tokens")


if __name__ == "__main__":
    main()
