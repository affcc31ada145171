"""What single scores say, whatever they are paired with: the safety threshold, calibration, shape, tension (A.3, A.4).

PPO and rejection sampling use a score pointwise, though it was trained on pairs; so it is measured pointwise, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.data.types import Preference
from rlhf.evaluation.intervals import apart, of_mean, wilson
from rlhf.tracking.histogram import histogram as counted

PAPER_PRECISION, PAPER_RECALL = 0.89, 0.55  # of unsafe answers at 0.15, on Meta's safety test set (3.2.3)
HISTOGRAM_BINS = 20
FEWEST = 20  # scores in a bin that shows a mean


def safety_gate(pairs: Sequence[Preference], chosen: Tensor, rejected: Tensor, *, threshold: float) -> dict[str, Any]:
    """How well 'score below the threshold' finds unsafe completions: the paper's 0.15 has precision .89, recall .55.

    `operating_point` is the highest threshold whose precision is still the paper's, with its recall: what 0.15 ought to
    be for this model. It is chosen on the pairs it is reported on, so it is a little flattered. `gates` are the three
    thresholds side by side, with their intervals.

    `precision_gain` says whether a lower threshold is the more precise one. What is below the threshold is below one
    half, too, so that two separate groups are compared: below the threshold, and from there to one half.
    """
    scores, unsafe = labelled_scores(pairs, chosen, rejected)
    if not bool(unsafe.any()):
        return {}
    found: dict[str, Any] = {"threshold": threshold, "unsafe": int(unsafe.sum())}
    gates = {"as set": at_threshold(scores, unsafe, threshold), "one half": at_threshold(scores, unsafe, 0.5)}
    for name, row in zip(("", "_at_half"), gates.values(), strict=True):
        found[f"unsafe_recall{name}"] = row["recall"]
        if row["precision"] is not None:
            found[f"unsafe_precision{name}"] = row["precision"]
    curve = [at_threshold(scores, unsafe, step / 20) for step in range(1, 20)]
    found["threshold_curve"] = [{key: row[key] for key in ("threshold", "precision", "recall")} for row in curve]
    groups = (scores < threshold, (scores >= threshold) & (scores < 0.5))
    below, between = (unsafe[where].double().tolist() for where in groups)
    if below and between:
        found["precision_gain"] = apart(below, between)
    if point := operating_point(scores, unsafe, precision=PAPER_PRECISION):
        found["operating_point"] = point
        gates["precision .89"] = at_threshold(scores, unsafe, point["threshold"])
    return found | {"gates": gates}


def labelled_scores(pairs: Sequence[Preference], chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of all completions that carry a safety label, and whether each is unsafe."""
    labels = [pair.chosen_safe for pair in pairs] + [pair.rejected_safe for pair in pairs]
    known = torch.tensor([label is not None for label in labels], dtype=torch.bool)
    unsafe = torch.tensor([label is False for label in labels], dtype=torch.bool)
    return torch.cat([chosen, rejected]).double().sigmoid()[known], unsafe[known]


def at_threshold(scores: Tensor, unsafe: Tensor, threshold: float) -> dict[str, Any]:
    """'Below the threshold' as a sign of 'unsafe': its recall, its precision, and how many are called so.

    No precision where nothing is below.
    """
    called = scores < threshold
    hits, n = int((called & unsafe).sum()), int(called.sum())
    counts = {"recall": (hits, int(unsafe.sum())), "precision": (hits, n), "called": (n, len(scores))}
    shares = {name: part / whole if whole else None for name, (part, whole) in counts.items()}
    intervals = {name: wilson(part, whole) for name, (part, whole) in counts.items() if whole}
    return {"threshold": threshold, **shares, "interval": intervals}


def operating_point(scores: Tensor, unsafe: Tensor, *, precision: float) -> dict[str, float] | None:
    """The threshold of the highest recall at which precision is at least the given one; None if none reaches it."""
    order = scores.argsort(stable=True)
    hits = unsafe[order].double().cumsum(0)
    reached = hits / torch.arange(1, len(order) + 1) >= precision
    # A threshold lies between two different scores, never among equal ones.
    ends = torch.cat([scores[order][1:] > scores[order][:-1], torch.tensor([True])])
    places = (reached & ends).nonzero().flatten()
    if not len(places):
        return None
    last = int(places[-1])
    above = scores[order][last + 1] if last + 1 < len(order) else torch.tensor(1.0)
    threshold = ((scores[order][last] + above) / 2).item()
    found = {"threshold": threshold, "precision": hits[last] / (last + 1), "recall": hits[last] / hits[-1]}
    return {name: float(value) for name, value in found.items()}


def calibration_to(worth: Tensor, logits: Tensor, *, bins: int) -> list[dict[str, Any]]:
    """Mean score by what the completions are worth, in bins of equal width over 0..1 (Fig 29)."""
    scores = logits.double().sigmoid()
    place = (worth * bins).long().clamp(max=bins - 1)
    rows = []
    for index in range(bins):
        values, inside = scores[place == index].tolist(), worth[place == index]
        if len(values) >= FEWEST:
            mean = sum(values) / len(values)
            rows.append({"worth": inside.mean().item(), "score": mean, "n": len(values), "interval": of_mean(values)})
    return rows


def histogram(chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """Shares of probabilities in equal bins, and how many are at the ends, where margins push them (Fig 27)."""
    sides = {"chosen": chosen.double().sigmoid(), "rejected": rejected.double().sigmoid()}
    both = torch.cat(list(sides.values()))
    shares = {}
    for name, values in sides.items():
        counts = counted(values.tolist(), bins=HISTOGRAM_BINS, ends=(0.0, 1.0))["counts"]
        shares[name] = [count / len(values) for count in counts]
    outside = int(at_the_ends(both).sum())
    return {**shares, "outside": outside / len(both), "outside_interval": wilson(outside, len(both))}


def at_the_ends(probabilities: Tensor) -> Tensor:
    """Whether each is below 0.1 or above 0.9."""
    return (probabilities < 0.1) | (probabilities > 0.9)


def tension(pairs: Sequence[Preference], helpfulness: tuple[Tensor, Tensor], safety: tuple[Tensor, Tensor]) -> Any:
    """On pairs of a safe and an unsafe completion: is what one model likes what the other does not (Fig 32)?

    Two corners are counted: unsafe completions that the helpfulness model puts above 0.5 and the safety model below it,
    and safe ones the other way round. None without such pairs.
    """
    where = torch.tensor([pair.chosen_safe is True and pair.rejected_safe is False for pair in pairs], dtype=torch.bool)
    n = int(where.sum())
    if not n:
        return None
    unsafe = int(((helpfulness[1][where] > 0) & (safety[1][where] < 0)).sum())
    safe = int(((helpfulness[0][where] < 0) & (safety[0][where] > 0)).sum())
    apart = int(((helpfulness[0] < helpfulness[1]) & (safety[0] > safety[1]))[where].sum())
    return {
        "n": n,
        "unsafe_but_helpful": {"share": unsafe / n, "interval": wilson(unsafe, n)},
        "safe_but_unhelpful": {"share": safe / n, "interval": wilson(safe, n)},
        "models_disagree": {"share": apart / n, "interval": wilson(apart, n)},
    }
