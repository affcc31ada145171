"""Models that differ in the margin of their training alone, on the same held-out pairs (A.3.3, Table 28, Fig 27)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from rlhf.data.types import Preference
from rlhf.evaluation import pairs
from rlhf.evaluation.intervals import paired
from rlhf.evaluation.scores import at_the_ends, histogram
from rlhf.functional.margin import MARGINS


def compare(rows: Sequence[Preference], scores: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """What each margin comes to, and what every larger one changes, pair by pair.

    Args:
        scores: margin -> scores [N] of the chosen and [N] of the rejected completions of `rows`.
    """
    scores = {margin: scores[margin] for margin in MARGINS if margin in scores}
    models = {}
    for margin, sides in scores.items():
        spread = histogram(*sides)
        outside = {name: spread[name] for name in ("outside", "outside_interval")}
        models[margin] = pairs.accuracy_by_rating(rows, *sides) | outside
    changes = {}
    for (less, before), (more, after) in combinations(scores.items(), 2):
        gained = pairs.difference_by_rating(rows, after[0] - after[1], before[0] - before[1])
        ends = (at_the_ends(torch.cat(sides).double().sigmoid()).double().tolist() for sides in (after, before))
        changes[f"{more} minus {less}"] = {"accuracy": gained, "outside": paired(*ends)}
    return {"models": models, "changes": changes}
