"""What the engines are asked to do: lists of prompts as token ids, and how many tokens each answer has."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from interleaf.cli.bench import workloads

FIRST_TOKEN, LAST_TOKEN = 1_000, 45_000
"""Prompts are drawn from these ids, which every model has and none uses for control."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a workload.

    Fields:
        prompts: token ids.
        output_lens: tokens to generate for each prompt, whatever they are.
        n: sequences a prompt, sampled at temperature 1 where there are several; else greedy.
    """

    prompts: list[list[int]]
    output_lens: list[int]
    n: int = 1

    @property
    def num_tokens(self) -> int:
        """Prompt tokens and generated ones."""
        return sum(map(len, self.prompts)) + self.n * sum(self.output_lens)

    def as_message(self) -> dict[str, Any]:
        return asdict(self)


def _random(count: int, length: int, output_len: int, source: random.Random, n: int = 1) -> Job:
    prompts = [source.choices(range(FIRST_TOKEN, LAST_TOKEN), k=length) for _ in range(count)]
    return Job(prompts, [output_len] * count, n)


def _sharegpt(source: random.Random) -> Job:
    shapes = workloads.sharegpt(48, source.randrange(1 << 30))
    prompts = [source.choices(range(FIRST_TOKEN, LAST_TOKEN), k=shape.prompt_tokens) for shape in shapes]
    return Job(prompts, [max(4, shape.output_tokens // 2) for shape in shapes])


def _shared_prefix(source: random.Random) -> Job:
    prefix = source.choices(range(FIRST_TOKEN, LAST_TOKEN), k=1024)
    tails = _random(64, 16, 16, source)
    return Job([prefix + tail for tail in tails.prompts], tails.output_lens)


WORKLOADS: dict[str, Callable[[random.Random], Job]] = {
    "one stream": lambda source: _random(1, 128, 128, source),
    "fixed": lambda source: _random(64, 128, 64, source),
    "decode-heavy": lambda source: _random(64, 16, 128, source),
    "prefill-heavy": lambda source: _random(64, 512, 2, source),
    "sharegpt-like": _sharegpt,
    "shared prefix": _shared_prefix,
    "n=4": lambda source: _random(16, 256, 64, source, n=4),
    "long prompt": lambda source: _random(1, 4096, 2, source),
}
"""Name -> job, made from a source of random numbers, so that no two rounds have a prompt in common.

"sharegpt-like" has 48 requests with answers of half the length, to keep a round under a minute.
"""
