"""How scores are spread over the answers to held-out prompts, by both reward models and by gold (Fig 14, Fig 20).

Scores are probabilities, the sigmoid of the logits, as in the paper's figures. So the bins are common to all policies,
models and runs, and the paper's threshold, 0.15, is the end of one. The logits go to the dashboards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from rlhf.evaluation.gold import verdicts
from rlhf.evaluation.intervals import paired, paired_quantile
from rlhf.evaluation.scores import FEWEST, HISTOGRAM_BINS
from rlhf.rollout import Sample
from rlhf.tracking.histogram import histogram

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
WORST = 0.1
Reply = tuple[Sample, float, float]
"""An answer with its helpfulness and safety score, in logits."""


def of_policies(replies: Mapping[str, Sequence[Reply]], *, against: str) -> dict[str, dict[str, Any]]:
    """For every policy, by judge and by prompts: quantiles, counts, and the shift from those it is compared with.

    Those are the policy `against` and the one just before, whose distribution training had to move. Fewer than 20
    prompts have no shift: their worst tenth is one answer or two.
    """
    values = {name: dict(_by_judge_and_prompts(rows)) for name, rows in replies.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, groups in values.items():
        earlier = [other for other in dict.fromkeys((against, *list(found)[-1:])) if other in values and other != name]
        found[name] = {}
        for (judge, prompts), scores in groups.items():
            row = spread(scores)
            if len(scores) >= FEWEST:
                row["shift"] = {other: shift(scores, values[other][judge, prompts]) for other in earlier}
            found[name].setdefault(judge, {})[prompts] = row
    return found


def spread(scores: Sequence[float]) -> dict[str, Any]:
    """Quantiles, linear between neighbours, and counts in equal bins from 0 to 1."""
    at = torch.tensor(QUANTILES, dtype=torch.float64)
    quantiles = torch.tensor(scores, dtype=torch.float64).quantile(at).tolist()
    return {
        "n": len(scores),
        "mean": sum(scores) / len(scores),
        "quantiles": {f"{share:g}": value for share, value in zip(QUANTILES, quantiles, strict=True)},
        "histogram": histogram(scores, bins=HISTOGRAM_BINS, ends=(0.0, 1.0)),
    }


def shift(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """How much higher the mean and the worst tenth are, on the same prompts, with paired 95% intervals."""
    return {"mean": paired(ours, theirs), "p10": paired_quantile(ours, theirs, share=WORST)}


def _by_judge_and_prompts(rows: Sequence[Reply]) -> Iterator[tuple[tuple[str, str], list[float]]]:
    """The scores of each judge on ordinary and on adversarial prompts, as far as there are any."""
    judges = {
        "helpfulness": torch.tensor([row[1] for row in rows], dtype=torch.float64).sigmoid().tolist(),
        "safety": torch.tensor([row[2] for row in rows], dtype=torch.float64).sigmoid().tolist(),
    }
    gold = verdicts([row[0] for row in rows])
    if gold is not None:
        judges["gold"] = [v.quality for v in gold]
    for judge, scores in judges.items():
        for prompts, tagged in (("ordinary", False), ("adversarial", True)):
            kept = [score for score, row in zip(scores, rows, strict=True) if row[0].prompt.is_safety is tagged]
            if kept:
                yield (judge, prompts), kept
