"""A reward model on held-out pairs: accuracy by rating, by source and by safety bin (3.2.2, A.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.data.types import RATINGS, Preference
from rlhf.evaluation.intervals import paired, sign_test, wilson

SAFETY_BINS = {(True, False): "safe_over_unsafe", (True, True): "both_safe", (False, False): "both_unsafe"}


def right(gap: Tensor) -> Tensor:
    """1 where the chosen completion scores higher, 0 where the rejected does; a tie counts half."""
    return (gap > 0).double() + 0.5 * (gap == 0).double()


def share_of(rights: Tensor) -> dict[str, Any]:
    """The mean of `right` with its count and its 95% interval."""
    n = len(rights)
    return {"accuracy": rights.mean().item(), "n": n, "interval": wilson(round(rights.sum().item()), n)}


def accuracy_by_rating(pairs: Sequence[Preference], chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """Share of pairs whose chosen completion scores higher, by rating (Table 8), with counts and 95% intervals.

    A tie counts half. Buckets nobody rated are absent.
    """
    every = {"all": share_of(right(chosen - rejected))} if pairs else {}
    found = {**_by(pairs, chosen - rejected, lambda pair: pair.rating, RATINGS), **every}
    return {
        "accuracy": {bucket: row["accuracy"] for bucket, row in found.items()},
        "pairs": {bucket: row["n"] for bucket, row in found.items()},
        "interval": {bucket: row["interval"] for bucket, row in found.items()},
    }


def accuracy_by_source(pairs: Sequence[Preference], chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """The same accuracy for every public set by itself, with counts and intervals."""
    return _by(pairs, chosen - rejected, lambda pair: pair.source, sorted({pair.source for pair in pairs}))


def accuracy_by_safety(pairs: Sequence[Preference], chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """The same by the labels of a pair's two completions (Table 29); pairs without labels are in no bin."""

    def bin_of(pair: Preference) -> str | None:
        return SAFETY_BINS.get((pair.chosen_safe, pair.rejected_safe))  # type: ignore[arg-type]

    return _by(pairs, chosen - rejected, bin_of, SAFETY_BINS.values())


def difference(one: Tensor, other: Tensor) -> dict[str, Any]:
    """How much more often `one` is right than `other` on the same pairs, from their gaps: paired 95% interval."""
    return paired(right(one).tolist(), right(other).tolist())


def difference_by_rating(pairs: Sequence[Preference], one: Tensor, other: Tensor) -> dict[str, dict[str, Any]]:
    """The same by rating and over all pairs, each with its exact p."""
    ratings = [pair.rating for pair in pairs]
    found = {}
    for bucket in (*RATINGS, "all"):
        where = torch.tensor([bucket in (rating, "all") for rating in ratings], dtype=torch.bool)
        if n := int(where.sum()):
            p = sign_test(right(one[where]).tolist(), right(other[where]).tolist())
            found[bucket] = difference(one[where], other[where]) | {"p": p, "n": n}
    return found


def calibration(pairs: Sequence[Preference], chosen: Tensor, rejected: Tensor, *, bins: int) -> list[dict[str, float]]:
    """How often the chosen side wins when the model says so with probability p: sigmoid of the gap, in equal bins.

    Every pair is in one bin; a gap of 0, where the model says nothing, is right half of the time.
    """
    # Seen from the side the model prefers, so that p runs from 0.5 to 1.
    gap = (chosen - rejected).double()
    p, rights = gap.abs().sigmoid(), right(gap)
    return [
        {"predicted": p[index].mean().item(), "observed": rights[index].mean().item(), "n": len(index)}
        for index in p.argsort(stable=True).tensor_split(bins)
        if len(index)
    ]


def worst(pairs: Sequence[Preference], chosen: Tensor, rejected: Tensor, *, count: int) -> list[dict[str, Any]]:
    """The pairs the model gets most wrong, with their texts: label noise, a blind spot, or a reward to be hacked."""
    gap = chosen - rejected
    rows: list[dict[str, Any]] = []
    for i in gap.argsort(stable=True)[:count].tolist():
        if gap[i] < 0:
            row: Mapping[str, Any] = pairs[i].to_json()
            kept = {key: row[key] for key in ("id", "source", "rating", "prompt", "chosen", "rejected")}
            rows.append({**kept, "chosen_score": chosen[i].item(), "rejected_score": rejected[i].item()})
    return rows


def _by(
    pairs: Sequence[Preference], gap: Tensor, key: Callable[[Preference], Any], buckets: Any
) -> dict[str, dict[str, Any]]:
    """`share_of` the pairs of every bucket; empty ones are absent."""
    keys, rights, found = [key(pair) for pair in pairs], right(gap), {}
    for bucket in buckets:
        where = torch.tensor([k == bucket for k in keys], dtype=torch.bool)
        if bool(where.any()):
            found[bucket] = share_of(rights[where])
    return found
