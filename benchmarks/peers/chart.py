"""A chart of a result: for each workload, how many times as fast as each peer interleaf is."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from benchmarks.peers.compare import read_results
from benchmarks.peers.engines import PEERS, PRECISIONS

matplotlib.use("Agg")
COLOURS = dict(zip(PEERS, ("#8c8c8c", "#d9a441", "#5b8db8", "#a9567e"), strict=True))


def draw(source: Path, image: Path) -> None:
    """One panel for each model and precision."""
    results = read_results(source)
    panels = sorted({(one["model"], PRECISIONS.index(one["precision"])) for one in results})
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 2.6 * len(panels)), squeeze=False, layout="constrained")
    for axis, (model, precision) in zip(axes[:, 0], panels, strict=True):
        chosen = [one for one in results if (one["model"], one["precision"]) == (model, PRECISIONS[precision])]
        _panel(axis, f"{model}, {PRECISIONS[precision]}", chosen)
    figure.savefig(image, dpi=110)


def _panel(axis: Any, title: str, results: list[dict[str, Any]]) -> None:
    names = [name for name in PEERS if any(name in one["seconds"] for one in results)]
    width = 0.8 / max(len(names), 1)
    for place, name in enumerate(names):
        ratios = [_ratio(one, name) for one in results]
        positions = [number + (place - (len(names) - 1) / 2) * width for number in range(len(results))]
        bars = axis.bar(positions, ratios, width * 0.92, label=name, color=COLOURS[name])
        axis.bar_label(bars, [f"{ratio:.1f}" if ratio else "" for ratio in ratios], fontsize=7, padding=1)
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(results)), [one["workload"] for one in results], fontsize=8)
    axis.set_ylabel("times as fast", fontsize=8)
    axis.set_title(f"interleaf against its peers: {title}", fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(y=0.15)
    axis.legend(fontsize=7, frameon=False, ncols=len(names))


def _ratio(result: dict[str, Any], name: str) -> float:
    """0 where the peer was not measured."""
    seconds = result["seconds"]
    if name not in seconds:
        return 0.0
    return statistics.median(seconds[name]) / statistics.median(seconds["interleaf"])
