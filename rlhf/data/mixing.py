"""In what proportion the two domains meet in each reward model's training set (paper 3.2.2).

A share is kept exactly: rows that would spoil it are left out, and the counts say so. What can't be kept is an error,
never another share.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

from rlhf.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows of each kind were used, of how many given; prints as one line."""

    used: dict[str, int]
    given: dict[str, int]

    def __str__(self) -> str:
        total = sum(self.used.values())
        kinds = [f"{n:,} {kind} ({n / total:.1%})" for kind, n in self.used.items()]
        left = [f"{self.given[kind] - n:,} {kind}" for kind, n in self.used.items() if self.given[kind] > n]
        return " + ".join(kinds) + " pairs" + (f"; left out to keep the share: {', '.join(left)}" if left else "")


@dataclass(frozen=True, slots=True)
class Mixed(Generic[T]):
    """Shuffled rows, and what went into them."""

    rows: Sequence[T]
    counts: Counts


def safety_mix(safety: Sequence[T], helpfulness: Sequence[T], *, share: float = 0.9, seed: int) -> Mixed[T]:
    """The Safety RM's pairs: safety and helpfulness "in a 90/10 proportion" (3.2.2).

    The tenth is "especially beneficial for the accuracy on samples where both the chosen and rejected responses were
    deemed safe".
    """
    return _mix({"safety": safety, "helpfulness": helpfulness}, share, seed)


def helpfulness_mix(helpfulness: Sequence[T], remaining: Sequence[T], *, share: float = 0.5, seed: int) -> Mixed[T]:
    """The Helpfulness RM's pairs: its own and "an equal parts of the remaining data" (3.2.2).

    ``remaining`` holds the safety pairs, drawn uniformly over pairs, which is our reading of "uniformly sampled".
    Public helpfulness pairs count with our own.
    """
    return _mix({"helpfulness": helpfulness, "remaining": remaining}, share, seed)


def _mix(kinds: dict[str, Sequence[T]], share: float, seed: int) -> Mixed[T]:
    """As many rows as give the first kind exactly ``share`` of them, drawn and shuffled from ``seed``.

    Raises:
        DataError: if a kind has too few rows for even the smallest exact mix.
        ValueError: if ``share`` is no share.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in 0..1 (got {share})")
    exact = Fraction(share).limit_denominator(1000)
    parts = dict(zip(kinds, (exact.numerator, exact.denominator - exact.numerator), strict=True))
    times = min(len(rows) // parts[kind] for kind, rows in kinds.items() if parts[kind])
    if not times:
        needs = " and ".join(f"{parts[kind]} {kind} (got {len(rows)})" for kind, rows in kinds.items())
        raise DataError(
            f"a share of {float(exact):g} needs at least {needs} pairs",
            hints=["give more pairs of that kind", "or another share: reward.helpfulness_share, reward.safety_share"],
        )
    rng = random.Random(seed)
    mixed = [row for kind, rows in kinds.items() for row in rng.sample(rows, times * parts[kind])]
    rng.shuffle(mixed)
    used = {kind: times * parts[kind] for kind in kinds}
    return Mixed(mixed, Counts(used, {kind: len(rows) for kind, rows in kinds.items()}))
