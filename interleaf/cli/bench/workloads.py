"""What a benchmark asks for: lengths of prompts and answers, and when they arrive.

Prompts are random tokens, so that no two share a prefix; answers are forced to their length.
"""

from __future__ import annotations

import bisect
import csv
import json
import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from interleaf.errors import ConfigError

PROMPT_COLUMNS = ("prompt_tokens", "ContextTokens", "input_length")
OUTPUT_COLUMNS = ("output_tokens", "GeneratedTokens", "output_length")
TIME_COLUMNS = ("TIMESTAMP", "timestamp")

QUANTILES = (0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55,
             0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1)  # fmt: skip
SHAREGPT_PROMPT = (4, 7, 11, 15, 19, 22, 26, 31, 35, 42, 49, 58, 70,
                   84, 99, 121, 154, 201, 262, 381, 463, 574, 763, 902, 1024)  # fmt: skip
SHAREGPT_OUTPUT = (4, 12, 41, 70, 109, 178, 250, 311, 354, 394, 432, 473, 513,
                   556, 594, 633, 682, 739, 806, 868, 901, 935, 967, 1002, 1024)  # fmt: skip
"""Lengths in tokens at `QUANTILES` of the first turns of ShareGPT conversations of 4 to 1,024 tokens each way.

Prompt: median 58, mean 137; answer: median 473, mean 472. The two are uncorrelated (r = 0.01).
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """Lengths of one request in tokens, and its arrival in seconds after the first one's."""

    prompt_tokens: int
    output_tokens: int
    arrival: float = 0.0


def fixed(count: int, prompt_tokens: int, output_tokens: int) -> list[Shape]:
    """All requests of the same lengths."""
    return [Shape(prompt_tokens, output_tokens)] * count


def sharegpt(count: int, seed: int) -> list[Shape]:
    """Lengths distributed like those of ShareGPT's first turns."""
    source = random.Random(seed)
    return [
        Shape(_at_quantile(SHAREGPT_PROMPT, source.random()), _at_quantile(SHAREGPT_OUTPUT, source.random()))
        for _ in range(count)
    ]


def _at_quantile(lengths: tuple[int, ...], quantile: float) -> int:
    """Linear between the tabulated quantiles."""
    right = bisect.bisect_right(QUANTILES, quantile)
    low, high = QUANTILES[right - 1], QUANTILES[right]
    share = (quantile - low) / (high - low)
    return round(lengths[right - 1] + share * (lengths[right] - lengths[right - 1]))


def trace(path: Path, count: int) -> list[Shape]:
    """The first `count` requests of a trace file.

    CSV with a header, or JSON lines (.jsonl). Lengths are in the columns prompt_tokens and
    output_tokens (or ContextTokens and GeneratedTokens, or input_length and output_length). An
    optional column timestamp or TIMESTAMP holds arrivals: a date and time, or a number, in seconds
    (CSV) or milliseconds (JSON lines).

    Raises:
        ConfigError: the file cannot be read, or a row has no such columns.
    """
    unit = 0.001 if path.suffix == ".jsonl" else 1.0
    shapes: list[Shape] = []
    start: float | None = None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = _json_rows(file) if path.suffix == ".jsonl" else csv.DictReader(file)
            for number, row in enumerate(islice(rows, count), start=1):
                shape = _shape(row, f"Row {number} of {path}", unit)
                start = shape.arrival if start is None else start
                shapes.append(Shape(shape.prompt_tokens, shape.output_tokens, max(0.0, shape.arrival - start)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"The trace {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not shapes:
        raise ConfigError(f"The trace {path} holds no request.")
    return shapes


def _json_rows(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        yield row if isinstance(row, dict) else {}


def _shape(row: Mapping[str, Any], place: str, unit: float) -> Shape:
    lengths = []
    for columns in (PROMPT_COLUMNS, OUTPUT_COLUMNS):
        value = next((row[column] for column in columns if column in row), None)
        try:
            length = int(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            length = 0
        if length < 1:
            raise ConfigError(f"{place} has no length of at least 1 in any of the columns {', '.join(columns)}.")
        lengths.append(length)
    moment = next((row[column] for column in TIME_COLUMNS if column in row), 0)
    return Shape(lengths[0], lengths[1], _seconds(moment, place, unit))


def _seconds(moment: Any, place: str, unit: float) -> float:
    try:
        return float(moment) * unit
    except (TypeError, ValueError):
        pass
    try:
        return datetime.fromisoformat(moment).timestamp()
    except (TypeError, ValueError):
        raise ConfigError(f"{place} has no time that can be read: {moment!r}.") from None


def fitting(shapes: Iterable[Shape], max_model_len: int) -> list[Shape]:
    """Those whose prompt and answer fit the context together.

    Raises:
        ConfigError: none does.
    """
    kept = [shape for shape in shapes if shape.prompt_tokens + shape.output_tokens <= max_model_len]
    if not kept:
        raise ConfigError(
            f"No request of this workload fits the context of {max_model_len} tokens: raise --max-model-len or "
            f"choose shorter requests."
        )
    return kept


def random_prompts(shapes: Iterable[Shape], vocab_size: int, avoid: Collection[int], seed: int) -> list[list[int]]:
    """Prompts of random tokens, none of them in `avoid` (the special ones)."""
    source = random.Random(seed)
    banned = set(avoid)
    words = [token for token in range(vocab_size) if token not in banned]
    return [source.choices(words, k=shape.prompt_tokens) for shape in shapes]
