"""Many numbers as one entry of a file: how many lie in each of equal bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BINS = 30


def histogram(values: Sequence[float], *, bins: int = BINS, ends: tuple[float, float] | None = None) -> dict[str, Any]:
    """`{"low": ..., "high": ..., "counts": [...]}` between the `ends`, or else the lowest and the highest value.

    Values that are all the same lie in the first bin.
    """
    low, high = ends or (min(values), max(values))
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int(bins * (value - low) / (high - low))) if high > low else 0] += 1
    return {"low": low, "high": high, "counts": counts}


def edges(entry: Mapping[str, Any]) -> list[float]:
    """Where the bins of an entry begin, and where the last one ends."""
    low, bins = float(entry["low"]), len(entry["counts"])
    width = (float(entry["high"]) - low) / bins
    return [low + i * width for i in range(bins + 1)]
