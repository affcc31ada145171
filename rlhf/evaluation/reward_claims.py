"""The paper's claims about reward models (B1 to B12), as far as one run's artefacts can say.

Those that compare a model with one trained otherwise are "untestable" here and say which command trains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from rlhf.data.types import RATINGS
from rlhf.evaluation.verdict import Claim, untestable, verdict

ABLATION = "needs models trained otherwise on the same pairs: make claims CLAIMS="
MARGINS = "needs models of all margins: reward.margin_ablation=[none,small,large], or over seeds make claims CLAIMS="
LEAST_CORNER = 0.01  # of the pairs, at the lower end of the interval: then a corner is not empty


def examine(models: Mapping[str, Any]) -> dict[str, Claim | None]:
    """By claim its verdict; None where the run has no figures for it."""
    return {
        "B1": accuracy_falls_with_rating(models),
        "B2": margin_raises_accuracy(models),
        "B3": margin_pushes_scores(models),
        "B4": own_domain_wins(models),
        "B5": untestable("the safety loss finds more unsafe answers at 0.5", ABLATION + "B5"),
        "B6": untestable("a tenth of helpfulness pairs helps the safety model on safe pairs", ABLATION + "B6"),
        "B7": untestable("accuracy rises with data and model size", ABLATION + "B7"),
        "B8": older_models_are_stale(models),
        "B9": score_rises_with_worth(models),
        "B10": ratings_drift(models),
        "B11": models_are_in_tension(models),
        "B12": threshold_trades(models),
    }


def accuracy_falls_with_rating(models: Mapping[str, Any]) -> Claim | None:
    """B1: significantly > better > slightly > negligibly, for each model on its own domain (Table 8)."""
    rows = {name: model[name] for name, model in models.items() if name in model}
    rated = {name: [row["accuracy"].get(r) for r in RATINGS] for name, row in rows.items()}
    rated = {name: values for name, values in rated.items() if all(v is not None for v in values)}
    if not rated:
        return None
    falls = all(a > b for values in rated.values() for a, b in pairwise(values))
    figure = "; ".join(f"{name}: {' > '.join(f'{v:.3f}' for v in values)}" for name, values in rated.items())
    evidence = "held-out pairs, " + ", ".join(f"{name} n={rows[name]['pairs']['all']}" for name in rated)
    return verdict(falls, "accuracy falls from significantly better to negligibly better", figure, evidence)


def margin_raises_accuracy(models: Mapping[str, Any]) -> Claim:
    """B2: with a margin, small or large, more of the significantly better pairs are right than without (Table 28)."""
    claim = "a margin raises accuracy on significantly better pairs"
    changes = models.get("helpfulness", {}).get("margins", {}).get("changes", {})
    found = {name: row["accuracy"].get("significantly") for name, row in changes.items() if name.endswith("minus none")}
    if len(found) < 2 or not all(found.values()):
        return untestable(claim, MARGINS + "B2")
    figure = ", ".join(f"{name} {shown(gain)}, p {gain['p']:.2f}" for name, gain in found.items())
    held = all(gain["mean"] > 0 and gain["p"] < 0.05 for gain in found.values())
    n = next(iter(found.values()))["n"]
    return verdict(
        held, claim, figure, f"the same {n} held-out pairs, one model a margin; McNemar's exact p, below .05"
    )


def margin_pushes_scores(models: Mapping[str, Any]) -> Claim:
    """B3: a margin puts more scores below 0.1 and above 0.9, and a large one more than a small one (Fig 27)."""
    claim = "a margin pushes scores to the extremes"
    changes = models.get("helpfulness", {}).get("margins", {}).get("changes", {})
    found = {name: changes[name]["outside"] for name in ("small minus none", "large minus small") if name in changes}
    if len(found) < 2:
        return untestable(claim, MARGINS + "B3")
    figure = ", ".join(f"{name} {shown(gain)}" for name, gain in found.items())
    evidence = "share of scores below 0.1 and above 0.9, the same completions, one model a margin, 95% interval"
    return verdict(all(gain["interval"][0] > 0 for gain in found.values()), claim, figure, evidence)


def own_domain_wins(models: Mapping[str, Any]) -> Claim | None:
    """B4: each model is the better one on its own domain (Table 7)."""
    found = {name: model.get(name, {}).get("gain_over_other") for name, model in models.items()}
    gains = {name: gain for name, gain in found.items() if gain}
    if len(gains) < 2:
        return None
    figure = ", ".join(f"{name} {shown(gain)}" for name, gain in gains.items())
    evidence = "accuracy on a domain of its own model minus that of the other model, the same pairs, 95% interval"
    held = all(gain["interval"][0] > 0 for gain in gains.values())
    return verdict(held, "each reward model wins its own domain", figure, evidence)


def older_models_are_stale(models: Mapping[str, Any]) -> Claim:
    """B8: on the newest pairs the model of the round before is worse than on its own, and than a new one (3.2.1)."""
    claim = "a reward model goes stale on newer policies' pairs, and a new one mends it"
    figures, held = [], []
    for name, model in models.items():
        found = model.get("staleness", {})
        lost, gain = found.get("lost"), found.get("refreshing_gains")
        if lost is None or gain is None:
            continue
        own, stale = found["on_its_own"]["matched"], list(found["on_newest"].values())[-2]["accuracy"]
        figures.append(
            f"{name}: {own:.3f} on its own round (ratings matched), {stale:.3f} on the next, lost {shown(lost)};"
            f" a new one {shown(gain)}"
        )
        held.append(lost["interval"][0] > 0 and gain["interval"][0] > 0)
    if not figures:
        needs = "needs two rounds of preferences and reward models, with rated pairs, and evaluate.across_rounds"
        return untestable(claim, needs)
    evidence = "held-out pairs; 95% intervals, paired for the new model; holds if both models lose and both are mended"
    return verdict(all(held), claim, "; ".join(figures), evidence)


def score_rises_with_worth(models: Mapping[str, Any]) -> Claim:
    """B9: the mean score rises with what the answers are worth, although training was on pairs (Fig 29)."""
    claim = "the score rises with what an answer is worth"
    rows = {name: model["pointwise"] for name, model in models.items() if "pointwise" in model}
    if not rows:
        return untestable(claim, "needs a gold judge or safety labels on the held-out pairs")
    rises = all(a["score"] <= b["score"] for row in rows.values() for a, b in pairwise(row["bins"]))
    shown = {name: [f"{b['score']:.2f}" for b in row["bins"]] for name, row in rows.items()}
    figure = "; ".join(f"{name}: {' < '.join(values)}" for name, values in shown.items())
    counts = (f"{name} by {row['against']}, n={sum(b['n'] for b in row['bins'])}" for name, row in rows.items())
    return verdict(rises, claim, figure, f"mean probability in bins of equal width; {', '.join(counts)}")


def ratings_drift(models: Mapping[str, Any]) -> Claim:
    """B10: as policies improve, fewer pairs are significantly better and more are negligibly so (Fig 25)."""
    claim = "pairs grow closer from round to round"
    found = {name: model["rating_drift"] for name, model in models.items() if "rating_drift" in model}
    if not found:
        return untestable(claim, "needs two rounds of rated pairs, and evaluate.across_rounds")
    drifts = all(d["significantly"]["interval"][1] < 0 < d["negligibly"]["interval"][0] for d in found.values())
    figure = "; ".join(
        f"{name}: significantly {shown(d['significantly'])}, negligibly {shown(d['negligibly'])}"
        for name, d in found.items()
    )
    return verdict(drifts, claim, figure, "change of their shares of held-out pairs, first round to last, 95% interval")


def models_are_in_tension(models: Mapping[str, Any]) -> Claim:
    """B11: what is unsafe may be helpful, what is safe may be of no help (Fig 32)."""
    claim = "helpfulness and safety scores are in tension"
    found = models.get("safety", {}).get("tension")
    if found is None:
        return untestable(claim, "needs pairs of a safe and an unsafe answer")
    corners = [found["unsafe_but_helpful"], found["safe_but_unhelpful"]]
    figure = "unsafe but helpful {:.2f}, safe but unhelpful {:.2f}".format(*(corner["share"] for corner in corners))
    figure += f"; the models prefer opposite sides in {found['models_disagree']['share']:.2f}"
    held = all(corner["interval"][0] > LEAST_CORNER for corner in corners)
    return verdict(held, claim, figure, f"{found['n']} held-out pairs of a safe and an unsafe answer, borders at 0.5")


def threshold_trades(models: Mapping[str, Any]) -> Claim:
    """B12: a lower threshold is more precise (3.2.3: .89 and .55 at 0.15). That it finds less is so for any scores."""
    claim = "a lower threshold is more precise"
    found = models.get("safety", {})
    gain, half = found.get("precision_gain"), found.get("unsafe_precision_at_half")
    if gain is None:
        return untestable(
            claim, "needs safety labels on the held-out pairs, and scores between the threshold and one half"
        )
    at, precision, point = found["threshold"], found["unsafe_precision"], found.get("operating_point")
    figure = (
        f"precision {precision:.2f}, recall {found['unsafe_recall']:.2f} below {at:g};"
        f" {half:.2f}, {found['unsafe_recall_at_half']:.2f} below 0.5"
    )
    evidence = f"below {at:g} against from there to 0.5: {shown(gain)}, 95% interval"
    if point:
        evidence += f"; precision .89, the paper's, below {point['threshold']:.2f}: recall {point['recall']:.2f}"
    return verdict(gain["interval"][0] > 0, claim, figure, evidence)


def shown(gain: Mapping[str, Any]) -> str:
    """A mean difference with its interval."""
    low, high = gain["interval"]
    return f"{gain['mean']:+.3f} ({low:+.3f} to {high:+.3f})"
