"""Reward models beyond accuracy by rating: beside text baselines, score by score, over rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf.data.types import RATINGS
from rlhf.reporting.figures import Chart, alt_of
from rlhf.reporting.plots import Series, lines
from rlhf.reporting.table import ABSENT, Report, Sheet, domains_of, span
from rlhf.reporting.text import percent, two_places

BUCKETS = (*RATINGS, "all")
BINS = {"safe_over_unsafe": "safe over unsafe", "both_safe": "both safe", "both_unsafe": "both unsafe"}


def sheets(report: Report) -> list[Sheet]:
    """The tables there are figures for."""
    models: Mapping[str, Any] = report.get("reward_models", {})
    made = [
        beside(models),
        parts(models),
        margins(models),
        over_rounds(models),
        rating_mixes(models),
        soundness(models),
    ]
    return [sheet for sheet in made if sheet is not None]


def charts(report: Report) -> list[Chart]:
    """Shape of the scores, score by worth, and what a threshold finds."""
    made: list[Chart] = []
    for name, entry in report.get("reward_models", {}).items():
        made += [chart for chart in (shape(name, entry), by_worth(name, entry), threshold(name, entry)) if chart]
    return made


def worst(report: Report) -> list[dict[str, Any]]:
    """The pairs each model got most wrong."""
    found = report.get("reward_models", {})
    return [{"model": name, **row} for name, entry in found.items() for row in entry.get("worst", [])]


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def beside(models: Mapping[str, Any]) -> Sheet | None:
    """Each model and the text baselines on the same held-out pairs."""
    rows, errors = [], []
    for model, entry in models.items():
        for domain, found in domains_of(entry).items():
            rules = found.get("baselines", {})
            if not rules:
                continue
            words, length = rules["bag_of_words"], rules["length"]
            own = found.get("interval", {}).get("all")
            shares = (found["accuracy"]["all"], words["accuracy"], words["gain"]["mean"], length["accuracy"])
            cells = [two_places(share) for share in shares]
            cells[2] = f"{shares[2]:+.2f}"
            rows.append((f"{model} on {domain}", *cells, length["rule"], f"{found['pairs']['all']:,}"))
            ends = [
                span(own),
                span(words["interval"]),
                span(words["gain"]["interval"]),
                span(length["interval"]),
            ]
            errors.append(("", *ends, "", ""))
    if not rows:
        return None
    head = ("model on pairs", "model", "bag of words", "gain over it", "length alone", "length rule", "pairs")
    note = "baselines are trained on the pairs the model was trained on; a gain is paired"
    return Sheet("Beside rules that read no language", head, tuple(rows), note, tuple(errors))


def parts(models: Mapping[str, Any]) -> Sheet | None:
    """Accuracy by source and by safety bin (Table 29), on a model's own domain."""
    rows, errors = [], []
    for model, entry in models.items():
        own = entry.get(model, {})
        for key, found in _parts_of(own):
            rows.append((f"{model}: {key}", two_places(found["accuracy"]), f"{found['n']:,}"))
            errors.append(("", span(found["interval"]), ""))
    if not rows:
        return None
    return Sheet("By source and safety bin", ("pairs", "accuracy", "n"), tuple(rows), "", tuple(errors))


def margins(models: Mapping[str, Any]) -> Sheet | None:
    """Helpfulness models of several margins on the same pairs, and what each larger one changes (Table 28, Fig 27)."""
    found = models.get("helpfulness", {}).get("margins")
    if not found:
        return None
    rows, errors = [], []
    for margin, row in found["models"].items():
        shares = (row["accuracy"].get(bucket) for bucket in BUCKETS)
        cells = (ABSENT if share is None else f"{share:.3f}" for share in shares)
        rows.append((margin, *cells, percent(row["outside"])))
        errors.append(("", *(span(row["interval"].get(bucket)) for bucket in BUCKETS), span(row["outside_interval"])))
    for name, change in found["changes"].items():
        gains = [change["accuracy"].get(bucket) for bucket in BUCKETS]
        cells = (_signed(gain["mean"]) if gain else ABSENT for gain in gains)
        rows.append((name, *cells, _signed(change["outside"]["mean"])))
        spans = (f"{span(gain['interval'], _signed)}, p {gain['p']:.2f}" if gain else "" for gain in gains)
        errors.append(("", *spans, span(change["outside"]["interval"], _signed)))
    note = "accuracy on the same held-out pairs; changes are paired, p is exact (McNemar's test)"
    head = ("margin", *BUCKETS, "scores beyond .1 and .9")
    return Sheet("Margins", head, tuple(rows), note, tuple(errors))


def over_rounds(models: Mapping[str, Any]) -> Sheet | None:
    """The reward models of every round on the newest round's pairs (B8)."""
    rows, errors = [], []
    for model, entry in models.items():
        for name, found in entry.get("staleness", {}).get("on_newest", {}).items():
            rows.append((f"{model}, {name}", two_places(found["accuracy"]), f"{found['n']:,}"))
            errors.append(("", span(found["interval"]), ""))
    if not rows:
        return None
    note = "accuracy on held-out pairs of the newest policies"
    return Sheet(
        "Older reward models on the newest pairs", ("model", "accuracy", "n"), tuple(rows), note, tuple(errors)
    )


def rating_mixes(models: Mapping[str, Any]) -> Sheet | None:
    """The ratings of every round (Fig 25)."""
    rows = [
        (f"{model}, {name}", *(percent(shares.get(rating, 0.0)) for rating in RATINGS))
        for model, entry in models.items()
        for name, shares in entry.get("rating_mix", {}).items()
    ]
    return (
        Sheet("Ratings by round", ("pairs", *RATINGS), tuple(rows), "in the paper strong ratings get fewer")
        if rows
        else None
    )


def soundness(models: Mapping[str, Any]) -> Sheet | None:
    """Whether a score depends on its pair, and how the training was laid out."""
    rows = []
    for model, entry in models.items():
        swapped, batches = entry.get("swapped"), entry.get("batches")
        if swapped or batches:
            rows.append(
                (
                    model,
                    percent(swapped["consistent"]) if swapped else ABSENT,
                    f"{swapped['largest_difference']:.1e}" if swapped else ABSENT,
                    batches["layout"] if batches else ABSENT,
                    percent(batches["padding"]) if batches else ABSENT,
                )
            )
    head = ("model", "same choice, sides swapped", "largest difference", "trained as", "padding")
    return Sheet("Soundness", head, tuple(rows), "a score knows nothing of its pair") if rows else None


# ── charts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def shape(name: str, entry: Mapping[str, Any]) -> Chart | None:
    """How the scores of both sides are spread (Fig 27)."""
    found = entry.get("histogram")
    if not found:
        return None
    middle = [(i + 0.5) / len(found["chosen"]) for i in range(len(found["chosen"]))]
    series = [Series(side, middle, [100 * v for v in found[side]]) for side in ("chosen", "rejected")]
    svg = lines(f"shape-{name}", series, x="score, as a probability", y="% of completions")
    caption = f"{percent(found['outside'])} of the scores are below 0.1 or above 0.9; a margin makes them more."
    return Chart(f"{name.capitalize()} model: its scores", svg, caption, alt_of(series))


def by_worth(name: str, entry: Mapping[str, Any]) -> Chart | None:
    """Mean score by gold or label (Fig 29)."""
    found = entry.get("pointwise")
    if not found:
        return None
    rows = found["bins"]
    series = [Series("completions", [row["worth"] for row in rows], [row["score"] for row in rows])]
    svg = lines(f"worth-{name}", series, x=f"worth, by {found['against']}", y="mean score, as a probability")
    caption = f"Trained on pairs, read by itself: the mean score by {found['against']}. It should rise."
    return Chart(f"{name.capitalize()} model: score by worth", svg, caption, alt_of(series))


def threshold(name: str, entry: Mapping[str, Any]) -> Chart | None:
    """Precision and recall of 'below the threshold' as a sign of 'unsafe' (3.2.3)."""
    rows: Sequence[Mapping[str, Any]] = entry.get("threshold_curve", [])
    kept = {key: [row for row in rows if row.get(key) is not None] for key in ("precision", "recall")}
    if any(len(points) < 2 for points in kept.values()):
        return None
    series = [Series(key, [p["threshold"] for p in points], [p[key] for p in points]) for key, points in kept.items()]
    svg = lines(f"threshold-{name}", series, x="threshold, a probability", y="share")
    caption = (
        "Of what is below the threshold, the share that is unsafe (precision); of what is unsafe, the share below it"
        " (recall). The paper's threshold, 0.15, has precision .89 and recall .55 there."
    )
    return Chart(f"{name.capitalize()} model: unsafe answers found", svg, caption, alt_of(series))


def _signed(change: float) -> str:
    return f"{change:+.3f}"


def _parts_of(own: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from own.get("by_source", {}).items()
    for key, found in own.get("by_safety", {}).items():
        yield BINS.get(key, key), found
