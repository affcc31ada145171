"""95% intervals, so that no figure stands without its error."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959964  # the 97.5% point of the normal distribution


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share; unlike the normal one it holds for shares of 0 and 1."""
    if n == 0:
        return (0.0, 1.0)
    share, z2 = successes / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (max(0.0, middle - half), min(1.0, middle + half))


def of_mean(values: Sequence[float]) -> tuple[float, float]:
    """Normal interval of a mean: mean +- 1.96 s / sqrt(n)."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return (mean, mean)
    half = Z * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return (mean - half, mean + half)
