"""95% intervals, so that no figure stands without its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import gt, lt
from typing import Any

Z = 1.959964  # the 97.5% point of the normal distribution
RESAMPLES = 2000


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


def paired(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """How much more `one` is than `other` on average, measured on the same things."""
    values = [a - b for a, b in zip(one, other, strict=True)]
    return {"mean": sum(values) / len(values), "interval": of_mean(values)}


def sign_test(one: Sequence[float], other: Sequence[float]) -> float:
    """The exact two-sided p of as many wins of `one` over `other` on the same things; of 0 and 1, McNemar's test."""
    from scipy.stats import binomtest

    wins, losses = (sum(map(operator, one, other)) for operator in (gt, lt))
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def apart(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """The same of two independent samples: the variances of both means add up."""
    (low, high), (below, above) = of_mean(one), of_mean(other)
    mean = (low + high) / 2 - (below + above) / 2
    half = math.hypot((high - low) / 2, (above - below) / 2)
    return {"mean": mean, "interval": (mean - half, mean + half)}


def paired_quantile(one: Sequence[float], other: Sequence[float], share: float) -> dict[str, Any]:
    """How much higher a quantile of `one` is, measured on the same things: bootstrap over them."""
    import numpy as np
    from scipy.stats import bootstrap

    def higher(a: Any, b: Any, axis: int = -1) -> Any:
        return np.quantile(a, share, axis=axis) - np.quantile(b, share, axis=axis)

    found = bootstrap((one, other), higher, paired=True, method="percentile", n_resamples=RESAMPLES, rng=0)
    low, high = map(float, found.confidence_interval)
    return {"difference": float(higher(one, other)), "interval": (low, high)}
