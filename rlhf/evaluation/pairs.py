"""A reward model on held-out pairs: accuracy by rating, the safety gate, calibration (3.2.2, A.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.data.types import RATINGS, Preference
from rlhf.evaluation.intervals import wilson


def accuracy_by_rating(pairs: Sequence[Preference], chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """Share of pairs whose chosen completion scores higher, by rating (Table 8), with counts and 95% intervals.

    A tie counts half. Buckets nobody rated are absent.
    """
    right = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
    accuracy, counts, interval = {}, {}, {}
    for bucket in (*RATINGS, "all"):
        where = torch.tensor([bucket in ("all", pair.rating) for pair in pairs], dtype=torch.bool)
        n = int(where.sum())
        if n:
            accuracy[bucket], counts[bucket] = right[where].mean().item(), n
            interval[bucket] = wilson(round(right[where].sum().item()), n)
    return {"accuracy": accuracy, "pairs": counts, "interval": interval}


def safety_gate(pairs: Sequence[Preference], chosen: Tensor, rejected: Tensor, *, threshold: float) -> dict[str, Any]:
    """How well 'score below the threshold' finds unsafe completions: the paper's 0.15 has precision .89, recall .55."""
    scores = torch.cat([chosen, rejected]).sigmoid()
    labels = [pair.chosen_safe for pair in pairs] + [pair.rejected_safe for pair in pairs]
    known = torch.tensor([label is not None for label in labels], dtype=torch.bool)
    unsafe = torch.tensor([label is False for label in labels], dtype=torch.bool)
    if not bool(unsafe.any()):
        return {}
    found: dict[str, Any] = {"threshold": threshold}
    for name, limit in (("", threshold), ("_at_half", 0.5)):
        flagged = (scores < limit) & known
        hits = int((flagged & unsafe).sum())
        found[f"unsafe_recall{name}"] = hits / int(unsafe.sum())
        if bool(flagged.any()):
            found[f"unsafe_precision{name}"] = hits / int(flagged.sum())
    return found


def calibration(pairs: Sequence[Preference], chosen: Tensor, rejected: Tensor, *, bins: int) -> list[dict[str, float]]:
    """How often the chosen side wins when the model says so with probability p: sigmoid of the gap, in equal bins.

    Every pair is in one bin; a gap of 0, where the model says nothing, is right half of the time.
    """
    # Seen from the side the model prefers, so that p runs from 0.5 to 1.
    gap = (chosen - rejected).double()
    p = gap.abs().sigmoid()
    right = (gap > 0).double() + 0.5 * (gap == 0).double()
    return [
        {"predicted": p[index].mean().item(), "observed": right[index].mean().item(), "n": len(index)}
        for index in p.argsort(stable=True).tensor_split(bins)
        if len(index)
    ]


def accuracy_by_source(pairs: Sequence[Preference], chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """The same accuracy for every public set by itself, with counts and intervals."""
    found = {}
    for source in sorted({pair.source for pair in pairs}):
        where = torch.tensor([pair.source == source for pair in pairs], dtype=torch.bool)
        right = (chosen > rejected)[where].double() + 0.5 * (chosen == rejected)[where].double()
        n = int(where.sum())
        found[source] = {"accuracy": right.mean().item(), "n": n, "interval": wilson(round(right.sum().item()), n)}
    return found
