"""From pooled hidden states to the embedding that was asked for."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

from interleaf.params import PoolingParams


def embedding_of(pooled: Sequence[float], params: PoolingParams) -> list[float]:
    """The first `params.dimensions` values, scaled to length 1 if that is wanted; float32 values.

    The length is that of the exact values, whatever their number: `hypot` and not a sum that could overflow. Nothing
    can be done with one of 0.
    """
    kept = pooled[: params.dimensions]
    length = math.hypot(*kept) if params.normalize else 1.0
    return array("f", [value / (length or 1.0) for value in kept]).tolist()
