"""What the quantized formats mean, in numpy: values are rounded to a format and given back as floats.

A quantized linear layer computes with the rounded weights and the rounded activations; its sums of products are exact
integers, so that plain float64 arithmetic on these values is its reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

GROUP_SIZE = 32
ROTATION_RUN = 16


def round_weight(values: Floats, format: str) -> Floats:
    """A weight [n, k] as `format` holds it: "int8", "group4", "group4_min", "group8" or "group8_min".

    int8 is rotated, rounded with one scale a row, and rotated back; the others have a float16 scale (and minimum) for
    every 32 values, the last group being filled up with zeros.
    """
    if format == "int8":
        rotated, factor = rotate(values)
        rotated = rotated / np.float32(factor)
        scale = np.abs(rotated).max(1, keepdims=True).astype(np.float32) / np.float32(127)
        scale[scale == 0] = 1.0
        return rotate(np.rint(rotated / scale).astype(np.float64) * scale)[0]
    largest = 15 if format.startswith("group4") else 255
    groups = _grouped(values)
    if format.endswith("_min"):
        offset = np.minimum(groups.min(-1, keepdims=True), 0.0).astype(np.float16).astype(np.float32)
        scale = ((groups.max(-1, keepdims=True) - offset) / np.float32(largest)).astype(np.float16).astype(np.float32)
    else:
        zero = np.float32((largest + 1) // 2)
        low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
        scale = (-np.where(-low > high, low, high) / zero).astype(np.float16).astype(np.float32)
        offset = -scale * zero
    steps = np.divide(groups - offset, scale, out=np.zeros_like(groups), where=scale != 0)
    rounded: Floats = np.clip(np.rint(steps), 0, largest) * scale + offset
    return rounded.reshape(len(values), -1)[:, : values.shape[1]]


def round_activation(values: Floats, format: str) -> Floats:
    """Activations [rows, k]: one scale a row for int8, one for every 32 values for the others; 127 steps either way."""
    factor = 1
    if format == "int8":
        values, factor = rotate(values)
    groups = values[:, None, :] if format == "int8" else _grouped(values)
    top = np.abs(groups).max(-1, keepdims=True).astype(np.float32)
    scale = np.where(top > 0, top / np.float32(127), np.float32(1))
    rounded: Floats = np.rint(groups * (np.float32(1) / scale)) * scale
    rounded = rounded.reshape(len(values), -1)[:, : values.shape[1]]
    return rotate(rounded.astype(np.float64))[0] / factor if format == "int8" else rounded


def rotate(values: Floats) -> tuple[Floats, int]:
    """Rows [n, k] times a matrix of ones and minus ones, and what its square is a multiple of the identity by.

    Values are replaced by their sums and differences, so that a large one is shared out over many before all are
    rounded with one scale (Ashkboos et al. 2024). First halves of the row are paired, then its quarters, as far as
    these are whole runs of 16; then, within each run, values 8, 4, 2 and 1 apart. A row that is no number of runs stays
    as it is.
    """
    k = values.shape[1]
    if k % ROTATION_RUN:
        return values, 1
    distances = [distance for distance in (k // 2, k // 4) if k % distance == 0 and distance % ROTATION_RUN == 0]
    distances += [8, 4, 2, 1]
    for distance in distances:
        runs = values.reshape(len(values), -1, 2, distance)
        values = np.stack([runs[:, :, 0] + runs[:, :, 1], runs[:, :, 0] - runs[:, :, 1]], 2).reshape(len(values), k)
    return values, 2 ** len(distances)


def _grouped(values: Floats) -> Floats:
    padding = -values.shape[1] % GROUP_SIZE
    return np.pad(values, ((0, 0), (0, padding))).reshape(len(values), -1, GROUP_SIZE)
