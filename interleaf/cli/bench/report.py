"""Figures of a benchmark: percentiles, a table for people, JSON for programs."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interleaf import __version__

if TYPE_CHECKING:
    from interleaf.llm import LLM


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, linear between neighbours; 0.0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, median, 90th and 99th percentile, in milliseconds."""
    milliseconds = [1000.0 * value for value in seconds]
    mean = sum(milliseconds) / len(milliseconds) if milliseconds else 0.0
    return {
        "mean_ms": mean,
        "p50_ms": percentile(milliseconds, 0.5),
        "p90_ms": percentile(milliseconds, 0.9),
        "p99_ms": percentile(milliseconds, 0.99),
    }


def environment(llm: LLM) -> dict[str, Any]:
    """What the figures depend on."""
    config = llm.config
    return {
        "interleaf": __version__,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "model": config.model_name,
        "dtype": config.dtype,
        "threads": config.threads,
        "max_model_len": config.scheduler.max_model_len,
        "max_num_seqs": config.scheduler.max_num_seqs,
        "max_num_batched_tokens": config.scheduler.max_num_batched_tokens,
        "block_size": config.cache.block_size,
        "num_blocks": config.cache.num_blocks,
        "enable_prefix_caching": config.cache.enable_prefix_caching,
    }


def print_table(title: str, rows: Mapping[str, str]) -> None:
    """Print aligned rows of a name and a value."""
    names = max(map(len, rows))
    values = max(map(len, rows.values()))
    print(title)
    for name, value in rows.items():
        print(f"  {name:{names}}  {value:>{values}}")


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
