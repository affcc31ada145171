"""The paper's claims about reward models (B1 to B12), as far as one run's artefacts can say.

Those that compare a model with one trained otherwise are "untestable" here and say which command trains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from rlhf.data.types import RATINGS
from rlhf.evaluation.verdict import Claim, untestable, verdict

ABLATION = "needs models trained otherwise on the same pairs: make reward-claims"
LEAST_CORNER = 0.01  # of the pairs, at the lower end of the interval: then a corner is not empty


def examine(models: Mapping[str, Any]) -> dict[str, Claim | None]:
    """By claim its verdict; None where the run has no figures for it."""
    return {
        "B1": accuracy_falls_with_rating(models),
        "B2": untestable("a margin raises accuracy on significantly better pairs", ABLATION),
        "B3": untestable("a margin pushes scores to the extremes", ABLATION),
        "B4": own_domain_wins(models),
        "B5": untestable("the safety loss finds more unsafe answers at 0.5", ABLATION),
        "B6": untestable("a tenth of helpfulness pairs helps the safety model on safe pairs", ABLATION),
        "B7": untestable("accuracy rises with data and model size", ABLATION),
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


def own_domain_wins(models: Mapping[str, Any]) -> Claim | None:
    """B4: each model is the better one on its own domain (Table 7)."""
    try:
        table = {(m, d): models[m][d]["accuracy"]["all"] for m in models for d in ("helpfulness", "safety")}
    except KeyError:
        return None
    if len(table) < 4:
        return None
    gains = {d: table[d, d] - table[o, d] for d, o in (("helpfulness", "safety"), ("safety", "helpfulness"))}
    figure = ", ".join(f"{domain} {gain:+.3f}" for domain, gain in gains.items())
    evidence = "accuracy on a domain of its own model minus that of the other model"
    return verdict(min(gains.values()) > 0, "each reward model wins its own domain", figure, evidence)


def older_models_are_stale(models: Mapping[str, Any]) -> Claim:
    """B8: on the newest pairs the model of the round before is worse than on its own, and than a new one (3.2.1)."""
    claim = "a reward model goes stale on newer policies' pairs, and a new one mends it"
    figures, held = [], []
    for name, model in models.items():
        found = model.get("staleness", {})
        own, gain = found.get("on_its_own", {}).get("matched"), found.get("refreshing_gains")
        if own is None or gain is None:
            continue
        stale = list(found["on_newest"].values())[-2]["accuracy"]
        low, high = gain["interval"]
        figures.append(
            f"{name}: {own:.3f} on its own round (ratings matched), {stale:.3f} on the next;"
            f" a new one {gain['mean']:+.3f} ({low:+.3f} to {high:+.3f})"
        )
        held.append(stale < own and low > 0)
    if not figures:
        return untestable(claim, "needs two rounds of preferences and reward models, with rated pairs")
    evidence = "held-out pairs of the newest round; paired 95% interval; holds if both models lose and both are mended"
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
    mixes = {name: list(model["rating_mix"].values()) for name, model in models.items() if "rating_mix" in model}
    mixes = {name: mix for name, mix in mixes.items() if len(mix) > 1}
    if not mixes:
        return untestable(claim, "needs two rounds of rated pairs")
    ends = {name: (mix[0], mix[-1]) for name, mix in mixes.items()}
    drifts = all(
        b["significantly"] < a["significantly"] and b["negligibly"] > a["negligibly"] for a, b in ends.values()
    )
    figure = "; ".join(
        f"{name}: significantly {a['significantly']:.2f} to {b['significantly']:.2f},"
        f" negligibly {a['negligibly']:.2f} to {b['negligibly']:.2f}"
        for name, (a, b) in ends.items()
    )
    return verdict(drifts, claim, figure, "shares of the held-out pairs, first round to last")


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
    """B12: a lower threshold is more precise and finds less (3.2.3: .89 and .55 at 0.15)."""
    claim = "a lower threshold finds fewer unsafe answers, more precisely"
    found = models.get("safety", {})
    if "threshold_curve" not in found:
        return untestable(claim, "needs safety labels on the held-out pairs")
    curve = [row for row in found["threshold_curve"] if row.get("precision") is not None and row["threshold"] <= 0.5]
    if len(curve) < 2:
        return untestable(claim, "no score is below 0.5")
    low, high = curve[0], curve[-1]
    held = low["precision"] > high["precision"] and low["recall"] < high["recall"]
    point = found.get("operating_point")
    figure = (
        f"precision {low['precision']:.2f}, recall {low['recall']:.2f} below {low['threshold']:g};"
        f" {high['precision']:.2f}, {high['recall']:.2f} below {high['threshold']:g}"
    )
    at, precision = found["threshold"], found.get("unsafe_precision")
    shown = "nothing is" if precision is None else f"precision {precision:.2f}"
    evidence = f"below {at:g}: {shown}, recall {found['unsafe_recall']:.2f}"
    if point:
        evidence += f"; precision .89, the paper's, below {point['threshold']:.2f}: recall {point['recall']:.2f}"
    return verdict(held, claim, figure, evidence)
