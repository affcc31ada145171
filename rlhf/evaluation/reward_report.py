"""Everything that is measured of a pair of reward models before anything learns from them (3.2.2, A.3, A.4.1)."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.fit import Fit, ids_of
from rlhf.data.types import DOMAINS, RATINGS, Domain, Preference, rating_mix
from rlhf.evaluation import baselines, pairs, scores
from rlhf.evaluation.gold import worth_of
from rlhf.evaluation.intervals import Z, apart
from rlhf.models.load import freeze, load_reward_model
from rlhf.models.reward_models import RewardModels
from rlhf.models.score import score
from rlhf.models.shared import shared
from rlhf.schema import ModelConfig

BINS = 6
WORST = 6
SWAPPED = 200  # pairs scored a second time, the other way round
TOGETHER = 10_000  # pairs as ids at a time: a hundred thousand of them would be gigabytes
Rows = Sequence[Preference]
Gaps = tuple[Tensor, Tensor]
"""Scores of the chosen and of the rejected completions, [N] each."""


def examine(
    models: RewardModels,
    tokenizer: PreTrainedTokenizerBase,
    *,
    trained_on: Mapping[str, Rows],
    test: Mapping[str, Rows],
    threshold: float,
    context: int,
) -> dict[str, Any]:
    """report.json's `reward_models`: each model on the held-out pairs of both domains, and on its own in depth.

    Args:
        trained_on: what the text baselines learn from, some of a model's pairs or all.
        context: tokens that a pair may have; of a longer one the start of the prompt is cut.
    """
    found: dict[str, Any] = {}
    scored: dict[str, Gaps] = {}
    for name in DOMAINS:
        model, entry = getattr(models, name), {}
        for domain, rows in test.items():
            if not rows:
                continue
            chosen, rejected = scored[f"{name} on {domain}"] = score_pairs(model, tokenizer, rows, context=context)
            entry[domain] = accuracies(rows, chosen, rejected)
            entry[domain]["baselines"] = beside(trained_on[name], rows, chosen - rejected)
            if domain == name:
                entry |= in_depth(model, tokenizer, rows, chosen, rejected, domain=domain, context=context)
                if name == "safety":
                    entry |= scores.safety_gate(rows, chosen, rejected, threshold=threshold)
        found[name] = entry
    for name, other in (DOMAINS, reversed(DOMAINS)):
        if test[name]:
            own, others = (scored[f"{model} on {name}"] for model in (name, other))
            found[name][name]["gain_over_other"] = pairs.difference(own[0] - own[1], others[0] - others[1])
    if test["safety"]:
        opposed = scores.tension(test["safety"], scored["helpfulness on safety"], scored["safety on safety"])
        found["safety"] |= {"tension": opposed} if opposed else {}
    return found


def accuracies(rows: Rows, chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """Accuracy by rating, and by source and safety bin where there is more than one."""
    report = pairs.accuracy_by_rating(rows, chosen, rejected)
    for name, table in (
        ("by_source", pairs.accuracy_by_source(rows, chosen, rejected)),
        ("by_safety", pairs.accuracy_by_safety(rows, chosen, rejected)),
    ):
        report |= {name: table} if len(table) > 1 else {}
    return report


def beside(trained_on: Rows, rows: Rows, gap: Tensor) -> dict[str, Any]:
    """The text baselines on the same pairs, and how much more often the model is right than each: `gain`, paired."""
    rule, lengths = baselines.length_rule(trained_on, rows)
    found = {"length": {"rule": rule, **pairs.share_of(pairs.right(lengths))}}
    words = baselines.bag_of_words(trained_on, rows)
    found["bag_of_words"] = pairs.share_of(pairs.right(words))
    for name, other in (("length", lengths), ("bag_of_words", words)):
        found[name]["gain"] = pairs.difference(gap.double(), other)
    return found


def in_depth(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    chosen: Tensor,
    rejected: Tensor,
    *,
    domain: Domain,
    context: int,
) -> dict[str, Any]:
    """What is looked at on a model's own domain only."""
    found: dict[str, Any] = {
        "calibration": pairs.calibration(rows, chosen, rejected, bins=BINS),
        "histogram": scores.histogram(chosen, rejected),
        "swapped": swapped(model, tokenizer, rows[:SWAPPED], chosen - rejected, context=context),
        "worst": pairs.worst(rows, chosen, rejected, count=WORST),
    }
    worth, against = worth_of(rows, domain=domain), "gold"
    logits = torch.cat([chosen, rejected])
    if worth is None:  # nobody knows what the answers are worth, but somebody may have labelled them
        labels = [pair.chosen_safe for pair in rows] + [pair.rejected_safe for pair in rows]
        known = torch.tensor([label is not None for label in labels], dtype=torch.bool)
        worth, against = [float(label) for label in labels if label is not None], "safety label"
        logits = logits[known]
    bins = scores.calibration_to(torch.tensor(worth, dtype=torch.float64), logits, bins=BINS) if worth else []
    return found | ({"pointwise": {"against": against, "bins": bins}} if len(bins) > 1 else {})


def swapped(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, gap: Tensor, *, context: int
) -> dict[str, Any]:
    """The same pairs with their sides exchanged, each by itself: a score knows nothing of its pair (recipe S5)."""
    ids = [side for pair in encoded(tokenizer, rows, context=context) for side in reversed(pair)]
    again = score(model, ids, pad_token_id=tokenizer.pad_token_id, tokens_per_batch=1).view(-1, 2)
    other = again[:, 1] - again[:, 0]
    before = gap[: len(rows)]
    same = (other.sign() == before.sign()).double().mean().item()
    return {"consistent": same, "largest_difference": (other - before).abs().max().item(), "n": len(rows)}


def score_pairs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, *, context: int) -> Gaps:
    """Scores of both sides of the pairs, read exactly as in training."""
    scored = []
    for first in range(0, len(rows), TOGETHER):
        ids = encoded(tokenizer, rows[first : first + TOGETHER], context=context)
        sides = [pair[side] for side in range(2) for pair in ids]
        scored.append(torch.stack(score(model, sides, pad_token_id=tokenizer.pad_token_id).chunk(2)))
    chosen, rejected = torch.cat(scored, dim=1)
    return chosen, rejected


def scores_of(place: Path, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> Gaps:
    """The same by a saved model, which is held for this alone; processes may share it."""
    model = shared(freeze(load_reward_model(place, config)))
    return score_pairs(model, tokenizer, rows, context=config.max_length)


def encoded(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, *, context: int
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Both sides of the pairs as ids."""
    found = (ids_of(tokenizer, row, Fit(context, "truncate_left")) for row in rows)  # which leaves none out
    return [(array("i", pair[0]), array("i", pair[1])) for pair in found if pair]


def staleness(by_round: Mapping[str, Gaps], rows: Rows, *, own: tuple[Gaps, Rows] | None) -> dict[str, Any]:
    """Claim B8: the reward models of every round on the pairs of the newest policies.

    Args:
        by_round: reward artefact -> its scores of `rows`, oldest first; the last one has been trained on such pairs.
        rows: held-out pairs of the newest round.
        own: scores and pairs of the last but one model on the round it was trained for, to compare like with like:
            `matched` is its accuracy there with the ratings weighted as in `rows`, since newer pairs are closer, and
            `lost` how much of it is gone on `rows`; the two sets are independent.
    """
    shares = {name: pairs.share_of(pairs.right(c - r)) for name, (c, r) in by_round.items()}
    found: dict[str, Any] = {"on_newest": shares}
    *earlier, newest = by_round.values()
    if earlier:
        fresh, stale = newest[0] - newest[1], earlier[-1][0] - earlier[-1][1]
        found["refreshing_gains"] = pairs.difference(fresh, stale)
    if own is not None:
        (chosen, rejected), own_rows = own
        found["on_its_own"] = {**pairs.share_of(pairs.right(chosen - rejected))}
        alike = matched(pairs.accuracy_by_rating(own_rows, chosen, rejected), rows)
        if alike is not None and earlier:
            found["on_its_own"]["matched"], variance = alike
            stale_share = list(shares.values())[-2]
            mean = found["on_its_own"]["matched"] - stale_share["accuracy"]
            half = Z * math.sqrt(variance + _variance(stale_share["accuracy"], stale_share["n"]))
            found["lost"] = {"mean": mean, "interval": (mean - half, mean + half)}
    return found


def matched(by_rating: Mapping[str, Any], rows: Rows) -> tuple[float, float] | None:
    """An accuracy weighted by the ratings of other pairs, and its variance; None where a rating is missing."""
    shares = rating_mix(rows)
    if not shares or any(share and rating not in by_rating["accuracy"] for rating, share in shares.items()):
        return None
    used = [
        (share, by_rating["accuracy"][rating], by_rating["pairs"][rating]) for rating, share in shares.items() if share
    ]
    return (
        sum(share * accuracy for share, accuracy, _ in used),
        sum(share**2 * _variance(accuracy, n) for share, accuracy, n in used),
    )


def _variance(share: float, n: int) -> float:
    return share * (1 - share) / n


def rating_drift(first: Rows, last: Rows) -> dict[str, Any]:
    """How much larger the share of every rating is among the last pairs than among the first (Fig 25)."""
    before, after = ([row.rating for row in rows if row.rating is not None] for rows in (first, last))
    if not before or not after:
        return {}
    return {r: apart([float(x == r) for x in after], [float(x == r) for x in before]) for r in RATINGS}
