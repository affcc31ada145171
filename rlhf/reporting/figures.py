"""Which charts the report shows, drawn from report.json and the metrics of each step; what is absent is not drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rlhf.data.types import RATINGS
from rlhf.reporting.plots import Bar, Series, bars, lines, scatter
from rlhf.reporting.table import domains_of, interval_of
from rlhf.reporting.text import short

Row = Mapping[str, Any]

PPO_CHARTS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("Reward", "score, logits", ("reward/helpfulness", "reward/safety", "reward/combined"), "raw scores, not whitened"),
    ("Held-out reward", "score, logits", ("heldout/reward_combined",), "what early stopping looks at"),
    ("Held-out gold", "gold", ("heldout/gold_quality", "heldout/violation_rate"), "a judge that is no reward"),
    ("KL to the reference", "nats an answer", ("objective/kl", "heldout/kl"), "how far the policy has moved"),
    ("Entropy", "nats a token", ("objective/entropy",), "a fall to nothing means collapse"),
    ("Clip fraction", "share of tokens", ("policy/clipfrac_avg",), "how often the clip binds"),
    ("Ratio", "new / old", ("val/ratio",), "stays near 1"),
    ("Explained variance", "of the returns", ("value/explained_variance",), "1 is a perfect critic, 0 a constant"),
    ("Losses", "loss", ("loss/policy_avg", "loss/value_avg"), ""),
    ("Ended by itself", "share of answers", ("gen/eos_rate",), ""),
    ("Length", "tokens", ("gen/length",), "a steady climb is the sign of a hacked reward"),
)


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart and the words that stand with it; `alt` says what the eye would see."""

    title: str
    svg: str
    caption: str
    alt: str


def accuracy_charts(report: Mapping[str, Any]) -> list[Chart]:
    """For each reward model its accuracy by rating in every domain (Table 8)."""
    charts = []
    for model, entry in report.get("reward_models", {}).items():
        domains = domains_of(entry)
        if domains:
            groups = [r for r in (*RATINGS, "all") if any(r in d["accuracy"] for d in domains.values())]
            series = {f"on {name} pairs": [_bar(domain, r) for r in groups] for name, domain in domains.items()}
            remarks = " ".join(f"On {name} pairs {falls_with_rating(domain)}." for name, domain in domains.items())
            svg = bars(f"accuracy-{_key(model)}", [_two_lines(g) for g in groups], series, y="accuracy", chance=0.5)
            caption = f"{remarks} Bars carry 95% intervals; the dotted line is chance."
            charts.append(Chart(f"{_title(model)} model: accuracy by rating", svg, caption, _bars_alt(series, groups)))
    return charts


def calibration_charts(report: Mapping[str, Any]) -> list[Chart]:
    """For each reward model how often its choice is right when it is how sure (Fig 29)."""
    charts = []
    for model, entry in report.get("reward_models", {}).items():
        rows = [row for row in entry.get("calibration", []) if {"predicted", "observed"} <= set(row)]
        if rows:
            line = Series("held-out pairs", [r["predicted"] for r in rows], [r["observed"] for r in rows])
            svg = lines(
                f"calibration-{_key(model)}", [line], x="how sure the model was", y="share right", diagonal=True
            )
            caption = (
                "How often the model's choice was right against how sure it was; on the dotted line the two agree."
            )
            charts.append(Chart(f"{_title(model)} model: calibration", svg, caption, alt_of([line])))
    return charts


def falls_with_rating(domain: Mapping[str, Any]) -> str:
    """In words: whether accuracy falls from significantly to negligibly better (claim B1)."""
    known = [(r, domain["accuracy"][r]) for r in RATINGS if r in domain["accuracy"]]
    if len(known) < 2:
        return "there are no ratings to compare"
    rises = [(a, b) for a, b in pairwise(known) if b[1] > a[1]]
    if not rises:
        return "accuracy falls with every step from significantly to negligibly better"
    named = ", ".join(f"{b[0]} {b[1]:.2f} above {a[0]} {a[1]:.2f}" for a, b in rises)
    beyond = [1 for a, b in rises if _low(domain, b[0]) > _high(domain, a[0])]
    return f"accuracy does not fall everywhere: {named}, {'beyond' if beyond else 'within'} the error"


def best_of_charts(report: Mapping[str, Any]) -> list[Chart]:
    """Max, median and gold of the best of N by policy (Fig 7)."""
    wanted = (
        ("max", "Best of N: reward", "score, logits", "The highest of N scores. In the paper it grows with N (Fig 7)."),
        (
            "median",
            "Median of N: reward",
            "score, logits",
            "The median of N scores. In the paper it stays flat (Fig 7).",
        ),
        (
            "gold_of_max",
            "Best of N: gold",
            "gold quality",
            "What the gold judge says of the best by reward; where it falls, the reward is being gamed.",
        ),
    )
    charts = []
    for what, title, y, caption in wanted:
        series = _by_number(
            (policy, {n: row[what] for n, row in by_n.items() if what in row})
            for policy, by_n in report.get("best_of", {}).items()
        )
        if series:
            if what == "gold_of_max":
                caption += " " + " ".join(over_optimised(line) for line in series)
            svg = lines(f"bestof-{what}", series, x="N", y=y, scale="powers of two")
            charts.append(Chart(title, svg, caption, alt_of(series)))
    return charts


def over_optimised(gold: Series) -> str:
    """In words: up to which N choosing by reward raises gold, beyond which the reward model is over-optimised."""
    best = max(range(len(gold.y)), key=lambda i: gold.y[i])
    if best == len(gold.y) - 1:
        return f"{gold.name}: gold is highest at the largest N, {gold.x[best]:g}."
    fall = gold.y[best] - gold.y[-1]
    return (
        f"{gold.name}: gold is highest at N = {gold.x[best]:g}; beyond it the reward is over-optimised,"
        f" by {short(fall)} at N = {gold.x[-1]:g}."
    )


def temperature_charts(report: Mapping[str, Any]) -> list[Chart]:
    """For each policy the best of N over the sampling temperature (Fig 8)."""
    charts = []
    for policy, by_t in report.get("temperature", {}).items():
        sizes = sorted({n for by_n in by_t.values() for n in by_n}, key=float)
        series = _by_number((f"N = {n}", {t: by_n[n] for t, by_n in by_t.items() if n in by_n}) for n in sizes)
        if series:
            best = max(zip(series[-1].y, series[-1].x, strict=True))[1]
            svg = lines(f"temperature-{_key(policy)}", series, x="temperature", y="score, logits")
            caption = f"Best of {sizes[-1]} is highest at temperature {best:g}.{_budget(report, len(by_t))}"
            charts.append(Chart(str(policy), svg, caption, alt_of(series)))
    return charts


def tradeoff_charts(report: Mapping[str, Any]) -> list[Chart]:
    """Helpfulness against safety, one point a version (Fig 11)."""
    points = {
        name: (1 - entry["violation_rate"], entry.get("gold_helpfulness", entry.get("gold_quality")))
        for name, entry in report.get("policies", {}).items()
        if "violation_rate" in entry and ("gold_helpfulness" in entry or "gold_quality" in entry)
    }
    if not points:
        return []
    svg = scatter("tradeoff", points, x="safety: 1 − violation rate", y="gold helpfulness")
    alt = "; ".join(f"{name}: safety {a:.2f}, helpfulness {b:.2f}" for name, (a, b) in points.items())
    caption = "Up and to the right is better; the line joins versions in order."
    return [Chart("Every version", svg, caption, alt), *refusal_charts(report)]


def refusal_charts(report: Mapping[str, Any]) -> list[Chart]:
    """What safety costs: refusals of harmless prompts that sound unsafe, one point a version."""
    points = {
        name: (1 - entry["violation_rate"], 1 - entry["false_refusal"]["borderline"])
        for name, entry in report.get("policies", {}).items()
        if "violation_rate" in entry and "borderline" in entry.get("false_refusal", {})
    }
    if not points:
        return []
    svg = scatter("refusals", points, x="safety: 1 − violation rate", y="harmless prompts answered")
    alt = "; ".join(f"{name}: safety {a:.2f}, answered {b:.2f}" for name, (a, b) in points.items())
    caption = "A version that refuses everything is at the lower right; harmless prompts are those that sound unsafe."
    return [Chart("False refusals", svg, caption, alt)]


def scaling_charts(report: Mapping[str, Any], *, of: str = "") -> list[Chart]:
    """The trade-off of safety data in one plot: helpfulness, violations and false refusals by share (Fig 15, 33).

    Args:
        of: the run, on a page that shows several.
    """
    rows = []
    for share, row in sorted(report.get("safety_scaling", {}).items(), key=lambda item: float(item[0])):
        refused = {f"false_refusal.{kind}": rate for kind, rate in row.get("false_refusal", {}).items()}
        rows.append({**row, **refused, "percent": 100 * float(share)})
    wanted = {
        "helpfulness": "gold_helpfulness",
        "violations": "violation_rate",
        "unsafe by the reward model": "unsafe_by_reward_model",
        "refused, ordinary": "false_refusal.ordinary",
        "refused, borderline": "false_refusal.borderline",
    }
    series = []
    for name, figure in wanted.items():
        known = [row for row in rows if row.get(figure) is not None]
        if len(known) > 1:
            intervals = [row.get("interval", {}).get(figure, (row[figure], row[figure])) for row in known]
            series.append(Series(name, [row["percent"] for row in known], [row[figure] for row in known], intervals))
    if not series:
        return []
    caption = (
        "The same helpfulness data with more and more safety data; every model starts from the pretrained one."
        " Strokes are 95% intervals; the shares stand as far apart, whatever they are."
    )
    svg = lines(f"safety-scaling{of}", series, x="safety data, %", y="share; gold score", scale="even")
    title = "What safety data buys and costs"
    return [Chart(f"{title}: {of}" if of else title, svg, caption, alt_of(series))]


def ppo_charts(metrics: Mapping[str, Sequence[Row]]) -> list[Chart]:
    """The course of PPO: reward, KL, the held-out checks, and the health of policy and critic."""
    charts = []
    for step, rows in metrics.items():
        for title, y, names, caption in PPO_CHARTS:
            series = [s for s in (series_of(rows, name, _label(name)) for name in names) if s]
            if series:
                svg = lines(f"{_key(step)}-{_key(title)}", series, x="iteration", y=y)
                charts.append(Chart(title, svg, caption[:1].upper() + caption[1:], alt_of(series)))
    return charts


def frontier_charts(metrics: Mapping[str, Sequence[Row]]) -> list[Chart]:
    """Reward and gold of PPO's held-out checks over the KL paid for them, in the order of the iterations (Fig 12)."""
    charts = []
    wanted = (
        ("heldout/reward_combined", "Reward against KL", "score, logits", "What each nat bought by the reward model."),
        (
            "heldout/gold_quality",
            "Gold against KL",
            "gold quality",
            "Where it falls and reward rises, reward is gamed.",
        ),
    )
    for step, rows in metrics.items():
        for name, title, y, caption in wanted:
            found = [row for row in rows if name in row and "heldout/kl" in row]
            if len(found) > 1:
                path = Series(title, [float(r["heldout/kl"]) for r in found], [float(r[name]) for r in found])
                svg = lines(f"{_key(step)}-{_key(title)}", [path], x="KL to the reference, nats an answer", y=y)
                charts.append(Chart(title, svg, f"{caption} The line joins the checks in order.", alt_of([path])))
    return charts


def loss_charts(metrics: Mapping[str, Sequence[Row]]) -> list[Chart]:
    """The losses of every step that has any; what they are made of is left to metrics.jsonl, and PPO's are with PPO."""
    charts = []
    for step, rows in metrics.items():
        names = list(dict.fromkeys(name for row in rows for name in row if is_loss(name)))
        series = [s for s in (series_of(rows, name, name) for name in names) if s]
        if series:
            svg = lines(f"loss-{_key(step)}", series, x="step", y="loss, nats")
            charts.append(Chart(step, svg, "", alt_of(series)))
    return charts


def is_loss(name: str) -> bool:
    """`loss`, `helpfulness/loss`, `eval_loss`; not the parts of one, such as `helpfulness/loss/ranking`."""
    return bool(re.search(r"(?:^|[/_])loss$", name))


def series_of(rows: Sequence[Row], name: str, label: str) -> Series | None:
    """The course of one metric over `step`, or None if it has fewer than two points."""
    points = [(float(row["step"]), float(row[name])) for row in rows if name in row and "step" in row]
    return Series(label, [x for x, _ in points], [y for _, y in points]) if len(points) > 1 else None


def alt_of(series: Sequence[Series]) -> str:
    """The ends of every line in words."""
    return "; ".join(
        f"{s.name}: {short(s.y[0])} at {short(s.x[0])}, {short(s.y[-1])} at {short(s.x[-1])}" for s in series
    )


def _budget(report: Mapping[str, Any], temperatures: int) -> str:
    """What the curves cost, in words: the best temperature is one for this budget."""
    config = report.get("config", {}).get("evaluate", {})
    prompts, samples = config.get("best_of_prompts"), config.get("best_of_samples")
    if not (prompts and samples):
        return ""
    return f" Budget: {samples} samples of {prompts} prompts at {temperatures} temperatures."


def _bar(domain: Mapping[str, Any], rating: str) -> Bar | None:
    if rating not in domain["accuracy"]:
        return None
    return Bar(domain["accuracy"][rating], interval_of(domain, rating))


def _low(domain: Mapping[str, Any], rating: str) -> float:
    return (interval_of(domain, rating) or (domain["accuracy"][rating],))[0]


def _high(domain: Mapping[str, Any], rating: str) -> float:
    return (interval_of(domain, rating) or (domain["accuracy"][rating],))[-1]


def _bars_alt(series: Mapping[str, Sequence[Bar | None]], groups: Sequence[str]) -> str:
    return "; ".join(
        f"{name}: " + ", ".join(f"{g} {b.value:.2f}" for g, b in zip(groups, values, strict=True) if b)
        for name, values in series.items()
    )


def _by_number(named: Iterable[tuple[str, Mapping[str, float]]]) -> list[Series]:
    """Lines from tables whose keys are numbers written as text."""
    made = []
    for name, table in named:
        points = sorted((float(x), float(y)) for x, y in table.items())
        if points:
            made.append(Series(str(name), [x for x, _ in points], [y for _, y in points]))
    return made


def _two_lines(rating: str) -> str:
    return rating if rating in ("all", "better") else f"{rating}\nbetter"


def _label(name: str) -> str:
    """`reward/helpfulness` is helpfulness, `heldout/kl` is held-out kl, `loss/value_avg` is value."""
    group, _, rest = name.partition("/")
    return ("held-out " if group == "heldout" else "") + rest.removesuffix("_avg").replace("_", " ")


def _title(name: str) -> str:
    return name[:1].upper() + name[1:]


def _key(name: str) -> str:
    """A name fit for an SVG id."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)
