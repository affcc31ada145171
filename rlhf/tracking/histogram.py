"""Many numbers as one entry of metrics.jsonl: how many lie in each of equal bins between the lowest and the highest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BINS = 30


def histogram(values: Sequence[float]) -> dict[str, Any]:
    """`{"low": ..., "high": ..., "counts": [...]}`; values that are all the same lie in the first bin."""
    low, high = min(values), max(values)
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int(BINS * (value - low) / (high - low))) if high > low else 0] += 1
    return {"low": low, "high": high, "counts": counts}


def edges(entry: Mapping[str, Any]) -> list[float]:
    """Where the bins of an entry begin, and where the last one ends."""
    low, bins = float(entry["low"]), len(entry["counts"])
    width = (float(entry["high"]) - low) / bins
    return [low + i * width for i in range(bins + 1)]
